//! Connection options.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsOptions;

/// Long enough for a busy server and a repeated SYN, short enough for a person who waits.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The options for [`Client::connect`](crate::Client::connect).
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The hosts, tried in this order with every address of each, until one can be used. Names are resolved at each
    /// connect.
    pub hosts: Vec<Host>,
    /// Which servers can be used.
    pub target: Target,
    /// TLS for connections over TCP.
    pub tls: TlsOptions,
    /// The role; it needs LOGIN and REPLICATION.
    pub user: String,
    /// Its password, if the server requires one.
    pub password: Option<Password>,
    /// The database; a logical slot belongs to one.
    pub database: String,
    /// The application name in `pg_stat_activity` and in the server log.
    pub application_name: String,
    /// Timeout of connecting to one address and authenticating there; also of resolving a name, and of the commands
    /// that the server answers immediately.
    pub connect_timeout: Duration,
}

impl ConnectOptions {
    /// Options for one host that must be read-write, without a password, with [`TlsMode::VerifyFull`] and the public
    /// root CAs (over TCP), this crate's name and the default timeout.
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
    /// Those that accept writes: no standby, and no `default_transaction_read_only`. After a failover, a list of hosts
    /// then leads to the new primary.
    #[default]
    ReadWrite,
    /// Any server.
    Any,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// On the network.
    Tcp {
        /// Host name or address.
        host: String,
        /// Usually 5432.
        port: u16,
    },
    /// One address of a host, as libpq's `host` with `hostaddr`: it is not resolved again, and the server's certificate
    /// is verified for `host`.
    Address {
        /// Host name.
        host: String,
        /// The address to connect to.
        address: SocketAddr,
    },
    /// On this machine; faster than TCP.
    Unix {
        /// The directory of the socket, such as `/var/run/postgresql`.
        directory: PathBuf,
        /// The port in the socket's name.
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
    /// Wraps `secret`.
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
