//! Splits the server's bytes into messages: a tag byte, a length that includes itself, a body.
//!
//! Messages are slices of the buffer they were read into, never copies. The buffer is reused once all its slices are
//! dropped; until then the next bytes are read into a new one. Of messages larger than one read only the parts that are
//! needed are kept: see [`MemoryLimit`].

mod large;

use bytes::{Buf, Bytes, BytesMut};

use self::large::{Large, Plan, Selection, plan};
use crate::Error;
use crate::wire::Reader;

pub use self::large::MemoryLimit;

/// Size of one read at most. Large, because every read wakes the walsender and makes it send in smaller pieces.
pub(crate) const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Below this much free space the buffer is replaced: reads must not become small because it is nearly full.
const LEAST_SPACE_BYTES: usize = READ_BUFFER_BYTES / 4;

/// PostgreSQL allocates a message as one chunk, which cannot be larger than this.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// A smaller message is always kept whole: the buffer has that size anyway.
const SMALL_BYTES: usize = READ_BUFFER_BYTES;

const HEADER_BYTES: usize = 5;

/// One message of the server.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
    /// The message was not needed and too large to keep: the body ends after the header of XLogData.
    pub(crate) skipped: bool,
}

/// Bytes read and not yet taken as messages.
pub(crate) struct Framing {
    buffer: BytesMut,
    /// The size of the buffer's allocation, including slices already taken.
    allocated: usize,
    /// A message beyond this size may be reduced while it arrives.
    small: usize,
    selection: Option<Selection>,
    /// The message that is being reduced.
    large: Option<Large>,
}

impl Framing {
    pub(crate) fn new() -> Self {
        Framing {
            buffer: BytesMut::with_capacity(READ_BUFFER_BYTES),
            allocated: READ_BUFFER_BYTES,
            small: SMALL_BYTES,
            selection: None,
            large: None,
        }
    }

    /// Limits what is kept of the rows of a stream that has not been read yet.
    pub(crate) fn limit(&mut self, limit: MemoryLimit) {
        self.selection = Some(Selection::new(limit));
    }

    /// Registers a message that describes a table.
    pub(crate) fn announce(&mut self, message: &[u8]) {
        if let Some(selection) = &mut self.selection {
            selection.announce(message);
        }
    }

    /// Messages from this size on are reduced.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn set_small(&mut self, small: usize) {
        self.small = small;
    }

    /// The size of the buffer in memory.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn allocated(&self) -> usize {
        self.allocated
    }

    /// The buffer for the next bytes; it always has room.
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < LEAST_SPACE_BYTES {
            self.renew();
        }
        &mut self.buffer
    }

    /// Whether a whole message has arrived, as far as it is kept.
    pub(crate) fn ready(&mut self) -> Result<bool, Error> {
        if self.large.is_none() {
            let Some((tag, length)) = self.next_length()? else { return Ok(false) };
            if length <= self.small {
                return Ok(length <= self.buffer.len());
            }
            let body = self.buffer.get(HEADER_BYTES..).unwrap_or_default();
            match plan(self.selection.as_ref(), tag, length - HEADER_BYTES, body) {
                Plan::Unclear => return Ok(false),
                Plan::TooLong => return Err(too_long(tag, length)),
                Plan::Whole => return Ok(length <= self.buffer.len()),
                Plan::InPieces(large) => {
                    self.buffer.advance(HEADER_BYTES);
                    self.large = Some(large);
                }
            }
        }
        let Some(large) = &mut self.large else { return Ok(false) };
        Ok(large.digest(&mut self.buffer)?)
    }

    /// Takes the next whole message.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>, Error> {
        if !self.ready()? {
            return Ok(None);
        }
        if let Some(large) = self.large.take() {
            return Ok(Some(large.into_frame()));
        }
        let Some((tag, length)) = self.next_length()? else { return Ok(None) };
        let mut body = self.buffer.split_to(length).freeze();
        body.advance(HEADER_BYTES);
        Ok(Some(Frame { tag, body, skipped: false }))
    }

    /// The tag and the length with header of the next message, once its header has arrived.
    fn next_length(&self) -> Result<Option<(u8, usize)>, Error> {
        let mut header = Reader::new(&self.buffer);
        let (Ok(tag), Ok(length)) = (header.u8(), header.u32()) else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !(HEADER_BYTES - 1..MAX_MESSAGE_BYTES).contains(&length) {
            return Err(too_long(tag, length));
        }
        Ok(Some((tag, length + 1)))
    }

    fn renew(&mut self) {
        let held = self.buffer.len();
        // A buffer that grew for one large message is freed instead of reused.
        if held < LEAST_SPACE_BYTES
            && self.allocated <= READ_BUFFER_BYTES
            && self.buffer.try_reclaim(READ_BUFFER_BYTES - held)
        {
            return;
        }
        // Doubling keeps a large message linear, and a false length from allocating memory at once.
        self.allocated = READ_BUFFER_BYTES.max(held * 2);
        let mut fresh = BytesMut::with_capacity(self.allocated);
        fresh.extend_from_slice(&self.buffer);
        self.buffer = fresh;
    }
}

