//! Access to PostgreSQL: hosts, password, certificates. Files are checked at the start and read again at each
//! connect, so that what is rotated is used without a restart.

use std::path::{Path, PathBuf};

use pg_replication::{ClientIdentity, Host, Pem, TlsError, TlsOptions};
use serde::{Deserialize, Serialize};

use super::files::{self, ReadFile, TlsFields, TlsFiles};
use super::{ConfigError, Secret, Source};

/// How the connections to PostgreSQL are protected. Unix sockets are not encrypted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SourceTls {
    /// What is demanded of the server.
    pub mode: TlsMode,
    /// Trusted CAs, PEM; the public root CAs when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate, PEM, for servers that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Whether the authentication of the replication connection must be bound to its TLS connection.
    pub channel_binding: ChannelBinding,
}

/// What is demanded of the server; the names are libpq's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No encryption.
    Disable,
    /// Encryption without verification of the server.
    Require,
    /// A certificate of a trusted CA.
    VerifyCa,
    /// A certificate of a trusted CA for the host name.
    #[default]
    VerifyFull,
}

/// Channel binding of the authentication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelBinding {
    /// Where both sides can.
    #[default]
    Prefer,
    /// Always.
    Require,
}

/// What a connection is made with, as the files have it now.
#[derive(Clone, Debug)]
pub struct Access {
    /// Where to connect, in this order.
    pub hosts: Vec<Host>,
    /// The password of the role.
    pub password: Option<Secret>,
    /// Mode and certificates.
    pub tls: TlsOptions,
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the field whose file cannot be used.
    pub fn read(source: &Source) -> Result<Access, ConfigError> {
        Access::read_with(source, &files::from_disk)
    }

    /// As [`Access::read`], from files that `read` knows.
    ///
    /// # Errors
    /// Names the field whose file cannot be used.
    pub fn read_with(source: &Source, read: ReadFile<'_>) -> Result<Access, ConfigError> {
        let password = match (&source.password, &source.password_file) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(file)) => Some(Secret::new(files::line(read, "source.passwordFile", file)?)),
            (None, None) => None,
        };
        Ok(Access { hosts: hosts(source)?, password, tls: source.tls.read(read)? })
    }
}

/// `source.host` is a list as libpq knows it; an entry may name its own port.
fn hosts(source: &Source) -> Result<Vec<Host>, ConfigError> {
    source.host.split(',').map(|entry| host(entry.trim(), source.port)).collect()
}

fn host(entry: &str, default_port: u16) -> Result<Host, ConfigError> {
    if entry.starts_with('/') {
        return Ok(Host::Unix { directory: entry.into(), port: default_port });
    }
    let bracketed = entry.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (name, port) = match (bracketed, entry.split_once(':')) {
        (Some((address, rest)), _) => (address, rest.strip_prefix(':').or((!rest.is_empty()).then_some("?"))),
        // More than one colon: an IPv6 address without brackets, and so without a port.
        (None, Some((name, port))) if !port.contains(':') => (name, Some(port)),
        _ => (entry, None),
    };
    let problem = || {
        format!(
            "'{entry}' is not a host; write names or addresses separated by commas, each with :port if it differs"
        )
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok());
    match port {
        Some(port) if !name.is_empty() && !name.contains(char::is_whitespace) => {
            Ok(Host::Tcp { host: name.into(), port })
        }
        _ => Err(ConfigError::field("source.host", problem())),
    }
}

const FIELDS: TlsFields = TlsFields {
    mode: "source.tls.mode",
    ca: "source.tls.caFile",
    cert: "source.tls.certFile",
    key: "source.tls.keyFile",
};

