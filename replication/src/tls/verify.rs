//! How much of the server's certificate is believed, by mode.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::{TlsError, TlsMode};

/// In every mode the server proves that it holds the certificate's key: without that, channel binding would bind to
/// nothing.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Trust {
    Anybody,
    Authority(Arc<WebPkiServerVerifier>),
    AuthorityAndName(Arc<WebPkiServerVerifier>),
}

impl Verifier {
    pub(super) fn new(
        mode: TlsMode,
        authorities: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let by_authority = || {
            WebPkiServerVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider))
                .build()
                .map_err(TlsError::authorities)
        };
        let trust = match mode {
            TlsMode::Disable | TlsMode::Require => Trust::Anybody,
            TlsMode::VerifyCa => Trust::Authority(by_authority()?),
            TlsMode::VerifyFull => Trust::AuthorityAndName(by_authority()?),
        };
        Ok(Verifier { trust, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (verifier, any_name) = match &self.trust {
            Trust::Anybody => return Ok(ServerCertVerified::assertion()),
            Trust::Authority(verifier) => (verifier, true),
            Trust::AuthorityAndName(verifier) => (verifier, false),
        };
        match verifier.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last: everything else about the certificate is right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if any_name => Ok(ServerCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
