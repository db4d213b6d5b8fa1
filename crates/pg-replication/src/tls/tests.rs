use std::future::poll_fn;

use super::*;
use crate::connection::Connection;
use crate::socket::Socket;
use testbed::certificates::Authority;
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, server};

/// Both ends of a connection that the client has encrypted.
async fn encrypted() -> (Encrypted, server::TlsStream<TcpStream>) {
    let authority = Authority::new("CA").unwrap();
    let certificate = authority.server(&["db.test"]).unwrap();
    let chain = Pem::new(certificate.pem).certificates().unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    let options = TlsOptions { ca: Some(Pem::new(authority.pem())), ..TlsOptions::default() };
    let accepting = async {
        theirs.read_exact(&mut [0; 8]).await.unwrap();
        theirs.write_all(b"S").await.unwrap();
        TlsAcceptor::from(Arc::new(config)).accept(theirs).await.unwrap()
    };
    let (ours, theirs) = tokio::join!(upgrade(ours, "db.test", &options), accepting);
    (ours.unwrap(), theirs)
}

/// A record holds at most 16 KiB. Passed on one by one, a backlog would look like a live stream.
#[tokio::test]
async fn one_read_takes_all_that_has_arrived() {
    let (ours, mut theirs) = encrypted().await;
    let mut connection = Connection::new(Socket::Tls(Box::new(ours)));
    theirs.write_all(&[7; 100_000]).await.unwrap();
    theirs.flush().await.unwrap();
    let bytes = poll_fn(|cx| connection.poll_read(cx)).await.unwrap();
    assert!(bytes > 32 * 1024, "{bytes} bytes");
}

#[tokio::test]
async fn no_process_wide_provider_is_installed() {
    let _both = encrypted().await;
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
}

#[tokio::test]
async fn a_server_that_closes_without_close_notify_has_closed() {
    let (ours, mut theirs) = encrypted().await;
    let mut connection = Connection::new(Socket::Tls(Box::new(ours)));
    theirs.write_all(b"Z\0\0\0\x05I").await.unwrap();
    theirs.flush().await.unwrap();
    drop(theirs);
    assert_eq!(connection.receive().await.unwrap().tag, b'Z');
    assert!(matches!(connection.receive().await, Err(Error::Closed)));
}

/// The client's result with a server that answers SSLRequest with `answer` and closes.
async fn connect_to(answer: &'static [u8]) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    let serving = async move {
        let mut request = [0; 8];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(request, SSL_REQUEST);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        // What the client sends now must not be plain text.
        let mut rest = Vec::new();
        let _ = theirs.read_to_end(&mut rest).await;
        assert!(rest.is_empty() || rest[0] == 0x16, "only a TLS handshake may follow");
    };
    let options = TlsOptions::default();
    let (refused, ()) = tokio::join!(upgrade(ours, "db.test", &options), serving);
    refused.err().unwrap()
}

#[tokio::test]
async fn every_answer_but_yes_ends_the_connection() {
    assert!(matches!(connect_to(b"N").await, Error::Tls(TlsError::NotOffered)));
    assert!(matches!(connect_to(b"").await, Error::Closed));
    assert!(matches!(connect_to(b"H").await, Error::Protocol { .. }));
    let error = connect_to(b"E\0\0\0\x0aMtrust me\0\0").await;
    assert!(
        matches!(error, Error::Tls(TlsError::Handshake { .. })) && !error.to_string().contains("trust me")
    );
}

#[tokio::test]
async fn plain_text_after_the_ssl_answer_is_never_accepted() {
    // AuthenticationOk and a query result injected by a man in the middle.
    let error = connect_to(b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await;
    assert!(matches!(error, Error::Tls(TlsError::Handshake { .. })), "{error}");
    // The connection ends during the handshake: a server that shuts down.
    assert!(matches!(connect_to(b"S").await, Error::Closed));
}

#[test]
fn an_invalid_certificate_is_reported_and_not_repeated() {
    let authorities = TlsOptions { ca: Some(Pem::new("hunter2")), ..TlsOptions::default() };
    let identity = ClientIdentity { certificates: Pem::new("hunter2"), key: Pem::new("hunter2") };
    let identity = TlsOptions { identity: Some(identity), ..TlsOptions::default() };
    for (options, authority) in [(authorities, true), (identity, false)] {
        let error = options.check().unwrap_err();
        assert_eq!(matches!(error, TlsError::Authorities { .. }), authority, "{error}");
        assert_eq!(matches!(error, TlsError::Identity { .. }), !authority, "{error}");
        assert!(!format!("{error} {error:?} {options:?}").contains("hunter2"));
    }
    TlsOptions::default().check().unwrap();
}

#[test]
fn invalid_files_are_described_in_one_sentence() {
    let of = |certificates: &str, key: &str| {
        let identity = ClientIdentity { certificates: Pem::new(certificates), key: Pem::new(key) };
        TlsOptions { identity: Some(identity), ..TlsOptions::default() }.check().unwrap_err().to_string()
    };
    let own = testbed::certificates::Certificate::self_signed("relay").unwrap();
    let other = testbed::certificates::Certificate::self_signed("other").unwrap();
    let mixed = ClientIdentity { certificates: Pem::new(&*own.pem), key: Pem::new(&*other.key) };
    assert!(of(&own.pem, &other.key).contains("its key belongs to another certificate"));
    assert!(mixed.check().unwrap_err().to_string().contains("its key belongs to another certificate"));
    ClientIdentity { certificates: Pem::new(&*own.pem), key: Pem::new(&*own.key) }.check().unwrap();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(of(&own.pem, encrypted).contains("its key is encrypted; remove the passphrase"));
    let traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert!(of(&own.pem, traditional).contains("its key is encrypted; remove the passphrase"));
    assert!(of(&own.pem, "").contains("its key is not a private key in PEM form"));
    assert!(
        of("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &own.key)
            .contains("cannot be read")
    );
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let trusted = TlsOptions { ca: Some(Pem::new(format!("{}{garbage}", own.pem))), ..TlsOptions::default() };
    assert!(trusted.check().unwrap_err().to_string().contains("certificate 2 of it cannot be read"));
}
