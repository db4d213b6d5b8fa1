//! What is verified of the server's certificate, by mode.
//!
//! webpki verifies certificates that lead to a trusted CA. In addition, as in libpq, these are accepted: a certificate
//! that is itself among the trusted ones, as PostgreSQL's manual creates self-signed ones; one of X.509 version 1
//! issued directly by a trusted CA; and the common name where there is no subjectAltName of that kind.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::Certificate;
use super::{TlsError, TlsMode};

/// In every mode the server proves that it has the certificate's key: without that, channel binding would bind to
/// nothing.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Option<Trust>,
    provider: Arc<CryptoProvider>,
}

/// What is required of a certificate; `None` requires nothing.
#[derive(Debug)]
struct Trust {
    by_authority: Arc<WebPkiServerVerifier>,
    /// The given certificates.
    given: Vec<CertificateDer<'static>>,
    any_name: bool,
}

impl Verifier {
    /// Trusts `given`, parsed into `authorities`, or else the public root CAs.
    pub(super) fn new(
        mode: TlsMode,
        authorities: RootCertStore,
        given: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        if matches!(mode, TlsMode::Disable | TlsMode::Require) {
            return Ok(Verifier { trust: None, provider });
        }
        let by_authority =
            WebPkiServerVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider))
                .build()
                .map_err(|_| TlsError::authorities("they cannot be used as trusted certificates"))?;
        let any_name = mode == TlsMode::VerifyCa;
        Ok(Verifier { trust: Some(Trust { by_authority, given, any_name }), provider })
    }
}

impl Trust {
    fn check(
        &self,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<(), TlsError> {
        let certificate = Certificate::parse(der).ok_or_else(TlsError::unreadable)?;
        let is_given = self.given.iter().any(|given| given.as_ref() == der.as_ref());
        if is_given || certificate.is_version_1 {
            certificate.check_dates(now)?;
            if !is_given {
                certificate.check_issuer(&self.given, &provider.signature_verification_algorithms)?;
            }
            return self.check_name(&certificate, der, name);
        }
        match self.by_authority.verify_server_cert(der, intermediates, name, &[], now) {
            Ok(_) => Ok(()),
            // The name is checked last: everything else about the certificate is valid.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => self.check_name(&certificate, der, name),
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                Err(TlsError::unknown_issuer(&certificate))
            }
            Err(error) => Err(TlsError::of(&error)),
        }
    }

    fn check_name(
        &self,
        certificate: &Certificate<'_>,
        der: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), TlsError> {
        let by_alternative_name =
            || ParsedCertificate::try_from(der).is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok());
        if self.any_name || certificate.is_for_by_common_name(name) || by_alternative_name() {
            return Ok(());
        }
        Err(TlsError::wrong_host(format!("it is for {}, not for {}", certificate.names(), name.to_str())))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            trust
                .check(certificate, intermediates, name, now, &self.provider)
                .map_err(TlsError::into_rustls)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        der: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let Some(certificate) = version_1(der) else {
            return verify_tls12_signature(message, der, signature, algorithms);
        };
        let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signature.scheme);
        let mut possible = of_scheme.flat_map(|(_, algorithms)| algorithms.iter());
        if possible.any(|algorithm| certificate.has_signed(*algorithm, message, signature.signature())) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        der: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match version_1(der) {
            None => verify_tls13_signature(message, der, signature, algorithms),
            Some(certificate) => {
                let key = SubjectPublicKeyInfoDer::from(certificate.key);
                verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate that webpki does not read, although only its key is needed.
fn version_1<'a>(der: &'a CertificateDer<'_>) -> Option<Certificate<'a>> {
    Certificate::parse(der).filter(|certificate| certificate.is_version_1)
}
