//! The stream of changes, with the status updates that confirm them.
//!
//! The owner alternates between [`Stream::fill`] (wait) and [`Stream::next_frame`] (take), confirms what it has
//! delivered, and calls [`Stream::idle`] instead of `fill` while it cannot take more: the server still receives status
//! updates although nothing is read. There is no background task. Every future may be dropped at any point, except that
//! of [`Stream::finish`], which owns the stream.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::client::Session;
use crate::connection::Connection;
use crate::feedback::{Feedback, Status};
use crate::report::{Notices, server_error};
use crate::wire::Reader;
use crate::{Client, EndLsn, Error, Lsn, MemoryLimit, Notice, PgTime};

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin.
    XLogData {
        /// Its position in the WAL.
        wal_start: Lsn,
        /// The same, or later; how far the server has come.
        wal_end: Lsn,
        /// When it was sent, by the server's clock.
        clock: PgTime,
        /// The plugin's message, for [`pgoutput::Message::parse`](crate::pgoutput::Message::parse). It is a slice
        /// of the read buffer: holding it for long holds 256 KiB.
        data: Bytes,
    },
    /// A keepalive: nothing to send up to here.
    Keepalive {
        /// Everything committed before this was sent. Safe to confirm when no transaction is open and all before
        /// it is confirmed.
        wal_end: EndLsn,
        /// When it was sent, by the server's clock.
        clock: PgTime,
        /// Whether the server requests a status; the stream sends it automatically.
        reply_requested: bool,
    },
}

/// A running logical replication stream.
pub struct Stream {
    connection: Connection,
    feedback: Feedback,
    notices: Notices,
    session: Session,
    timer: Pin<Box<Sleep>>,
    /// The flush position of a status that is not completely written yet.
    sending: Option<EndLsn>,
    sent: EndLsn,
}

/// A stream that was ended gracefully.
pub struct Finished {
    /// The last position the server was told, and has processed.
    pub confirmed: EndLsn,
    /// The connection, ready for commands again. Another stream needs another connection: the server immediately ends a
    /// second logical stream on one connection, because it remembers that the first was ended.
    pub client: Client,
}

impl Stream {
    pub(crate) fn new(
        connection: Connection,
        notices: Notices,
        session: Session,
        wal_sender_timeout: Duration,
        start: EndLsn,
    ) -> Self {
        let now = Instant::now();
        Stream {
            connection,
            feedback: Feedback::new(wal_sender_timeout, start, now),
            notices,
            session,
            timer: Box::pin(sleep_until(now)),
            sending: None,
            sent: EndLsn::ZERO,
        }
    }

    /// Limits what is kept of large rows and messages. Call it before the first [`Stream::fill`]: tables that were
    /// announced earlier count as not needed.
    pub fn limit_memory(&mut self, limit: MemoryLimit) {
        self.connection.input().limit(limit);
    }

