//! Why there is no TLS connection, by what has to be corrected.

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, OtherError};

use super::certificate::{Certificate, date};

/// Why a connection cannot be protected as required. No variant leads to an unprotected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The server does not support TLS.
    #[error(
        "the server does not offer TLS, and nothing is sent to it unencrypted; \
         switch it on there (ssl = on), or ask for a connection without TLS"
    )]
    NotOffered,
    /// The certificate was not issued by a trusted CA, has expired, or is not valid yet.
    #[error("the server's certificate is not trusted: {what}")]
    NotTrusted {
        /// What is wrong with it.
        what: String,
    },
    /// The certificate is valid, but for another host.
    #[error(
        "the server's certificate is for another host name: {what}; \
         connect by a name it was issued for, or have one issued for this name"
    )]
    WrongHost {
        /// The names it was issued for.
        what: String,
    },
    /// The handshake failed, or the server rejected this client's certificate.
    #[error(
        "the TLS handshake failed ({what}); check that PostgreSQL itself answers there, \
         the TLS versions it allows, and the client certificate if it asks for one"
    )]
    Handshake {
        /// What failed.
        what: String,
    },
    /// The given CAs are not certificates.
    #[error("the trusted certificates cannot be used: {what}; give at least one certificate in PEM form")]
    Authorities {
        /// What is wrong with them.
        what: String,
    },
    /// The client's certificate or key cannot be used.
    #[error(
        "the client certificate cannot be used: {what}; \
         give the certificate and its private key, not encrypted, in PEM form"
    )]
    Identity {
        /// What is wrong with it.
        what: String,
    },
}

impl TlsError {
    pub(super) fn handshake(what: impl Display) -> Self {
        TlsError::Handshake { what: what.to_string() }
    }

    pub(super) fn wrong_host(what: impl Display) -> Self {
        TlsError::WrongHost { what: what.to_string() }
    }

    pub(super) fn authorities(what: impl Display) -> Self {
        TlsError::Authorities { what: what.to_string() }
    }

    pub(super) fn identity(what: impl Display) -> Self {
        TlsError::Identity { what: what.to_string() }
    }

    fn not_trusted(what: impl Into<String>) -> Self {
        TlsError::NotTrusted { what: what.into() }
    }

    pub(super) fn unreadable() -> Self {
        TlsError::not_trusted("it cannot be read as an X.509 certificate")
    }

    pub(super) fn expired(at: i64) -> Self {
        TlsError::not_trusted(format!("it expired on {}; have a new one issued", date(at)))
    }

    pub(super) fn not_valid_yet(from: i64) -> Self {
        TlsError::not_trusted(format!("it is valid from {} on; check the clock of this machine", date(from)))
    }

    pub(super) fn unknown_issuer(certificate: &Certificate<'_>) -> Self {
        let kind = if certificate.is_version_1 { " (X.509 version 1)" } else { "" };
        TlsError::not_trusted(format!(
            "it{kind} was issued by '{}', of which no trusted certificate is the issuer's; trust the certificate of that \
             CA, or this certificate itself",
            certificate.issuer_name()
        ))
    }

    /// In the form in which rustls passes it from the verifier to the caller.
    pub(super) fn into_rustls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }

    /// The TLS error inside an I/O error, if there is one.
    pub(crate) fn behind(error: &io::Error) -> Option<TlsError> {
        error.get_ref()?.downcast_ref::<rustls::Error>().map(TlsError::of)
    }

    /// Describes an error of rustls: its own text often names Rust types.
    pub(super) fn of(error: &rustls::Error) -> TlsError {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
                let ours = other.downcast_ref::<TlsError>().cloned();
                ours.unwrap_or_else(|| TlsError::not_trusted(refused_by_webpki(&other.to_string())))
            }
            rustls::Error::InvalidCertificate(flaw) => of_certificate(flaw),
            rustls::Error::AlertReceived(alert) => TlsError::handshake(of_alert(*alert)),
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. } => {
                TlsError::handshake("the peer does not follow the TLS protocol")
            }
            rustls::Error::PeerIncompatible(_) => TlsError::handshake(
                "the server has no TLS version, cipher or curve in common with this client",
            ),
            rustls::Error::PeerMisbehaved(_) => TlsError::handshake("the server violated the TLS protocol"),
            other => TlsError::handshake(other),
        }
    }
}

fn of_certificate(flaw: &CertificateError) -> TlsError {
    use CertificateError::{
        BadEncoding, BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext,
        NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, UnhandledCriticalExtension,
        UnknownIssuer, UnsupportedSignatureAlgorithmContext,
        UnsupportedSignatureAlgorithmForPublicKeyContext,
    };
    let seconds = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let what = match flaw {
        ExpiredContext { not_after, .. } => return TlsError::expired(seconds(not_after)),
        NotValidYetContext { not_before, .. } => return TlsError::not_valid_yet(seconds(not_before)),
        NotValidForName | NotValidForNameContext { .. } => {
            return TlsError::wrong_host("it is for another one");
        }
        BadEncoding => return TlsError::unreadable(),
        Expired => "it has expired; have a new one issued",
        NotValidYet => "it is not valid yet; check the clock of this machine",
        UnknownIssuer => "its issuer is not among the trusted CAs; trust the CA that issued it",
        BadSignature => "its signature is wrong",
        UnhandledCriticalExtension => "it has an unknown critical extension; have one issued without it",
        InvalidPurpose | InvalidPurposeContext { .. } => {
            "its extended key usage does not allow it for a server; have one issued for servers (serverAuth)"
        }
        UnsupportedSignatureAlgorithmContext { .. }
        | UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it, or one of its issuers, is signed in a way that is not accepted, such as SHA-1 or a key of less than 2,048 \
             bits; have one issued with a newer one"
        }
        _ => "it, or one of its issuers, violates the rules for certificates (RFC 5280)",
    };
    TlsError::not_trusted(what)
}

/// webpki has errors that rustls does not model: they can only be recognised by their text.
fn refused_by_webpki(text: &str) -> &'static str {
    match text {
        "CaUsedAsEndEntity" => {
            "it is a CA certificate (CA:TRUE), which counts only if it is itself among the trusted \
             certificates; trust this certificate, or have one issued for the server (CA:FALSE)"
        }
        "EndEntityUsedAsCa" => "one of its issuers is not a CA (CA:FALSE)",
        _ => "it, or one of its issuers, violates the rules for certificates (RFC 5280)",
    }
}

fn of_alert(alert: AlertDescription) -> &'static str {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, HandshakeFailure, InsufficientSecurity, ProtocolVersion, UnknownCA,
        UnsupportedCertificate,
    };
    match alert {
        CertificateRequired => "the server asks for a client certificate",
        CertificateExpired => "the server rejects the client certificate: it has expired",
        UnknownCA => "the server rejects the client certificate: it does not trust its issuer (ssl_ca_file)",
        BadCertificate
        | CertificateRevoked
        | CertificateUnknown
        | UnsupportedCertificate
        | DecryptError
        | AccessDenied => "the server rejects the client certificate",
        ProtocolVersion => "the server has neither TLS 1.2 nor TLS 1.3",
        HandshakeFailure | InsufficientSecurity => "the server has no cipher in common with this client",
        _ => "the server ended it",
    }
}
