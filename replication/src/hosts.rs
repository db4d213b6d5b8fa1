//! Which server: the hosts in their order, and every address of each, until one can be used.
//!
//! Names are resolved at each connect, because a fail-over is often a changed name record.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fmt, io};

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::socket::Socket;
use crate::{Client, ConnectOptions, Error, Host};

/// A server that could not be used.
#[derive(Debug)]
pub struct Skipped {
    /// Host and port with the address that was tried, or the path of the socket.
    pub server: String,
    /// Why not.
    pub error: Error,
}

impl fmt::Display for Skipped {
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
        let places = match resolve(host, options).await {
            Ok(places) => places,
            Err(error) => {
                skipped.push(Skipped { server: host.to_string(), error });
                continue;
            }
        };
        for place in places {
            match attempt(host, &place, options).await {
                Ok(client) => return Ok(client),
                Err(error) => skipped.push(Skipped { server: place.to_string(), error }),
            }
        }
    }
    Err(one_error(skipped))
}

/// Where a server may be.
enum Place<'a> {
    Tcp { name: &'a str, address: SocketAddr },
    Unix(PathBuf),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp { name, address } if *name == address.ip().to_string() => address.fmt(f),
            Place::Tcp { name, address } => write!(f, "{name} ({address})"),
            Place::Unix(path) => path.display().fmt(f),
        }
    }
}

async fn resolve<'a>(host: &'a Host, options: &ConnectOptions) -> Result<Vec<Place<'a>>, Error> {
    let (name, port) = match host {
        Host::Tcp { host: name, port } => (name.as_str(), *port),
        Host::Unix { directory, port } => return Ok(vec![Place::Unix(Host::socket_path(directory, *port))]),
    };
    let unknown = |source| Error::Connect { server: host.to_string(), source };
    let limit = options.connect_timeout;
    let found = timeout(limit, lookup_host((name, port))).await;
    let found = found.map_err(|_| unknown(io::Error::other("its name was not resolved in time")))?;
    let places: Vec<_> = found.map_err(unknown)?.map(|address| Place::Tcp { name, address }).collect();
    if places.is_empty() {
        return Err(unknown(io::Error::other("its name has no address")));
    }
    Ok(places)
}

async fn attempt(host: &Host, place: &Place<'_>, options: &ConnectOptions) -> Result<Client, Error> {
    let limit = options.connect_timeout;
    let attempt = async {
        let socket = match place {
            Place::Tcp { name, address } => Socket::tcp(name, *address, &options.tls).await?,
            Place::Unix(path) => Socket::unix(path).await?,
        };
        Client::start(socket, host.clone(), options).await
    };
    timeout(limit, attempt).await.map_err(|_| Error::Timeout { what: "accept the connection", limit })?
}

/// With one server there is one error; with several, all of them count.
fn one_error(mut skipped: Vec<Skipped>) -> Error {
    match skipped.pop() {
        Some(only) if skipped.is_empty() => only.error,
        last => {
            skipped.extend(last);
            Error::NoServer { skipped }
        }
    }
}
