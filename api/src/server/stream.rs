//! A client's stream with time limits in both directions. hyper has one for heads only: a client that pipelines requests
//! and reads no answer would keep its connection forever (and hyper's own timer would also be the idle timeout).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::activity::{Activity, Timeouts, Waiting};

/// The client kept the connection waiting for too long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client kept the connection waiting for too long ({0:?})")]
pub struct TooSlow(pub Waiting);

/// A stream that fails when its client keeps it waiting for too long.
pub struct ClientStream {
    stream: TcpStream,
    activity: Arc<Activity>,
    timeouts: Timeouts,
    timer: Pin<Box<Sleep>>,
}

impl ClientStream {
    /// Watches over `stream`.
    pub fn new(stream: TcpStream, activity: Arc<Activity>, timeouts: Timeouts) -> ClientStream {
        ClientStream { stream, activity, timeouts, timer: Box::pin(sleep_until(Instant::now())) }
    }

    /// Fails at the deadline. Until then the task is woken in time for it.
    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(deadline) = self.activity.deadline(&self.timeouts) else { return Poll::Pending };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        let waiting = self.activity.waiting().map_or(Waiting::Idle, |(waiting, _)| waiting);
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, TooSlow(waiting)))
    }

    fn sent(&mut self, sent: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match sent {
            Poll::Ready(sent) => {
                self.activity.on_sent();
                Poll::Ready(sent)
            }
            Poll::Pending => {
                self.activity.on_blocked();
                self.poll_too_slow(cx).map(Err)
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before {
                    this.activity.on_received();
                }
                Poll::Ready(read)
            }
            Poll::Pending => this.poll_too_slow(cx).map(Err),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.sent(sent, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write_vectored(cx, buffers);
        this.sent(sent, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.activity.on_flushed();
        // hyper read last before it sent the answer, and reads again only when it is woken.
        match this.poll_too_slow(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