fn too_long(tag: u8, length: usize) -> Error {
    Error::protocol(format!("a message {tag:#04x} of {length} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    /// Feeds bytes as a socket would: never more than there is room for.
    fn feed(framing: &mut Framing, mut bytes: &[u8], piece: usize) -> Vec<(u8, Bytes)> {
        let mut taken = Vec::new();
        while !bytes.is_empty() {
            let space = framing.space();
            let count = piece.min(bytes.len()).min(space.capacity() - space.len());
            space.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            while let Some(frame) = framing.take().unwrap() {
                taken.push((frame.tag, frame.body));
            }
        }
        taken
    }

    #[test]
    fn a_large_message_passes_and_its_buffer_is_freed() {
        let mut framing = Framing::new();
        let large = vec![7; 3 * READ_BUFFER_BYTES + 11];
        let taken = feed(&mut framing, &message(b'd', &large), READ_BUFFER_BYTES);
        assert_eq!(taken[0].1, large);
        assert!(framing.allocated > READ_BUFFER_BYTES);
        drop(taken);
        let small = vec![1; 100_000];
        for _ in 0..20 {
            assert_eq!(feed(&mut framing, &message(b'd', &small), 70_000).len(), 1);
        }
        assert_eq!(framing.allocated, READ_BUFFER_BYTES);
    }

    #[test]
    fn the_buffer_is_reused_once_its_messages_are_dropped() {
        let mut framing = Framing::new();
        let start = framing.space().as_ptr();
        let mut seen = std::collections::HashSet::from([start]);
        for _ in 0..100 {
            drop(feed(&mut framing, &message(b'd', &[0; 50_000]), READ_BUFFER_BYTES));
            seen.insert(framing.buffer.as_ptr());
        }
        assert!(seen.len() < 10, "{} places: the buffer is not used again", seen.len());
    }

    #[test]
    fn impossible_lengths_are_rejected_before_any_allocation() {
        for length in [0_u32, 3, 1 << 31, u32::MAX] {
            let mut framing = Framing::new();
            framing.space().extend_from_slice(b"d");
            framing.space().extend_from_slice(&length.to_be_bytes());
            assert!(matches!(framing.ready(), Err(Error::Protocol { .. })), "{length}");
            assert!(framing.take().is_err());
        }
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..3000)), 0..60),
            piece in 1..5000_usize,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
            let taken = feed(&mut Framing::new(), &stream, piece);
            prop_assert_eq!(taken.len(), bodies.len());
            for ((tag, body), sent) in taken.iter().zip(&bodies) {
                prop_assert_eq!((*tag, &body[..]), (sent.0, &sent.1[..]));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut framing = Framing::new();
            framing.space().extend_from_slice(&bytes);
            while let Ok(Some(_)) = framing.take() {}
        }
    }
}
