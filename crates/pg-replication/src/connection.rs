//! The socket with both its buffers. All state is stored here and none in a future, so any future may be dropped at any
//! point: a half-read message stays in the input, a half-written one in the output.

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
    /// Written bytes may still be buffered in the TLS session.
    unflushed: bool,
    /// Why writing failed. Kept until the end of the input is read, because the server's last message explains the
    /// failure better.
    broken: Option<io::Error>,
}

impl Connection {
    pub(crate) fn new(socket: Socket) -> Self {
        Connection { socket, input: Framing::new(), output: BytesMut::new(), unflushed: false, broken: None }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.socket, Socket::Tls(_))
    }

    /// The data for SCRAM channel binding over this connection.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        self.socket.end_point()
    }

    /// The buffer for messages to send; append whole messages only.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Whether bytes wait to be written.
    pub(crate) fn unsent(&self) -> bool {
        !self.output.is_empty() || self.unflushed
    }

    /// See [`Socket::set_receive_buffer`].
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        self.socket.set_receive_buffer(bytes)
    }

    /// Takes the next message, if it has arrived completely.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>, Error> {
        self.input.take()
    }

    /// Whether a whole message has arrived.
    pub(crate) fn ready(&mut self) -> Result<bool, Error> {
        self.input.ready()
    }

    /// The received bytes, to set what is kept of them.
    pub(crate) fn input(&mut self) -> &mut Framing {
        &mut self.input
    }

    /// Why writing failed, if it did.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// Reads the bytes that have arrived, or waits for some. Returns their number.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        // `read_buf` keeps nothing in its future, so a new one for each poll loses nothing.
        match ready!(pin!(self.socket.read_buf(self.input.space())).poll(cx)) {
            Ok(count @ 1..) => Poll::Ready(Ok(count)),
            ended => Poll::Ready(Err(self.ended(ended))),
        }
    }

    /// The best explanation for the end of the input.
    fn ended(&mut self, read: io::Result<usize>) -> Error {
        let ended = read.map_or_else(Error::from, |_| Error::Closed);
        match (ended, self.broken.take()) {
            // A server that rejects a client certificate reports it and closes; writing may fail before the report is
            // read.
            (Error::Tls(refusal), _) => refusal.into(),
            (_, Some(write_error)) => write_error.into(),
            (ended, None) => ended,
        }
    }

    /// Writes as much as the socket accepts; ready with whether everything was written. A failure is kept for the
    /// reader.
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

    /// Sends the output and waits for the next message.
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

    /// Sends the output.
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
    async fn an_interrupted_write_continues_where_it_stopped() {
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
    async fn the_servers_last_message_is_read_although_writing_fails() {
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
