//! An issuer of tokens, with its keys and the address where it publishes them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rsa::RsaPrivateKey;
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use testbed::Database;
use testbed::certificates::Certificate;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::service::Service;

pub const ISSUER: &str = "https://issuer.test/";
pub const AUDIENCE: &str = "basket-api";

/// A key pair of the issuer.
pub struct Pair {
    pub signs: EncodingKey,
    pub published: Value,
    pub algorithm: Algorithm,
}

/// RSA keys take a moment to make: one for all tests.
pub fn rsa() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let number = |bytes: Vec<u8>| URL_SAFE_NO_PAD.encode(bytes);
        Pair {
            signs: EncodingKey::from_rsa_der(key.to_pkcs1_der().unwrap().as_bytes()),
            published: json!({"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256",
                              "n": number(key.n().to_bytes_be()), "e": number(key.e().to_bytes_be())}),
            algorithm: Algorithm::RS256,
        }
    })
}

pub fn elliptic(kid: &str) -> Pair {
    let key = p256::SecretKey::random(&mut rsa::rand_core::OsRng);
    let mut published: Value = serde_json::from_str(&key.public_key().to_jwk_string()).unwrap();
    published["kid"] = json!(kid);
    let der = p256::pkcs8::EncodePrivateKey::to_pkcs8_der(&key).unwrap();
    Pair { signs: EncodingKey::from_ec_der(der.as_bytes()), published, algorithm: Algorithm::ES256 }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": now() + 600})
}

impl Pair {
    pub fn token(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = self.published["kid"].as_str().map(str::to_owned);
        encode(&header, claims, &self.signs).unwrap()
    }
}

/// The issuer's address for its keys.
pub struct Issuer {
    pub url: String,
    pub keys: Arc<Mutex<Value>>,
    pub fetched: Arc<AtomicUsize>,
    /// How long it takes to answer.
    pub delay: Arc<Mutex<Duration>>,
}

impl Issuer {
    pub async fn start(keys: &[&Pair]) -> Issuer {
        Issuer::listen("http", None, keys).await
    }

    /// At an https address, with this certificate.
    pub async fn secure(certificate: &Certificate, keys: &[&Pair]) -> Issuer {
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Issuer::listen("https", Some(TlsAcceptor::from(Arc::new(tls))), keys).await
    }

    async fn listen(scheme: &str, tls: Option<TlsAcceptor>, keys: &[&Pair]) -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}/keys", listener.local_addr().unwrap());
        let issuer = Issuer { url, keys: Arc::default(), fetched: Arc::default(), delay: Arc::default() };
        issuer.publish(keys);
        let (keys, fetched) = (Arc::clone(&issuer.keys), Arc::clone(&issuer.fetched));
        let delay = Arc::clone(&issuer.delay);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream: Box<dyn Stream> = match &tls {
                    None => Box::new(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        // A client that does not trust the certificate asks nothing.
                        Err(_) => continue,
                    },
                };
                fetched.fetch_add(1, Ordering::SeqCst);
                let (body, delay) = (keys.lock().unwrap().to_string(), *delay.lock().unwrap());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    answer(stream, &body).await;
                });
            }
        });
        issuer
    }

    pub fn publish(&self, keys: &[&Pair]) {
        let keys: Vec<&Value> = keys.iter().map(|pair| &pair.published).collect();
        *self.keys.lock().unwrap() = json!({ "keys": keys });
    }

    pub async fn service(&self) -> Service {
        self.service_with(&[]).await
    }

    pub async fn service_with(&self, more: &[&str]) -> Service {
        let service = self.unready_service_with(more).await;
        service.until_ready(200).await;
        service
    }

    pub async fn unready_service_with(&self, more: &[&str]) -> Service {
        let source = format!("--jwks-url={}", self.url);
        let issuer = format!("--jwt-issuer={ISSUER}");
        let arguments = [source.as_str(), &issuer, "--jwt-audience=basket-api"];
        let arguments = [&arguments, more].concat();
        Service::launch_unready(Database::fresh("tokens").await.unwrap(), &arguments)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn answer(mut stream: Box<dyn Stream>, body: &str) {
    let mut head = [0; 4096];
    drop(stream.read(&mut head).await);
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
    let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
    drop(stream.write_all(answer.as_bytes()).await);
    drop(stream.shutdown().await);
}
