//! Where the issuer's key set (JWKS) is read: a file or an https address.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use url::{Host, Url};

use super::key_set::{self, Key};

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
        /// CA certificates (PEM) to trust instead of the public root CAs.
        ca_file: Option<PathBuf>,
    },
}

/// The key set cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// Keys that could be replaced in transit.
    /// The address.
    #[error("the key set's address must be https, or http on this machine")]
    NotHttps,
    /// The CA certificates.
    #[error("the CA file cannot be used; it must contain certificates as PEM")]
    CertificateAuthority,
    /// The cryptography this program is built with: a bug.
    #[error("the TLS settings cannot be made")]
    Tls(#[from] rustls::Error),
}

/// Why a set could not be read. For the log.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    /// No answer.
    #[error("the address does not answer")]
    Fetch(#[source] hyper_util::client::legacy::Error),
    /// No answer in time.
    #[error("the address did not answer within {} s", FETCH_WITHIN.as_secs())]
    TooSlow,
    /// Another answer than a success.
    #[error("the address answered {0}")]
    Status(hyper::StatusCode),
    /// The answer's body.
    #[error("the set did not arrive, or has more than {MAX_SET_BYTES} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address.
    #[error("the key set's address cannot be used")]
    Address(#[source] hyper::http::uri::InvalidUri),
    /// What was read.
    #[error(transparent)]
    Set(#[from] key_set::SetError),
}

/// Reads the key set.
pub struct KeyReader {
    source: KeySource,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl KeyReader {
    /// Of this source.
    pub fn new(source: KeySource) -> Result<KeyReader, SetUpError> {
        let connector = match &source {
            KeySource::File(_) => connector(None)?,
            KeySource::Url { url, .. } if !is_safe(url) => return Err(SetUpError::NotHttps),
            KeySource::Url { ca_file, .. } => connector(ca_file.as_ref())?,
        };
        Ok(KeyReader { source, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// The keys of the set.
    pub async fn read(&self) -> Result<Vec<Key>, ReadError> {
        let text = match &self.source {
            KeySource::File(path) => tokio::fs::read(path).await.map_err(ReadError::File)?.into(),
            KeySource::Url { url, .. } => {
                let fetched = tokio::time::timeout(FETCH_WITHIN, self.fetch(url)).await;
                fetched.unwrap_or(Err(ReadError::TooSlow))?
            }
        };
        Ok(key_set::parse(&text)?)
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

/// A key set over plain HTTP could be replaced in transit.
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