impl SourceTls {
    fn read(&self, read: ReadFile<'_>) -> Result<TlsOptions, ConfigError> {
        let SourceTls { mode, ca_file: ca, cert_file: cert, key_file: key, channel_binding } = self;
        let files = TlsFiles { fields: &FIELDS, mode: *mode, ca, cert, key };
        files.check()?;
        if *mode == TlsMode::Disable && *channel_binding == ChannelBinding::Require {
            let problem = "require needs TLS, and source.tls.mode is disable";
            return Err(ConfigError::field("source.tls.channelBinding", problem));
        }
        let pem = |field: &'static str, file: &Path| files::bytes(read, field, file).map(Pem::new);
        let identity = match files.identity()? {
            Some((cert, key)) => {
                Some(ClientIdentity { certificates: pem(FIELDS.cert, cert)?, key: pem(FIELDS.key, key)? })
            }
            None => None,
        };
        let options = TlsOptions {
            mode: (*mode).into(),
            ca: ca.as_deref().map(|file| pem(FIELDS.ca, file)).transpose()?,
            identity,
            channel_binding: (*channel_binding).into(),
        };
        options.check().map_err(|problem| {
            let field = match problem {
                TlsError::Authorities { .. } => FIELDS.ca,
                TlsError::Identity { .. } => FIELDS.cert,
                _ => "source.tls",
            };
            ConfigError::field(field, problem.to_string())
        })?;
        Ok(options)
    }
}

impl From<TlsMode> for pg_replication::TlsMode {
    fn from(mode: TlsMode) -> Self {
        match mode {
            TlsMode::Disable => pg_replication::TlsMode::Disable,
            TlsMode::Require => pg_replication::TlsMode::Require,
            TlsMode::VerifyCa => pg_replication::TlsMode::VerifyCa,
            TlsMode::VerifyFull => pg_replication::TlsMode::VerifyFull,
        }
    }
}

impl From<ChannelBinding> for pg_replication::ChannelBinding {
    fn from(binding: ChannelBinding) -> Self {
        match binding {
            ChannelBinding::Prefer => pg_replication::ChannelBinding::Prefer,
            ChannelBinding::Require => pg_replication::ChannelBinding::Require,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Option<String> {
        let hosts: Result<Vec<_>, _> = list.split(',').map(|entry| host(entry.trim(), 5432)).collect();
        hosts.ok().map(|hosts| hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn hosts_are_a_list_with_ports_where_they_differ() {
        assert_eq!(parsed("db").as_deref(), Some("db:5432"));
        assert_eq!(parsed("db-1, db-2:5433,10.0.0.1").as_deref(), Some("db-1:5432 db-2:5433 10.0.0.1:5432"));
        assert_eq!(parsed("/run/postgresql").as_deref(), Some("/run/postgresql/.s.PGSQL.5432"));
        assert_eq!(parsed("::1").as_deref(), Some("::1:5432"));
        assert_eq!(parsed("[::1]:5433,[fe80::2]").as_deref(), Some("::1:5433 fe80::2:5432"));
        for wrong in ["", "db,", ",db", "db:", "db:x", "db:70000", ":5432", "[::1]x", "d b"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    fn problem(tls: SourceTls) -> String {
        tls.read(&files::from_disk).unwrap_err().to_string()
    }

    #[test]
    fn what_would_be_ignored_or_cannot_be_used_is_refused_by_its_field() {
        let here = || Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        let verified = SourceTls::default();
        assert!(
            verified.read(&files::from_disk).is_ok(),
            "verify-full by the public root CAs is the default"
        );
        let disabled = SourceTls { mode: TlsMode::Disable, ..SourceTls::default() };
        let required = SourceTls { mode: TlsMode::Require, ca_file: here(), ..SourceTls::default() };
        assert!(problem(required).starts_with("source.tls.caFile: is not used"));
        assert!(
            problem(SourceTls { cert_file: here(), ..disabled.clone() }).starts_with("source.tls.certFile:")
        );
        let bound = SourceTls { channel_binding: ChannelBinding::Require, ..disabled };
        assert!(problem(bound).starts_with("source.tls.channelBinding:"));
        assert!(
            problem(SourceTls { cert_file: here(), ..verified.clone() }).starts_with("source.tls.keyFile:")
        );
        assert!(
            problem(SourceTls { ca_file: here(), ..verified.clone() })
                .starts_with("source.tls.caFile: the trusted")
        );
        let missing = SourceTls { ca_file: Some("/nowhere/ca.pem".into()), ..verified.clone() };
        assert!(problem(missing).contains("source.tls.caFile /nowhere/ca.pem"));
        let identity = SourceTls { cert_file: here(), key_file: here(), ..verified };
        assert!(problem(identity).starts_with("source.tls.certFile: the client certificate"));
    }
}
