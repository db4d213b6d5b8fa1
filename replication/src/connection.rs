//! The socket with both its buffers. All state lives here and none in a future, so any future may be dropped at
//! any point: a half-read message stays in the input, a half-written one in the output.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::Error;
use crate::framing::{Frame, Framing};
use crate::socket::Socket;

pub(crate) struct Connection {
    socket: Socket,
    input: Framing,
    output: BytesMut,
    last_read: usize,
    /// Why writing failed. Kept until reading has come to its end, because what the server said before it went
    /// away is the better explanation.
    broken: Option<io::Error>,
}

impl Connection {
    pub(crate) fn new(socket: Socket) -> Self {
        Connection { socket, input: Framing::new(), output: BytesMut::new(), last_read: 0, broken: None }
    }

    /// Where whole messages are appended to be sent.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Whether something is still to be written.
    pub(crate) fn unsent(&self) -> bool {
        !self.output.is_empty()
    }

    /// Bytes that the last read brought.
    pub(crate) fn last_read(&self) -> usize {
        self.last_read
    }

    /// Takes the next whole message that is already here.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>, Error> {
        self.input.take()
    }

    /// Whether a whole message is already here.
    pub(crate) fn ready(&self) -> Result<bool, Error> {
        self.input.ready()
    }

    /// Why writing failed, if it did.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// Reads what is there, or waits until something is.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // `read_buf` keeps nothing in its future, so making one for each poll loses nothing.
        let read = ready!(pin!(self.socket.read_buf(self.input.space())).poll(cx));
        Poll::Ready(match (read, self.broken.take()) {
            (Ok(count), broken) if count > 0 => {
                self.broken = broken;
                self.last_read = count;
                Ok(())
            }
            (_, Some(write_error)) => Err(write_error.into()),
            (Ok(_), None) => Err(Error::Closed),
            (Err(error), None) => Err(error.into()),
        })
    }

    /// Writes what is to be written as far as the socket takes it; ready with whether it took all. A failure is
    /// kept for the reader.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while !self.output.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output)) {
                Ok(count) if count > 0 => self.output.advance(count),
                Ok(_) => self.fail(io::ErrorKind::WriteZero.into()),
                Err(error) => self.fail(error),
            }
        }
        Poll::Ready(self.broken.is_none())
    }

    fn fail(&mut self, error: io::Error) {
        self.output.clear();
        self.broken.get_or_insert(error);
    }

    /// Sends what is to be sent and waits for the next message.
    pub(crate) async fn receive(&mut self) -> Result<Frame, Error> {
        poll_fn(|cx| {
            loop {
                let _ = self.poll_flush(cx);
                if let Some(frame) = self.take()? {
                    return Poll::Ready(Ok(frame));
                }
                ready!(self.poll_read(cx))?;
            }
        })
        .await
    }

    /// Sends what is to be sent.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_flush(cx)).await;
        self.broken.take().map_or(Ok(()), |error| Err(error.into()))
    }
}
