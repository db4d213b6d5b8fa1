//! Checked reading of big-endian messages: the only place where bytes from the network are parsed.
//!
//! Nothing here panics or allocates, whatever the input.

/// What is wrong with a message; completes the sentence "the message …".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WireError(pub(crate) &'static str);

pub(crate) const SHORT: WireError = WireError("ends too early");
pub(crate) const LONG: WireError = WireError("has bytes left over");
pub(crate) const NEGATIVE: WireError = WireError("has a negative length");
const NOT_TEXT: WireError = WireError("has text that is not UTF-8");

/// Reads a message from its front.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(head)
    }

    /// Bytes preceded by their count as a non-negative 32-bit number.
    pub(crate) fn length_prefixed(&mut self) -> Result<&'a [u8], WireError> {
        let count = usize::try_from(self.i32()?).map_err(|_| NEGATIVE)?;
        self.bytes(count)
    }

    /// The bytes up to the next zero byte, which is consumed.
    pub(crate) fn cstr(&mut self) -> Result<&'a [u8], WireError> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(SHORT)?;
        let text = self.bytes(end)?;
        self.u8()?;
        Ok(text)
    }

    /// Like [`Reader::cstr`], for text that must be UTF-8 (the connection asks for that encoding).
    pub(crate) fn text(&mut self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.cstr()?).map_err(|_| NOT_TEXT)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn finish(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(LONG) }
    }
}
