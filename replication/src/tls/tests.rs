use super::*;
use tokio::net::TcpListener;

/// What the client makes of a server that answers the request for TLS with `answer` and hangs up.
async fn meet(answer: &'static [u8]) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    let serving = async move {
        let mut request = [0; 8];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(request, SSL_REQUEST);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        // Whatever the client says now must not be plain text.
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
    assert!(matches!(meet(b"N").await, Error::Tls(TlsError::NotOffered)));
    assert!(matches!(meet(b"").await, Error::Closed));
    assert!(matches!(meet(b"H").await, Error::Protocol { .. }));
    let error = meet(b"E\0\0\0\x0aMtrust me\0\0").await;
    assert!(
        matches!(error, Error::Tls(TlsError::Handshake { .. })) && !error.to_string().contains("trust me")
    );
}

#[tokio::test]
async fn plain_text_behind_the_yes_is_never_taken_for_the_servers() {
    // A welcome and a query result that somebody in between would like to be believed.
    let error = meet(b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await;
    assert!(matches!(error, Error::Tls(TlsError::Handshake { .. })), "{error}");
    // The connection ends in the midst of the handshake: a server that shuts down.
    assert!(matches!(meet(b"S").await, Error::Closed));
}

#[test]
fn what_is_no_certificate_is_named_and_not_repeated() {
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
