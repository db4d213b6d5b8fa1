//! SQL connections use the same sockets and TLS as the stream: the same certificates are trusted for the same names,
//! errors are the same, and a dead peer is noticed (keepalive), which sqlx does not request.
//!
//! sqlx's own TLS trusts the public root CAs besides the given ones, rejects certificates that libpq and the stream
//! accept, and has one field for both the certificate's name and the address, so it would try the addresses of a name
//! one after another, without a limit for each. So this process connects to the server, and sqlx speaks without TLS to
//! a local socket that is joined to that connection. The socket has an unguessable name that is not a file; only this
//! process may connect to it.

use std::io;

use pg_replication::{Host, TlsOptions, open_socket};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use uuid::Uuid;

use super::connection::CONNECT_WITHIN;

/// The port in the socket's name, which libpq's convention requires.
const PORT: u16 = 5432;

/// Connects to exactly this address as `tls` requires; a name is resolved to its first address. Unix sockets are not
/// encrypted.
pub async fn connect(
    options: PgConnectOptions,
    host: &Host,
    tls: &TlsOptions,
) -> Result<PgConnection, sqlx::Error> {
    let options = options.ssl_mode(PgSslMode::Disable);
    let resolved = match host {
        Host::Tcp { .. } => host.resolve(CONNECT_WITHIN).await.map_err(failed)?.into_iter().next(),
        _ => None,
    };
    match resolved.as_ref().unwrap_or(host) {
        Host::Unix { directory, port } => options.socket(directory).port(*port).connect().await,
        Host::Address { host, address } => {
            let server = open_socket(host, *address, tls).await.map_err(failed)?;
            let way = LocalSocket::new().map_err(sqlx::Error::Io)?;
            let options = options.socket(&way.directory).port(PORT);
            let leading = async { way.forward_to(server).await.map_err(sqlx::Error::Io) };
            Ok(tokio::try_join!(leading, options.connect())?.1)
        }
        Host::Tcp { .. } => Err(sqlx::Error::Io(io::ErrorKind::AddrNotAvailable.into())),
    }
}

fn failed(error: pg_replication::Error) -> sqlx::Error {
    sqlx::Error::Io(io::Error::other(error))
}

/// A socket that accepts one connection.
struct LocalSocket {
    listener: UnixListener,
    /// The socket's directory, as libpq's convention has it.
    directory: String,
}

impl LocalSocket {
    fn new() -> io::Result<LocalSocket> {
        let directory = format!("\0outbox-relay-{}", Uuid::new_v4());
        let listener = UnixListener::bind(format!("{directory}/.s.PGSQL.{PORT}"))?;
        Ok(LocalSocket { listener, directory })
    }

    /// Joins the first connection of this process to the server.
    async fn forward_to(
        self,
        server: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> io::Result<()> {
        loop {
            let (driver, _) = self.listener.accept().await?;
            if driver.peer_cred()?.pid() == i32::try_from(std::process::id()).ok() {
                tokio::spawn(copy_both_ways(driver, server));
                return Ok(());
            }
        }
    }
}

/// Until either side ends: a half-open connection to PostgreSQL is of no use.
async fn copy_both_ways(driver: UnixStream, server: impl AsyncRead + AsyncWrite) {
    let (mut from_driver, mut to_driver) = tokio::io::split(driver);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::select! {
        _ = tokio::io::copy(&mut from_driver, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_driver) => {}
    }
}
