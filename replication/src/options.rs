//! Where to connect, and as whom.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsOptions;

/// Long enough for a busy server and a SYN that is sent twice, short enough to be noticed by a person waiting.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What [`Client::connect`](crate::Client::connect) needs to know.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Where servers listen: tried in this order, and every address of each, until one can be used. Names are
    /// resolved anew at each connect.
    pub hosts: Vec<Host>,
    /// Which servers can be used.
    pub target: Target,
    /// How connections over TCP are protected.
    pub tls: TlsOptions,
    /// The role; it needs LOGIN and REPLICATION.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<Password>,
    /// The database; a logical slot belongs to one.
    pub database: String,
    /// What `pg_stat_activity` and the server's log call this connection.
    pub application_name: String,
    /// How long one address may take to be reached and to authenticate; also how long resolving a name may take, and
    /// how long the server may take to answer the commands that it answers immediately.
    pub connect_timeout: Duration,
}

impl ConnectOptions {
    /// Options for one host that must be read-write, without a password, with [`TlsMode::VerifyFull`] by the web's
    /// authorities (over TCP), this crate's name and the default timeout.
    ///
    /// [`TlsMode::VerifyFull`]: crate::TlsMode::VerifyFull
    pub fn new(host: Host, user: impl Into<String>, database: impl Into<String>) -> Self {
        ConnectOptions {
            hosts: vec![host],
            target: Target::default(),
            tls: TlsOptions::default(),
            user: user.into(),
            password: None,
            database: database.into(),
            application_name: env!("CARGO_PKG_NAME").to_owned(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        }
    }
}

/// Which servers can be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// Those that take writes: no standby, and not `default_transaction_read_only`. After a fail-over, a list of
    /// hosts then leads to the new primary.
    #[default]
    ReadWrite,
    /// Any.
    Any,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// On the network.
    Tcp {
        /// Host name or address.
        host: String,
        /// Usually 5432.
        port: u16,
    },
    /// One address of a host, as libpq's `host` with `hostaddr`: it is not resolved again, and the server's
    /// certificate is for `host`.
    Address {
        /// Host name.
        host: String,
        /// Where to connect.
        address: SocketAddr,
    },
    /// On this machine; faster than TCP.
    Unix {
        /// The folder of the socket, such as `/var/run/postgresql`.
        directory: PathBuf,
        /// The port that the socket is named after.
        port: u16,
    },
}

impl Host {
    pub(crate) fn socket_path(directory: &std::path::Path, port: u16) -> PathBuf {
        directory.join(format!(".s.PGSQL.{port}"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp { host, port } => write!(f, "{host}:{port}"),
            Host::Address { host, address } if *host == address.ip().to_string() => address.fmt(f),
            Host::Address { host, address } => write!(f, "{host} ({address})"),
            Host::Unix { directory, port } => Host::socket_path(directory, *port).display().fmt(f),
        }
    }
}

/// A password: never shown, by neither `Debug` nor any error.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// Keeps `secret` out of sight.
    pub fn new(secret: impl Into<String>) -> Self {
        Password(secret.into())
    }

    pub(crate) fn reveal(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let host = Host::Tcp { host: "db".into(), port: 5432 };
        let mut options = ConnectOptions::new(host, "relay", "shop");
        options.password = Some(Password::new("open sesame"));
        assert!(!format!("{options:?}").contains("sesame"));
    }

    #[test]
    fn a_unix_socket_is_named_by_its_port() {
        let host = Host::Unix { directory: "/run/postgresql".into(), port: 5433 };
        assert_eq!(host.to_string(), "/run/postgresql/.s.PGSQL.5433");
    }
}
