//! The issuer's key set (JWKS): read from a file or an address, and read again as the issuer changes its keys.
//!
//! A set that cannot be read changes nothing: the keys that are known stay in use.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::{Host, Url};

/// How often the set is read again: issuers announce a new key a good while before they sign with it.
const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// A key nobody knows makes the set be read at once, but not more often than this: anybody can invent key ids.
const REFRESH_AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// How long an issuer may take to answer.
const FETCH_WITHIN: Duration = Duration::from_secs(10);
/// A key set has a handful of keys of some hundred bytes.
const MAX_SET_BYTES: usize = 256 * 1024;

/// Where the key set is.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// At an address.
    Url {
        /// The address: https, or http on this machine.
        url: Url,
        /// Certificate authority (PEM) to trust in place of those of the web.
        ca_file: Option<PathBuf>,
    },
}

/// The key set cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// Keys that anybody on the way could replace.
    #[error("the key set's address must be https, or http on this machine")]
    NotHttps,
    /// The certificate authority.
    #[error("the file with the certificate authority cannot be used; it must hold certificates as PEM")]
    CertificateAuthority,
    /// The cryptography this program is built with: a bug.
    #[error("the TLS settings cannot be made")]
    Tls(#[from] rustls::Error),
}

/// Why a set could not be read. For the log.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    #[error("the address does not answer")]
    Fetch(#[source] hyper_util::client::legacy::Error),
    #[error("the address did not answer within {} s", FETCH_WITHIN.as_secs())]
    TooSlow,
    #[error("the address answered {0}")]
    Status(hyper::StatusCode),
    #[error("the set did not arrive, or has more than {MAX_SET_BYTES} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the set's address cannot be used")]
    Address(#[source] hyper::http::uri::InvalidUri),
    #[error("it is not a JSON Web Key Set")]
    NotASet(#[source] serde_json::Error),
    #[error("the set has no RSA or P-256 key for signatures")]
    NoKey,
}

/// A key, with the one algorithm it verifies.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    /// The algorithm its type allows; the token has no say in it.
    pub algorithm: Algorithm,
    /// The key.
    pub key: DecodingKey,
}

/// Which key a token names.
pub enum Found {
    /// This one.
    Key(Box<Key>),
    /// None that the issuer publishes.
    Unknown,
    /// No set could be read yet.
    NoKeys,
}

/// The keys, kept fresh.
pub struct Keys {
    source: KeySource,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    known: RwLock<Arc<Vec<Key>>>,
    /// When the set was last read, or tried to be; held while it is read.
    read_at: Mutex<Option<Instant>>,
}

impl Keys {
    /// Keys of `source`; none before the first read.
    pub fn new(source: KeySource) -> Result<Keys, SetUpError> {
        let connector = match &source {
            KeySource::File(_) => connector(None)?,
            KeySource::Url { url, .. } if !is_safe(url) => return Err(SetUpError::NotHttps),
            KeySource::Url { ca_file, .. } => connector(ca_file.as_ref())?,
        };
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Keys { source, client, known: RwLock::default(), read_at: Mutex::new(None) })
    }

    /// The key named `id`. One that is not known may be new: then the set is read again, unless that was just done.
    pub async fn find(&self, id: Option<&str>) -> Found {
        if let Some(key) = self.known_key(id) {
            return Found::Key(Box::new(key));
        }
        self.refresh(REFRESH_AT_MOST_EVERY).await;
        match self.known_key(id) {
            Some(key) => Found::Key(Box::new(key)),
            None if self.known().is_empty() => Found::NoKeys,
            None => Found::Unknown,
        }
    }

    /// Reads the set from time to time, for ever.
    pub async fn keep_fresh(&self) {
        loop {
            self.refresh(REFRESH_AT_MOST_EVERY).await;
            let pause = if self.known().is_empty() { REFRESH_AT_MOST_EVERY } else { REFRESH_EVERY };
            tokio::time::sleep(pause).await;
        }
    }

    fn known(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token without a key id means the only key there is.
    fn known_key(&self, id: Option<&str>) -> Option<Key> {
        let known = self.known();
        match (id, known.as_slice()) {
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)).cloned(),
        }
    }

    async fn refresh(&self, not_within: Duration) {
        // Whoever waits here for another one's read finds it done.
        let mut read_at = self.read_at.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < not_within) {
            return;
        }
        *read_at = Some(Instant::now());
        match self.read().await {
            Ok(keys) => *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the token issuer's keys cannot be read; those that are known stay in use"
            ),
        }
    }

    async fn read(&self) -> Result<Vec<Key>, ReadError> {
        let text = match &self.source {
            KeySource::File(path) => tokio::fs::read(path).await.map_err(ReadError::File)?.into(),
            KeySource::Url { url, .. } => {
                let fetched = tokio::time::timeout(FETCH_WITHIN, self.fetch(url)).await;
                fetched.unwrap_or(Err(ReadError::TooSlow))?
            }
        };
        let set: JwkSet = serde_json::from_slice(&text).map_err(ReadError::NotASet)?;
        let keys: Vec<Key> = set.keys.iter().filter_map(usable).collect();
        if keys.is_empty() { Err(ReadError::NoKey) } else { Ok(keys) }
    }

    /// Redirects are not followed: the configured address is the one that is trusted.
    async fn fetch(&self, url: &Url) -> Result<Bytes, ReadError> {
        let address = url.as_str().parse().map_err(ReadError::Address)?;
        let response = self.client.get(address).await.map_err(ReadError::Fetch)?;
        if !response.status().is_success() {
            return Err(ReadError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_SET_BYTES).collect().await;
        Ok(body.map_err(ReadError::Body)?.to_bytes())
    }
}

/// A key for signatures, with the algorithm that belongs to its type. Others in the set are somebody else's.
fn usable(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        _ => return None,
    };
    let declared = match jwk.common.key_algorithm {
        None => true,
        Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
        Some(_) => false,
    };
    let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    if !(declared && signs) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
}

/// Keys from the network are only as good as the way they come.
fn is_safe(url: &Url) -> bool {
    let on_this_machine = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && on_this_machine)
}

/// The TLS settings carry their own cryptography, so that nothing is installed for the whole process.
fn connector(ca_file: Option<&PathBuf>) -> Result<HttpsConnector<HttpConnector>, SetUpError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let roots = match ca_file {
        Some(file) => roots(file)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build())
}

fn roots(file: &PathBuf) -> Result<RootCertStore, SetUpError> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file).map_err(|_| SetUpError::CertificateAuthority)?;
    for certificate in certificates {
        let certificate = certificate.map_err(|_| SetUpError::CertificateAuthority)?;
        roots.add(certificate).map_err(|_| SetUpError::CertificateAuthority)?;
    }
    if roots.is_empty() { Err(SetUpError::CertificateAuthority) } else { Ok(roots) }
}
