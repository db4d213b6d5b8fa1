//! A man in the middle with a certificate that the client trusts: what channel binding is for.

use std::sync::Arc;

use super::*;
use crate::tls::{refused, trusting};
use pg_replication::ChannelBinding;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use testbed::certificates::{Authority, Certificate};
use testbed::postgres::ServerTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn acceptor(certificate: &Certificate) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn connector(authority: &Authority) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Decrypts the input, and encrypts it again for the server. Returns the port to connect to.
async fn in_between(authority: &Authority, server: u16) -> u16 {
    let (accept, connect) = (acceptor(&authority.server(&["127.0.0.1"]).unwrap()), connector(authority));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let (mut request, mut answer) = ([0; 8], [0; 1]);
            client.read_exact(&mut request).await.unwrap();
            let mut onward = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            onward.write_all(&request).await.unwrap();
            onward.read_exact(&mut answer).await.unwrap();
            client.write_all(&answer).await.unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let mut onward = connect.connect(name, onward).await.unwrap();
            let mut client = accept.accept(client).await.unwrap();
            let _ = copy_bidirectional(&mut client, &mut onward).await;
        }
    });
    port
}

#[tokio::test]
async fn a_trusted_man_in_the_middle_is_detected() {
    let authority = Authority::new("CA").unwrap();
    for auth in [Auth::Trust, Auth::Scram] {
        let certificate = authority.server(&["127.0.0.1"]).unwrap();
        let tls = Some(ServerTls { certificate, client_authority: None });
        let server = Server::with(PostgresOptions { auth, tls, ..PostgresOptions::default() }).await;
        let port = in_between(&authority, server.postgres.port()).await;
        let mut options = trusting(&server, &authority);
        Client::connect(&options).await.unwrap();
        options.hosts = vec![Host::Tcp { host: "127.0.0.1".into(), port }];
        if auth == Auth::Trust {
            // The certificate is valid, and no password is asked for: only required channel binding helps.
            drop(Client::connect(&options).await.unwrap());
        } else {
            let error = refused(&options).await;
            assert_eq!(error.sqlstate().map(|code| code.class() == "28"), Some(true), "{error}");
        }
        options.tls.channel_binding = ChannelBinding::Require;
        refused(&options).await;
    }
}
