//! The position of an event in the history of its database.

use std::fmt;
use std::str::FromStr;

/// The position of one event in commit order: the timeline its commit was written on, the LSN of the commit record (in
/// pgoutput's Begin message), and its index among the inserts of the outbox table in that transaction.
///
/// Rows of one multi-row insert share a row LSN, so the index distinguishes them.
///
/// As text it is `timeline-lsn-index` in fixed-width hexadecimal (8-16-16), which sorts like the position:
///
/// ```
/// let position = outbox::Position { timeline: 1, commit_lsn: 0x16_B374_D848, index: 2 };
/// assert_eq!(position.to_string(), "00000001-00000016b374d848-0000000000000002");
/// assert_eq!("00000001-00000016b374d848-0000000000000002".parse(), Ok(position));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Timeline on which the commit was written.
    pub timeline: u32,
    /// LSN at which the commit record begins. Not the LSN that is acknowledged to PostgreSQL, which is its end.
    pub commit_lsn: u64,
    /// 0 for the first insert of the outbox table in the transaction.
    pub index: u64,
}

impl Position {
    /// Length of the text form in bytes.
    pub const TEXT_LEN: usize = 8 + 1 + 16 + 1 + 16;

    /// The text form without allocation: it is written once per record.
    pub fn encode(&self) -> [u8; Self::TEXT_LEN] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; Self::TEXT_LEN];
        let fields = [(8, u64::from(self.timeline)), (25, self.commit_lsn), (42, self.index)];
        let widths = [8, 16, 16];
        for ((end, value), width) in fields.into_iter().zip(widths) {
            let slots = text.iter_mut().take(end).rev().take(width);
            for (nibble, slot) in slots.enumerate() {
                let digit = (value >> (4 * nibble)) & 0xf;
                *slot = DIGITS.get(digit as usize).copied().unwrap_or(b'0');
            }
        }
        text
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:016x}-{:016x}", self.timeline, self.commit_lsn, self.index)
    }
}

/// The text is not a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position: expected timeline-lsn-index as 8-16-16 lower-case hexadecimal digits")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut field = |width: usize| -> Result<u64, ParsePositionError> {
            let digits = parts.next().filter(|part| part.len() == width).ok_or(ParsePositionError)?;
            let lower_hex = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !lower_hex {
                return Err(ParsePositionError);
            }
            u64::from_str_radix(digits, 16).map_err(|_| ParsePositionError)
        };
        let timeline = u32::try_from(field(8)?).map_err(|_| ParsePositionError)?;
        let position = Position { timeline, commit_lsn: field(16)?, index: field(16)? };
        if parts.next().is_some() {
            return Err(ParsePositionError);
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn positions() -> impl Strategy<Value = Position> {
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(timeline, commit_lsn, index)| Position {
            timeline,
            commit_lsn,
            index,
        })
    }

    proptest! {
        #[test]
        fn text_form_round_trips_and_sorts_as_the_position_does(a in positions(), b in positions()) {
            prop_assert_eq!(a.to_string().parse::<Position>(), Ok(a));
            prop_assert_eq!(a.encode().to_vec(), a.to_string().into_bytes());
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn any_other_text_is_refused_without_a_panic(text in "\\PC{0,60}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
