//! A blocking HTTP client: one request at a time, each within a time limit. Redirects are not followed, because only the configured address is
//! trusted with the credentials.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as HyperClient};
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::{Builder, Runtime};

use crate::error::chain;

/// Time limit of a request, the connection included.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// A token has a few kilobytes.
const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// Why there is no response.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum HttpsError {
    #[error("the CA file has no usable certificate")]
    Ca,
    #[error("the client cannot be set up: {0}")]
    SetUp(String),
    #[error("the request is invalid: {0}")]
    Request(Arc<hyper::http::Error>),
    #[error("{}", chain(&**.0))]
    Connection(Arc<legacy::Error>),
    #[error("no response within {} s", REQUEST_LIMIT.as_secs())]
    TooSlow,
    #[error("the response is incomplete, or has more than {MAX_RESPONSE_BYTES} bytes")]
    Body,
}

pub(super) struct Client {
    runtime: Runtime,
    client: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// Trusts these CA certificates (PEM), or else the public root CAs.
    pub(super) fn new(ca: Option<&str>) -> Result<Client, HttpsError> {
        let connector = connector(ca)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| HttpsError::SetUp(error.to_string()))?;
        // Tokens are requested minutes apart: no connection is kept until then.
        let client = HyperClient::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Client { runtime, client })
    }

    /// Blocks.
    pub(super) fn send(&self, request: Request<Bytes>) -> Result<(StatusCode, Bytes), HttpsError> {
        let exchange = async {
            let response = self.client.request(request.map(Full::new)).await;
            let response = response.map_err(|error| HttpsError::Connection(Arc::new(error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
            Ok((status, body.map_err(|_| HttpsError::Body)?.to_bytes()))
        };
        let limited = async { tokio::time::timeout(REQUEST_LIMIT, exchange).await };
        self.runtime.block_on(limited).unwrap_or(Err(HttpsError::TooSlow))
    }
}

/// The TLS settings name their cryptography provider, so that none is installed for the whole process.
fn connector(ca: Option<&str>) -> Result<HttpsConnector<HttpConnector>, HttpsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| HttpsError::SetUp(error.to_string()))?;
    let roots = match ca {
        Some(pem) => roots(pem)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build())
}

fn roots(pem: &str) -> Result<RootCertStore, HttpsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| HttpsError::Ca)?;
        roots.add(certificate).map_err(|_| HttpsError::Ca)?;
    }
    if roots.is_empty() { Err(HttpsError::Ca) } else { Ok(roots) }
}
