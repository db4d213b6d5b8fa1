//! TLS to the server, with rustls and ring. No process-wide provider is installed, and there is no fallback to plain
//! text: a server that cannot be encrypted to, or trusted, is not used.

mod certificate;
mod der;
mod end_point;
mod problem;
mod verify;

use std::fmt;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use certificate::Certificate;
pub(crate) use end_point::end_point;
pub use problem::TlsError;
use verify::Verifier;

use crate::Error;

/// SSLRequest, PostgreSQL documentation "Message Formats": its length, and a number that is no protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// How a connection over TCP is protected. Unix sockets are never encrypted.
///
/// Certificates are passed as PEM, not as files: read the files for each connection, and a rotated certificate is used
/// without a restart.
///
/// ```
/// use pg_replication::{ChannelBinding, ConnectOptions, Host, Pem, TlsMode, TlsOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir().join(format!("pg-replication-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let ca = folder.join("ca.pem");
/// # std::fs::write(&ca, "")?;
/// let host = Host::Tcp { host: "db.example.org".into(), port: 5432 };
/// let mut options = ConnectOptions::new(host, "relay", "shop");
/// options.tls = TlsOptions {
///     mode: TlsMode::VerifyFull,
///     ca: Some(Pem::new(std::fs::read(ca)?)),
///     identity: None,
///     channel_binding: ChannelBinding::Require,
/// };
/// // Without connecting: are these certificates?
/// assert!(options.tls.check().is_err(), "the file is empty");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// What is required of the server.
    pub mode: TlsMode,
    /// The trusted CAs; without any, the public root CAs (Mozilla's list). Given CAs replace the public ones, they are
    /// not added to them.
    pub ca: Option<Pem>,
    /// The client's certificate, for a server that asks for one.
    pub identity: Option<ClientIdentity>,
    /// Whether the password exchange must be bound to this TLS connection.
    pub channel_binding: ChannelBinding,
}

/// What is required of the server, each mode more than the one before. The names are libpq's; its `allow` and `prefer`,
/// which fall back to plain text, do not exist here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS: everything but the password is readable on the network.
    Disable,
    /// Encryption, to any server.
    Require,
    /// A certificate of a trusted CA, for any name.
    VerifyCa,
    /// A certificate of a trusted CA for the host name that was connected to.
    #[default]
    VerifyFull,
}

/// Channel binding (SCRAM-SHA-256-PLUS, `tls-server-end-point`): the password exchange fails if a man in the middle
/// decrypts and re-encrypts, even with a certificate that this client trusts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// If both sides support it. A man in the middle that hides the server's support is detected by the exchange.
    #[default]
    Prefer,
    /// Always: any other authentication is rejected, also one without a password.
    Require,
}

/// Certificates or a key in PEM format. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem(Vec<u8>);

impl Pem {
    /// Wraps the content of a PEM file; it is parsed when it is used.
    pub fn new(content: impl Into<Vec<u8>>) -> Self {
        Pem(content.into())
    }

    /// The content.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn is_encrypted(&self) -> bool {
        ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
            .iter()
            .any(|mark| self.0.windows(mark.len()).any(|window| window == mark.as_bytes()))
    }

    fn certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.0).collect();
        all.ok().filter(|certificates| !certificates.is_empty())
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pem(…)")
    }
}

/// The client's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate first, then the intermediate ones up to the CA.
    pub certificates: Pem,
    /// Its private key, not encrypted: PKCS#8, PKCS#1 or SEC 1.
    pub key: Pem,
}

impl TlsOptions {
    /// No TLS at all.
    pub fn disabled() -> Self {
        TlsOptions { mode: TlsMode::Disable, ..TlsOptions::default() }
    }

    /// Checks certificates and key without connecting.
    ///
    /// # Errors
    /// [`TlsError::Authorities`] and [`TlsError::Identity`].
    pub fn check(&self) -> Result<(), TlsError> {
        self.client_config().map(drop)
    }

    fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let given = self.given()?;
        let verifier = Verifier::new(self.mode, authorities(&given)?, given, Arc::clone(&provider))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::of(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let Some(identity) = &self.identity else { return Ok(config.with_no_client_auth()) };
        Ok(config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified()?))))
    }

    /// The given trusted certificates; without any, the public root CAs are trusted.
    fn given(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let Some(ca) = &self.ca else { return Ok(Vec::new()) };
        ca.certificates().ok_or_else(|| TlsError::authorities("it holds no certificate"))
    }
}

fn authorities(given: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    if given.is_empty() {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    }
    let mut store = RootCertStore::empty();
    for (index, certificate) in given.iter().enumerate() {
        // One that cannot be a CA may be the server's own.
        if store.add(certificate.clone()).is_err() && Certificate::parse(certificate).is_none() {
            return Err(TlsError::authorities(format!("certificate {} of it cannot be read", index + 1)));
        }
    }
    Ok(store)
}

impl ClientIdentity {
    /// Whether certificate and key belong together, for a connection by another TLS library: it may support more kinds of keys.
    ///
    /// # Errors
    /// [`TlsError::Identity`].
    pub fn check(&self) -> Result<(), TlsError> {
        match ring::sign::any_supported_type(&self.private_key()?) {
            Ok(key) => self.certificates_of(key.as_ref()).map(drop),
            Err(_) => Ok(()),
        }
    }

    fn certified(&self) -> Result<CertifiedKey, TlsError> {
        let key = ring::sign::any_supported_type(&self.private_key()?).map_err(|_| {
            TlsError::identity("its key is of a kind that is not supported; use RSA, P-256, P-384 or Ed25519")
        })?;
        Ok(CertifiedKey::new(self.certificates_of(key.as_ref())?, key))
    }

    /// The error has no details: it must not repeat a part of the key.
    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| {
            TlsError::identity(match self.key.is_encrypted() {
                true => "its key is encrypted; remove the passphrase (openssl pkey -in encrypted.key -out plain.key)",
                false => "its key is not a private key in PEM form",
            })
        })
    }

    /// The certificates, the first of which has to be that of `key`.
    fn certificates_of(&self, key: &dyn SigningKey) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates = self.certificates.certificates();
        let certificates = certificates.ok_or_else(|| TlsError::identity("it holds no certificate"))?;
        let own = certificates.first().and_then(|own| Certificate::parse(own));
        let own = own.ok_or_else(|| TlsError::identity("its certificate cannot be read"))?;
        if key.public_key().is_some_and(|public| public.as_ref() != own.key) {
            return Err(TlsError::identity("its key belongs to another certificate"));
        }
        Ok(certificates)
    }
}

/// rustls reads 4 KiB at a time; this buffer reduces the number of system calls.
pub(crate) type Encrypted = TlsStream<BufReader<TcpStream>>;

const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Encrypts a new connection to `host`.
pub(crate) async fn upgrade(
    mut stream: TcpStream,
    host: &str,
    options: &TlsOptions,
) -> Result<Encrypted, Error> {
    let config = options.client_config()?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| TlsError::wrong_host(format!("'{host}' is no name that a certificate can have")))?;
    request(&mut stream).await?;
    let stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}

/// Sends SSLRequest.
///
/// Bytes received together with the answer would be plain text from a man in the middle, later taken for the server's
/// (CVE-2021-23222), so they are rejected; what follows the answer is read as TLS and nothing else.
async fn request(stream: &mut TcpStream) -> Result<(), Error> {
    stream.write_all(&SSL_REQUEST).await?;
    let mut answer = [0; 2];
    let count = stream.read(&mut answer).await?;
    match answer.get(..count).unwrap_or_default() {
        [] => Err(Error::Closed),
        b"S" => Ok(()),
        [b'S', ..] => Err(TlsError::handshake("unencrypted data came before it began").into()),
        [b'N', ..] => Err(TlsError::NotOffered.into()),
        // A plain-text error may come from anyone: its text is not repeated.
        [b'E', ..] => Err(TlsError::handshake("the server answered with an error instead").into()),
        [tag, ..] => Err(Error::protocol(format!("message {tag:#04x} to the request for TLS"))),
    }
}

#[cfg(test)]
mod tests;
