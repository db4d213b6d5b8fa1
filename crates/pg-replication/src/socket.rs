//! The byte stream to the server: over TCP, encrypted or not, or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::Error;
use crate::tls::{self, Encrypted, TlsMode, TlsOptions};

/// TCP keepalive starts after this idle time: early enough that firewalls and load balancers, which drop idle
/// connections after a few minutes, keep this one.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// How long sent data may remain unacknowledged by the other machine (TCP_USER_TIMEOUT). Otherwise TCP retransmits to a
/// vanished machine for a quarter of an hour. As long as keepalive probing takes, so that both fail at the same time.
const UNACKNOWLEDGED_AT_MOST: Duration = Duration::from_secs(60);

pub(crate) enum Socket {
    Tcp(TcpStream),
    Tls(Box<Encrypted>),
    Unix(UnixStream),
}

impl Socket {
    /// `host` is the name that `address` was resolved from, for the server's certificate.
    pub(crate) async fn tcp(host: &str, address: SocketAddr, tls: &TlsOptions) -> Result<Self, Error> {
        let unreachable = |source| Error::Connect { server: address.to_string(), source };
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        prepare(&stream)?;
        match tls.mode {
            TlsMode::Disable => Ok(Socket::Tcp(stream)),
            _ => Ok(Socket::Tls(Box::new(tls::upgrade(stream, host, tls).await?))),
        }
    }

    pub(crate) async fn unix(path: &Path) -> Result<Self, Error> {
        let unreachable = |source| Error::Connect { server: path.display().to_string(), source };
        UnixStream::connect(path).await.map(Socket::Unix).map_err(unreachable)
    }

    /// Limits the receive buffer of the system. A Unix socket has no receive window.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
            Socket::Tls(stream) => SockRef::from(stream.get_ref().0.get_ref()).set_recv_buffer_size(bytes),
            Socket::Unix(_) => Ok(()),
        }
    }

    /// The data for SCRAM channel binding over this connection.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Socket::Tls(stream) = self else { return None };
        let (_, session) = stream.get_ref();
        tls::end_point(session.peer_certificates()?.first()?)
    }
}

/// Opens a connection to one address of `host` and encrypts it as `tls` requires, for another client of the same
/// server, which speaks the protocol from the startup message on.
///
/// # Errors
/// [`Error::Connect`], [`Error::Tls`], [`Error::Closed`] and [`Error::Io`].
pub async fn open_socket(
    host: &str,
    address: SocketAddr,
    tls: &TlsOptions,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Error> {
    Socket::tcp(host, address, tls).await
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Status updates are small and must not wait for one another.
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_AT_MOST))?;
    Ok(())
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_vanished_machine_is_noticed_by_tcp_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = Socket::tcp("localhost", address, &TlsOptions::disabled()).await.unwrap();
        let Socket::Tcp(stream) = socket else { panic!("not plain TCP") };
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_AT_MOST));
    }
}
