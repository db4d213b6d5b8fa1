//! Positions in the WAL, in three types so that they cannot be mixed up.
//!
//! A transaction has two relevant positions: where its commit record *begins* (in pgoutput's Begin) and where that
//! record *ends* (in pgoutput's Commit). An event's position uses the first, an acknowledgement the second. The end of
//! one transaction is often the beginning of the next, so comparing the two with `<=` loses a transaction;
//! [`EndLsn::covers`] is the only comparison this crate offers.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log, written `16/B374D848`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// PostgreSQL's invalid LSN, `0/0`: no position yet.
    pub const ZERO: Lsn = Lsn(0);

    /// The position as a number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl From<u64> for Lsn {
    fn from(bytes: u64) -> Self {
        Lsn(bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

/// The text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an LSN; write two hexadecimal numbers of at most 8 digits, such as 16/B374D848")]
pub struct ParseLsnError {
    text: String,
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            // `from_str_radix` alone would also accept a sign.
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError { text: text.to_owned() })
    }
}

/// The beginning of a transaction's commit record: part of an event's position.
///
/// Strictly increasing from transaction to transaction on one timeline.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitLsn(Lsn);

/// The end of a record in the WAL: what is acknowledged.
///
/// Found in a Commit message, a keepalive, and a slot's `confirmed_flush_lsn`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndLsn(Lsn);

impl CommitLsn {
    /// The commit record of some transaction begins at `lsn`.
    pub const fn new(lsn: Lsn) -> Self {
        CommitLsn(lsn)
    }

    /// The bare position.
    pub const fn lsn(self) -> Lsn {
        self.0
    }
}

impl EndLsn {
    /// Nothing confirmed yet; as a start position it means "where the slot is".
    pub const ZERO: EndLsn = EndLsn(Lsn::ZERO);

    /// Some record ends at `lsn`.
    pub const fn new(lsn: Lsn) -> Self {
        EndLsn(lsn)
    }

    /// The bare position.
    pub const fn lsn(self) -> Lsn {
        self.0
    }

    /// The least end that covers the transaction whose commit record begins at `commit`.
    pub const fn just_after(commit: CommitLsn) -> Self {
        EndLsn(Lsn(commit.0.0.saturating_add(1)))
    }

    /// The bytes of WAL from `earlier` to this end; 0 if it is not earlier.
    pub const fn bytes_since(self, earlier: EndLsn) -> u64 {
        self.0.0.saturating_sub(earlier.0.0)
    }

    /// Whether the transaction whose commit record begins at `commit` lies before this end.
    ///
    /// Strictly: a commit record that begins exactly here belongs to the *next* transaction.
    pub fn covers(self, commit: CommitLsn) -> bool {
        commit.0 < self.0
    }
}

impl FromStr for EndLsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(EndLsn)
    }
}

impl fmt::Display for CommitLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CommitLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitLsn({self})")
    }
}

impl fmt::Display for EndLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for EndLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndLsn({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn is_written_as_postgres_writes_it() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn::ZERO.to_string(), "0/0");
    }

    #[test]
    fn rejects_what_postgres_would_not_write() {
        for text in ["", "/", "16", "16/", "/16", "+1/2", "1/-2", "1/2/3", "123456789/0", "g/0", " 1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_end_does_not_cover_the_commit_that_begins_there() {
        let at = Lsn(100);
        assert!(!EndLsn::new(at).covers(CommitLsn::new(at)));
        assert!(EndLsn::new(Lsn(101)).covers(CommitLsn::new(at)));
        assert!(!EndLsn::new(Lsn(99)).covers(CommitLsn::new(at)));
    }

    #[test]
    fn the_end_just_after_a_commit_is_the_least_that_covers_it() {
        let commit = CommitLsn::new(Lsn(100));
        assert_eq!(EndLsn::just_after(commit), EndLsn::new(Lsn(101)));
        assert!(EndLsn::just_after(commit).covers(commit));
        assert_eq!(EndLsn::just_after(CommitLsn::new(Lsn(u64::MAX))), EndLsn::new(Lsn(u64::MAX)));
    }

    #[test]
    fn bytes_between_two_ends_are_never_negative() {
        let (earlier, later) = (EndLsn::new(Lsn(100)), EndLsn::new(Lsn(140)));
        assert_eq!(later.bytes_since(earlier), 40);
        assert_eq!(earlier.bytes_since(later), 0);
    }

    proptest! {
        #[test]
        fn survives_text(bytes: u64) {
            prop_assert_eq!(Lsn(bytes).to_string().parse(), Ok(Lsn(bytes)));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<Lsn>();
        }
    }
}
