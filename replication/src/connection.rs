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
    /// What was written may still be on its way through the TLS session.
    unflushed: bool,
    last_read: usize,
    /// Why writing failed. Kept until reading has come to its end, because what the server said before it went
    /// away is the better explanation.
    broken: Option<io::Error>,
}

impl Connection {
    pub(crate) fn new(socket: Socket) -> Self {
        Connection {
            socket,
            input: Framing::new(),
            output: BytesMut::new(),
            unflushed: false,
            last_read: 0,
            broken: None,
        }
    }

    /// What a login over this connection can be bound to.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        self.socket.end_point()
    }

    /// Where whole messages are appended to be sent.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Whether something is still to be written.
    pub(crate) fn unsent(&self) -> bool {
        !self.output.is_empty() || self.unflushed
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
    pub(crate) fn ready(&mut self) -> Result<bool, Error> {
        self.input.ready()
    }

    /// The bytes that came, to say what of them is to be kept.
    pub(crate) fn input(&mut self) -> &mut Framing {
        &mut self.input
    }

    /// Why writing failed, if it did.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// Reads what is there, or waits until something is.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // `read_buf` keeps nothing in its future, so making one for each poll loses nothing.
        match ready!(pin!(self.socket.read_buf(self.input.space())).poll(cx)) {
            Ok(count @ 1..) => {
                self.last_read = count;
                Poll::Ready(Ok(()))
            }
            ended => Poll::Ready(Err(self.ended(ended))),
        }
    }

    /// The best explanation of why there is nothing more to read.
    fn ended(&mut self, read: io::Result<usize>) -> Error {
        let ended = read.map_or_else(Error::from, |_| Error::Closed);
        match (ended, self.broken.take()) {
            // A server that refuses a client certificate says so, and closes; writing fails before it is read.
            (Error::Tls(refusal), _) => refusal.into(),
            (_, Some(write_error)) => write_error.into(),
            (ended, None) => ended,
        }
    }

    /// Writes what is to be written as far as the socket takes it; ready with whether it took all. A failure is
    /// kept for the reader.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while !self.output.is_empty() {
            self.unflushed = true;
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output)) {
                Ok(count) if count > 0 => self.output.advance(count),
                Ok(_) => self.fail(io::ErrorKind::WriteZero.into()),
                Err(error) => self.fail(error),
            }
        }
        if self.unflushed {
            match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
                Ok(()) => self.unflushed = false,
                Err(error) => self.fail(error),
            }
        }
        Poll::Ready(self.broken.is_none())
    }

    fn fail(&mut self, error: io::Error) {
        self.output.clear();
        self.unflushed = false;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    async fn once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        poll_fn(|cx| Poll::Ready(poll(cx))).await
    }

    #[tokio::test]
    async fn a_write_that_is_broken_off_goes_on_where_it_was() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(Socket::Unix(ours));
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
        connection.output().extend_from_slice(&sent);
        assert!(once(|cx| connection.poll_flush(cx)).await.is_pending(), "more than a socket holds");
        assert!(connection.unsent());

        let mut arrived = vec![0; sent.len()];
        let (written, read) = tokio::join!(connection.flush(), theirs.read_exact(&mut arrived));
        written.unwrap();
        read.unwrap();
        assert!(arrived == sent && !connection.unsent());
    }

    #[tokio::test]
    async fn what_the_server_said_last_is_read_although_writing_fails() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(Socket::Unix(ours));
        tokio::io::AsyncWriteExt::write_all(&mut theirs, b"E\0\0\0\x05\0").await.unwrap();
        drop(theirs);
        connection.output().extend_from_slice(b"status");
        assert_eq!(once(|cx| connection.poll_flush(cx)).await, Poll::Ready(false));
        assert_eq!(connection.receive().await.unwrap().tag, b'E');
        assert!(matches!(connection.receive().await, Err(Error::Io(_))));
    }
}
