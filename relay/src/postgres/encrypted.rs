//! SQL connections are encrypted as the stream is: the same certificates are trusted, for the same names, and errors are
//! the same.
//!
//! sqlx has TLS of its own, which trusts the public root CAs besides those given, and refuses certificates that libpq and
//! the stream accept. So TLS is this process's: sqlx speaks without it to a socket of this process, behind which is the
//! encrypted connection. The socket has a name that cannot be guessed and is no file; only this process may connect to it.

use std::io;

use pg_replication::{Host, TlsMode, TlsOptions, open_socket};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream, lookup_host};
use uuid::Uuid;

/// The port in the name of the socket, where libpq's convention wants one.
const PORT: u16 = 5432;

/// Connects to a host as `tls` demands. Unix sockets are not encrypted.
pub async fn connect(
    options: PgConnectOptions,
    host: &Host,
    tls: &TlsOptions,
) -> Result<PgConnection, sqlx::Error> {
    let options = options.ssl_mode(PgSslMode::Disable);
    match host {
        Host::Unix { directory, port } => options.socket(directory).port(*port).connect().await,
        Host::Tcp { host, port } if tls.mode == TlsMode::Disable => {
            options.host(host).port(*port).connect().await
        }
        Host::Tcp { host, port } => {
            let server =
                open(host, *port, tls).await.map_err(|error| sqlx::Error::Io(io::Error::other(error)))?;
            let way = Way::new().map_err(sqlx::Error::Io)?;
            let options = options.socket(&way.directory).port(PORT);
            let leading = async { way.lead_to(server).await.map_err(sqlx::Error::Io) };
            Ok(tokio::try_join!(leading, options.connect())?.1)
        }
    }
}

/// Opens an encrypted connection to the first address of a host that can be used.
async fn open(
    host: &str,
    port: u16,
    tls: &TlsOptions,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, pg_replication::Error> {
    let server = || format!("{host}:{port}");
    let unknown = |source| pg_replication::Error::Connect { server: server(), source };
    let mut failed = unknown(io::Error::other("its name has no address"));
    for address in lookup_host((host, port)).await.map_err(unknown)? {
        match open_socket(host, address, tls).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// A socket that takes one connection.
struct Way {
    listener: UnixListener,
    /// What stands for the socket's folder.
    directory: String,
}

impl Way {
    fn new() -> io::Result<Way> {
        let directory = format!("\0outbox-relay-{}", Uuid::new_v4());
        let listener = UnixListener::bind(format!("{directory}/.s.PGSQL.{PORT}"))?;
        Ok(Way { listener, directory })
    }

    /// Joins the first connection of this process to the server.
    async fn lead_to(self, server: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> io::Result<()> {
        loop {
            let (driver, _) = self.listener.accept().await?;
            if driver.peer_cred()?.pid() == i32::try_from(std::process::id()).ok() {
                tokio::spawn(carry(driver, server));
                return Ok(());
            }
        }
    }
}

/// Until either side ends: a connection to PostgreSQL that is half open is of no use.
async fn carry(driver: UnixStream, server: impl AsyncRead + AsyncWrite) {
    let (mut from_driver, mut to_driver) = tokio::io::split(driver);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::select! {
        _ = tokio::io::copy(&mut from_driver, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_driver) => {}
    }
}