    /// Waits until at least one whole message has arrived for [`Stream::next_frame`]. Meanwhile, and on each call,
    /// sends status updates that are due, and checks that the server still responds.
    ///
    /// It may return for a notice or an error: `next_frame` then returns `None` or the error.
    ///
    /// Returns the number of bytes of the last read, or 0 if a message was buffered already. Few mean that the stream is
    /// live; many that there is a backlog.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Closed`], [`Error::Io`]. Cancel-safe.
    pub async fn fill(&mut self) -> Result<usize, Error> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        let mut last_read = 0;
        loop {
            self.poll_status(cx);
            if self.connection.ready()? {
                return Poll::Ready(Ok(last_read));
            }
            if let Poll::Ready(read) = self.connection.poll_read(cx) {
                last_read = read?;
                self.feedback.on_read();
                continue;
            }
            self.feedback.on_empty(Instant::now())?;
            let wake_at = self.feedback.wake_reader_at(self.connection.unsent());
            if self.poll_timer(wake_at, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Sends status updates without reading: for an owner that cannot take more. Never completes except with an error;
    /// drop it when there is room again.
    ///
    /// # Errors
    /// [`Error::Io`] when a status cannot be written. Cancel-safe.
    pub async fn idle(&mut self) -> Result<Infallible, Error> {
        poll_fn(|cx| self.poll_idle(cx)).await
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<Infallible, Error>> {
        loop {
            self.poll_status(cx);
            if let Some(error) = self.connection.take_failure() {
                return Poll::Ready(Err(error.into()));
            }
            let wake_at = self.feedback.wake_writer_at(self.connection.unsent());
            if self.poll_timer(wake_at, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Puts a due status into the output and writes what the socket accepts.
    fn poll_status(&mut self, cx: &mut Context<'_>) {
        if let Some(status) = self.feedback.due(Instant::now(), self.connection.unsent()) {
            self.send(status);
        }
        if self.connection.poll_flush(cx) == Poll::Ready(true)
            && let Some(flush) = self.sending.take()
        {
            self.sent = flush;
        }
    }

    fn send(&mut self, status: Status) {
        put_status(status, self.connection.output());
        self.sending = Some(status.flush);
    }

    /// Whether `wake_at` has come; without one, something else will wake this task.
    fn poll_timer(&mut self, wake_at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wake_at) = wake_at else { return Poll::Pending };
        if self.timer.deadline() != wake_at {
            self.timer.as_mut().reset(wake_at);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Takes the next message that has arrived completely; `None` means: call [`Stream::fill`].
    ///
    /// # Errors
    /// [`Error::Server`] when the server ends the stream with an error, [`Error::Closed`] without one, and
    /// [`Error::Protocol`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        while let Some(message) = self.connection.take()? {
            match message.tag {
                b'd' => {
                    let frame = self.receive(message.body)?;
                    if !message.skipped {
                        return Ok(Some(frame));
                    }
                }
                b'N' => self.notices.receive(&message.body)?,
                b'S' => {}
                b'E' => return Err(server_error(&message.body)?.into()),
                b'c' | b'C' => return Err(Error::Closed),
                tag => return Err(Error::protocol(format!("message {tag:#04x} in a stream"))),
            }
        }
        Ok(None)
    }

    fn receive(&mut self, body: Bytes) -> Result<Frame, Error> {
        let frame = parse_frame(body)?;
        match &frame {
            Frame::XLogData { wal_start, wal_end, data, .. } => {
                self.feedback.on_received(*wal_start.max(wal_end));
                if data.first() == Some(&b'R') {
                    self.connection.input().announce(data);
                }
            }
            Frame::Keepalive { wal_end, reply_requested, .. } => {
                self.feedback.on_received(wal_end.lsn());
                if *reply_requested {
                    self.feedback.on_reply_wanted();
                }
            }
        }
        Ok(frame)
    }

    /// Confirms that everything up to `end` is delivered: the server may remove it. The server is told within about 100
    /// ms, by `fill`, `idle` or `finish`. An `end` lower than before changes nothing.
    ///
    /// Only the ends of transactions (from Commit) and keepalives outside transactions are ends.
    ///
    /// # Errors
    /// [`Error::NotReceived`] when `end` lies beyond what was received; nothing is confirmed then.
    pub fn confirm(&mut self, end: EndLsn) -> Result<(), Error> {
        self.feedback.confirm(end)
    }

    /// The last position taken with [`Stream::next_frame`].
    pub fn received(&self) -> Lsn {
        self.feedback.received()
    }

    /// The last position confirmed, whether or not the server was told.
    pub fn confirmed(&self) -> EndLsn {
        self.feedback.confirmed()
    }

    /// The last confirmation completely written to the socket; [`EndLsn::ZERO`] before the first.
    pub fn confirmed_sent(&self) -> EndLsn {
        self.sent
    }

    /// How long the server may be silent, with one request in between, until [`Stream::fill`] fails: half of its
    /// `wal_sender_timeout`. An owner that has not called `fill` or [`Stream::idle`] for this long must assume that the
    /// server has closed the stream, and that another client holds the slot.
    pub fn silence_limit(&self) -> Duration {
        self.feedback.silence_limit()
    }

    /// The fastest response to a command on this connection: an upper bound of the network's round-trip time.
    pub fn round_trip(&self) -> Duration {
        self.session.round_trip
    }

    /// Limits the system's receive buffer to a number of bytes. While the buffer is full, the server only queues its
    /// messages, which costs it half as much as sending each one. The limit also caps the rate at one buffer per round
    /// trip and ends the system's own tuning, so it is for servers nearby. A Unix socket ignores it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        self.connection.set_receive_buffer(bytes)
    }

    /// The notices received since the last call. Check for [`Notice::skipped_publication`].
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    /// Ends the stream gracefully: a last status, then CopyDone, then whatever the server still sends, which is
    /// discarded. The connection remains.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the server has not ended the stream within `limit`: it may be sending a large
    /// transaction, which it does not interrupt. The last status was sent before, so dropping the connection loses
    /// nothing. Other errors as for [`Stream::fill`].
    pub async fn finish(mut self, limit: Duration) -> Result<Finished, Error> {
        let last = self.feedback.status(Instant::now(), true);
        put_status(last, self.connection.output());
        frontend::copy_done(self.connection.output());
        let late = |_| Error::Timeout { what: "end the stream", limit };
        timeout(limit, self.drain()).await.map_err(late)??;
        let client = Client::resume(self.connection, self.notices, self.session);
        Ok(Finished { confirmed: last.flush, client })
    }

    /// Discards everything until the server is ready for commands.
    async fn drain(&mut self) -> Result<(), Error> {
        loop {
            let message = self.connection.receive().await?;
            match message.tag {
                // Data may arrive after CopyDone: the server sends a transaction to its end.
                b'd' | b'c' | b'C' | b'S' => {}
                b'N' => self.notices.receive(&message.body)?,
                b'E' => return Err(server_error(&message.body)?.into()),
                b'Z' => return Ok(()),
                tag => return Err(Error::protocol(format!("message {tag:#04x} at the end of a stream"))),
            }
        }
    }
}

/// Standby status update, PostgreSQL documentation "Streaming Replication Protocol".
fn put_status(status: Status, out: &mut BytesMut) {
    const BODY_BYTES: u32 = 4 + 1 + 4 * 8 + 1;
    out.put_u8(b'd');
    out.put_u32(BODY_BYTES);
    out.put_u8(b'r');
    out.put_u64(status.write.as_u64());
    out.put_u64(status.flush.lsn().as_u64());
    out.put_u64(status.flush.lsn().as_u64()); // applied: the same for logical slots
    out.put_i64(PgTime::now().as_micros());
    out.put_u8(u8::from(status.reply));
}

pub(crate) fn parse_frame(mut body: Bytes) -> Result<Frame, Error> {
    const XLOG_DATA_HEADER_BYTES: usize = 1 + 3 * 8;
    let mut reader = Reader::new(&body);
    match reader.u8()? {
        b'w' => {
            let wal_start = Lsn::from(reader.u64()?);
            let wal_end = Lsn::from(reader.u64()?);
            let clock = PgTime::from_micros(reader.i64()?);
            body.advance(XLOG_DATA_HEADER_BYTES);
            Ok(Frame::XLogData { wal_start, wal_end, clock, data: body })
        }
        b'k' => {
            let wal_end = EndLsn::new(Lsn::from(reader.u64()?));
            let clock = PgTime::from_micros(reader.i64()?);
            let reply_requested = reader.u8()? != 0;
            reader.finish()?;
            Ok(Frame::Keepalive { wal_end, clock, reply_requested })
        }
        kind => Err(Error::protocol(format!("a replication message of kind {kind:#04x}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_has_the_layout_of_the_protocol() {
        let mut out = BytesMut::new();
        let flush = EndLsn::new(Lsn::from(7));
        put_status(Status { write: Lsn::from(9), flush, reply: true }, &mut out);
        assert_eq!(out.len(), 1 + 38);
        assert_eq!(out[..6], [b'd', 0, 0, 0, 38, b'r']);
        assert_eq!(out[6..30], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(out[38], 1);
    }

    #[test]
    fn data_is_a_slice_of_what_was_read() {
        let body = Bytes::from([&[b'w'][..], &[0; 24], b"payload"].concat());
        let Ok(Frame::XLogData { data, .. }) = parse_frame(body.clone()) else { panic!("not XLogData") };
        assert_eq!(data, b"payload"[..]);
        assert_eq!(data.as_ptr(), body[25..].as_ptr());
    }

    proptest! {
        #[test]
        fn frames_never_panic(kind in prop::sample::select(b"wkr\0".to_vec()), body: Vec<u8>) {
            let _ = parse_frame(Bytes::from(body.clone()));
            let _ = parse_frame(Bytes::from([&[kind], &body[..]].concat()));
        }
    }
}
