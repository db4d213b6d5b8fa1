//! Which server to use: the hosts in their order, and every address of each, until one can be used.
//!
//! Names are resolved at each connect, because a failover often changes a DNS record. Each address has its own timeout:
//! one that drops packets must not use up the time of the next.

use std::time::Duration;
use std::{fmt, io};

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::socket::Socket;
use crate::{Client, ConnectOptions, Error, Host};

/// A server that could not be used.
#[derive(Debug)]
pub struct FailedHost {
    /// Host and port with the address that was tried, or the path of the socket.
    pub server: String,
    /// Why it could not be used.
    pub error: Error,
}

impl fmt::Display for FailedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.server, self.error)?;
        let mut source = std::error::Error::source(&self.error);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

pub(crate) async fn connect(options: &ConnectOptions) -> Result<Client, Error> {
    let mut skipped = Vec::new();
    for host in &options.hosts {
        let places = match host.resolve(options.connect_timeout).await {
            Ok(places) => places,
            Err(error) => {
                skipped.push(FailedHost { server: host.to_string(), error });
                continue;
            }
        };
        for place in places {
            match attempt(host, &place, options).await {
                Ok(client) => return Ok(client),
                Err(error) => skipped.push(FailedHost { server: place.to_string(), error }),
            }
        }
    }
    Err(one_error(skipped))
}

impl Host {
    /// Every address of this host, in the order in which the system returns them. Each is a [`Host::Address`]; a Unix
    /// socket has only itself.
    ///
    /// # Errors
    /// [`Error::Connect`] when the name has no address, or was not resolved within `limit`.
    pub async fn resolve(&self, limit: Duration) -> Result<Vec<Host>, Error> {
        let Host::Tcp { host: name, port } = self else { return Ok(vec![self.clone()]) };
        let unknown = |source| Error::Connect { server: self.to_string(), source };
        let found = timeout(limit, lookup_host((name.as_str(), *port))).await;
        let found = found.map_err(|_| unknown(io::Error::other("its name was not resolved in time")))?;
        let address = |address| Host::Address { host: name.clone(), address };
        let places: Vec<_> = found.map_err(unknown)?.map(address).collect();
        if places.is_empty() {
            return Err(unknown(io::Error::other("its name has no address")));
        }
        Ok(places)
    }

    async fn open(&self, options: &ConnectOptions) -> Result<Socket, Error> {
        match self {
            Host::Address { host, address } => Socket::tcp(host, *address, &options.tls).await,
            Host::Unix { directory, port } => Socket::unix(&Host::socket_path(directory, *port)).await,
            Host::Tcp { .. } => {
                let source = io::Error::other("its name was not resolved");
                Err(Error::Connect { server: self.to_string(), source })
            }
        }
    }
}

/// Connects to one address. If a pooler rejects the settings in the startup message, connects without them: they are
/// set again after connecting.
async fn attempt(host: &Host, place: &Host, options: &ConnectOptions) -> Result<Client, Error> {
    let limit = options.connect_timeout;
    let attempt = async {
        let route = Route { host: host.clone(), address: place.clone() };
        let with_settings = Client::start(place.open(options).await?, route.clone(), options, true).await;
        match with_settings {
            Err(Error::Server(error)) if error.refuses_settings() => {
                Client::start(place.open(options).await?, route, options, false).await
            }
            started => started,
        }
    };
    timeout(limit, attempt).await.map_err(|_| Error::Timeout { what: "accept the connection", limit })?
}

/// The host and the address of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// The host as configured.
    pub(crate) host: Host,
    /// The address that was used.
    pub(crate) address: Host,
}

/// A single server's own error; for several servers an error with all of them.
fn one_error(mut skipped: Vec<FailedHost>) -> Error {
    match skipped.pop() {
        Some(only) if skipped.is_empty() => only.error,
        last => {
            skipped.extend(last);
            Error::NoServer { skipped }
        }
    }
}
