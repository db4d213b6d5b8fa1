//! Why there is no TLS connection, told apart so that a person knows whom to ask.

use std::fmt::Display;
use std::io;

use rustls::CertificateError;

/// Why a connection cannot be protected as demanded. No variant leads to an unprotected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The server answered that it does not speak TLS.
    #[error(
        "the server does not offer TLS, and nothing is sent to it unencrypted; \
         switch it on there (ssl = on), or ask for a connection without TLS"
    )]
    NotOffered,
    /// The certificate does not lead to a trusted authority, has expired, or is not valid yet.
    #[error(
        "the server's certificate is not trusted ({what}); \
         check its dates and which authority issued it, and trust that authority's certificate"
    )]
    NotTrusted {
        /// What is wrong with it.
        what: String,
    },
    /// The certificate is good, but for another host.
    #[error(
        "the server's certificate is for another host name ({what}); \
         connect by a name it was issued for, or have one issued for this name"
    )]
    WrongHost {
        /// Which names it was issued for.
        what: String,
    },
    /// The two sides did not come to terms, or the server refused this client's certificate.
    #[error(
        "the TLS handshake failed ({what}); check that PostgreSQL itself answers there, \
         the TLS versions it allows, and the client certificate if it asks for one"
    )]
    Handshake {
        /// What was seen.
        what: String,
    },
    /// The authorities given are no certificates.
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

    /// The TLS problem behind an error of a socket, if there is one.
    pub(crate) fn behind(error: &io::Error) -> Option<TlsError> {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(match error {
            rustls::Error::InvalidCertificate(
                name @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            ) => TlsError::wrong_host(name),
            rustls::Error::InvalidCertificate(flaw) => TlsError::NotTrusted { what: flaw.to_string() },
            other => TlsError::handshake(other),
        })
    }
}
