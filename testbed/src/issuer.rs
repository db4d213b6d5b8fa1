//! An issuer of tokens: keys, the address where it publishes them (JWKS), and a token endpoint for client credentials.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use p256::SecretKey;
use p256::elliptic_curve::rand_core::OsRng;
use p256::pkcs8::EncodePrivateKey;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certificate;
use crate::{Error, net};

/// The largest request that is read.
const MAX_REQUEST: usize = 64 * 1024;

/// A key pair that tokens are signed with (ES256).
pub struct SigningKey {
    kid: String,
    signs: EncodingKey,
    /// The public key, as a JSON Web Key without its `kid`.
    public: Map<String, Value>,
}

impl SigningKey {
    /// A new one.
    ///
    /// # Errors
    /// The key cannot be encoded.
    pub fn new(kid: &str) -> Result<SigningKey, Error> {
        let key = SecretKey::random(&mut OsRng);
        let public = serde_json::from_str(&key.public_key().to_jwk_string()).map_err(broken)?;
        let der = key.to_pkcs8_der().map_err(broken)?;
        Ok(SigningKey { kid: kid.to_owned(), signs: EncodingKey::from_ec_der(der.as_bytes()), public })
    }

    /// The set that has this key alone.
    pub fn set(&self) -> Value {
        let mut published = self.public.clone();
        published.insert("kid".to_owned(), json!(self.kid));
        json!({ "keys": [published] })
    }

    /// A signed token.
    ///
    /// # Errors
    /// The claims cannot be encoded.
    pub fn token(&self, claims: &Value) -> Result<String, Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.clone());
        encode(&header, claims, &self.signs).map_err(broken)
    }
}

/// What the token endpoint grants.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The one client there is; also the `sub` of its tokens.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// `aud` of its tokens.
    pub audience: String,
    /// How long they are valid.
    pub lifetime: Duration,
}

/// An issuer that answers at an address. It ends with this value.
pub struct Issuer {
    /// Its name, the `iss` of its tokens.
    pub name: String,
    key: Mutex<SigningKey>,
    address: SocketAddr,
    certificate: Option<Certificate>,
    grant: Mutex<Grant>,
    asked: Mutex<Vec<String>>,
}

/// An issuer while it answers.
pub struct Answering(JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Issuer {
    /// One that does not answer yet: by https with a certificate, by http without.
    ///
    /// # Errors
    /// There is no free port.
    pub fn new(grant: Grant, certificate: Option<Certificate>) -> Result<Arc<Issuer>, Error> {
        let address = SocketAddr::from(([127, 0, 0, 1], net::free_port()?));
        Ok(Arc::new(Issuer {
            name: "https://issuer.test/".to_owned(),
            key: Mutex::new(SigningKey::new("issuer")?),
            address,
            certificate,
            grant: Mutex::new(grant),
            asked: Mutex::default(),
        }))
    }

    /// Where it issues tokens.
    pub fn token_endpoint(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}/token", self.address.port())
    }

    /// The set of its keys, with which brokers verify its tokens.
    pub fn keys(&self) -> Value {
        lock(&self.key).set()
    }

    /// Signs with another key from now on.
    ///
    /// # Errors
    /// The key cannot be encoded.
    pub fn replace_key(&self) -> Result<(), Error> {
        *lock(&self.key) = SigningKey::new("replaced")?;
        Ok(())
    }

    /// Changes what is granted.
    pub fn grant(&self, change: impl FnOnce(&mut Grant)) {
        change(&mut lock(&self.grant));
    }

    /// Bodies of the requests for tokens so far.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }

    /// A token as the endpoint issues them, valid from now.
    ///
    /// # Errors
    /// The claims cannot be encoded.
    pub fn token(&self) -> Result<String, Error> {
        let grant = lock(&self.grant).clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        lock(&self.key).token(&json!({
            "iss": self.name, "aud": grant.audience, "sub": grant.client_id,
            "iat": now.as_secs(), "exp": (now + grant.lifetime).as_secs(),
        }))
    }

    /// Answers until the value that is returned is dropped.
    ///
    /// # Errors
    /// The address is taken, or the certificate cannot be used.
    pub async fn answer(self: &Arc<Self>) -> Result<Answering, Error> {
        let listener = TcpListener::bind(self.address).await.map_err(Error::system("listen"))?;
        let tls = self.certificate.as_ref().map(acceptor).transpose()?;
        let issuer = Arc::clone(self);
        Ok(Answering(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match &tls {
                    None => issuer.serve(stream).await,
                    // A client that does not trust the certificate asks nothing.
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => issuer.serve(stream).await,
                        Err(_) => continue,
                    },
                }
            }
        })))
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Some(request) = read(&mut stream).await else { return };
        let (status, body) = self.reply(&request);
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
        drop(stream.shutdown().await);
    }

    fn reply(&self, request: &str) -> (&'static str, String) {
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or((request, ""));
        if head.starts_with("GET ") {
            return ("200 OK", self.keys().to_string());
        }
        lock(&self.asked).push(body.to_owned());
        let Grant { client_id, client_secret, lifetime, .. } = lock(&self.grant).clone();
        let expected =
            format!("authorization: basic {}", STANDARD.encode(format!("{client_id}:{client_secret}")));
        if !head.lines().any(|line| line.eq_ignore_ascii_case(&expected)) {
            let refusal =
                json!({"error": "invalid_client", "error_description": "no such client, or another secret"});
            return ("401 Unauthorized", refusal.to_string());
        }
        match self.token() {
            Ok(token) => {
                let granted =
                    json!({"access_token": token, "token_type": "Bearer", "expires_in": lifetime.as_secs()});
                ("200 OK", granted.to_string())
            }
            Err(error) => ("500 Internal Server Error", error.to_string()),
        }
    }
}

/// A whole request.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_REQUEST {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.ok()?;
        bytes.extend_from_slice(piece.get(..read)?);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= content_length(head)
        {
            return Some(text.into_owned());
        }
        if read == 0 {
            return None;
        }
    }
    None
}

fn content_length(head: &str) -> usize {
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, length)| length.trim().parse().ok()).unwrap_or(0)
}

fn acceptor(certificate: &Certificate) -> Result<TlsAcceptor, Error> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).map_err(broken)?];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).map_err(broken)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(broken)?.with_no_client_auth().with_single_cert(chain, key).map_err(broken)?;
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::system("issue tokens")(std::io::Error::other(error.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
