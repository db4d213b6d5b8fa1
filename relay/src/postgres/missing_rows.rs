//! Which rows a refill delivers: those that the new slot does not stream and that no earlier slot has delivered.
//! docs/REFILL.md explains refills, and [`backfill`](super::backfill) selects the rows.
//!
//! Three snapshots of the server decide about a row, by the id of its transaction:
//!
//! | visible in the delivered snapshot | visible in the new slot's snapshot | the row |
//! |---|---|---|
//! | yes | yes | is in Kafka: see [`delivered_snapshots`](super::delivered_snapshots) |
//! | no | yes | may be missing: a refill delivers it unless Kafka has its event |
//! | no | no | is in the new slot's stream |
//!
//! The fourth combination does not exist on one history of the server: the new snapshot is the later one. A checkpoint
//! that knows transactions which the server has not assigned yet belongs to another history, and is refused.
//!
//! The delivered snapshot must not change before the refill is complete. Transaction ids do not commit in order, so
//! neither an LSN nor a transaction id could take its place.

use std::str::FromStr;

/// A transaction id with its epoch, PostgreSQL's `xid8`: ids of 32 bits are assigned again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xid8(pub u64);

/// The first transaction id of a cluster that belongs to a client: `FirstNormalTransactionId`.
const FIRST_CLIENT_XID: Xid8 = Xid8(3);

/// A `pg_snapshot`: which transactions had ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionSnapshot {
    text: String,
    xmax: Xid8,
}

/// A text that is no `pg_snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a snapshot of transactions")]
pub struct InvalidSnapshot(String);

impl TransactionSnapshot {
    /// The text form, as PostgreSQL reads it.
    pub fn as_text(&self) -> &str {
        &self.text
    }

    /// Whether it shows no transaction of a client: nothing was delivered yet.
    pub fn is_empty(&self) -> bool {
        self.xmax <= FIRST_CLIENT_XID
    }

    /// Whether it may show transactions that had not begun when `earlier` was taken.
    pub fn is_ahead_of(&self, earlier: &TransactionSnapshot) -> bool {
        self.xmax > earlier.xmax
    }
}

impl FromStr for TransactionSnapshot {
    type Err = InvalidSnapshot;

    fn from_str(text: &str) -> Result<Self, InvalidSnapshot> {
        let invalid = || InvalidSnapshot(text.to_owned());
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(list), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        let xid = |text: &str| text.parse().map(Xid8).map_err(|_| invalid());
        let (xmin, xmax) = (xid(xmin)?, xid(xmax)?);
        let is_in_progress = |text: &str| xid(text).is_ok_and(|xid| (xmin..xmax).contains(&xid));
        match xmin <= xmax && list.split(',').filter(|xid| !xid.is_empty()).all(is_in_progress) {
            true => Ok(TransactionSnapshot { text: text.to_owned(), xmax }),
            false => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod refill_model;

#[cfg(test)]
mod tests {
    use super::refill_model::{RowState, state_of};
    use super::*;

    fn snapshot(text: &str) -> TransactionSnapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_shows_the_transactions_that_had_ended() {
        let shown = snapshot("5:9:5,7");
        let ended: Vec<u64> = (0..12).filter(|xid| shown.shows(Xid8(*xid))).collect();
        assert_eq!(ended, [0, 1, 2, 3, 4, 6, 8]);
        assert_eq!(shown.as_text(), "5:9:5,7");
        assert!(!shown.is_empty() && snapshot("1:1:").is_empty());
    }

    #[test]
    fn a_text_that_is_no_snapshot_is_refused() {
        for text in ["", "5", "5:9", "9:5:", "5:9:4", "5:9:9", "5:9:x", "5:9:6:7", "-1:9:"] {
            assert!(text.parse::<TransactionSnapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_row_is_delivered_or_may_be_missing_or_is_in_the_stream() {
        let (delivered, created) = (snapshot("5:9:5,7"), snapshot("12:14:12"));
        let states: Vec<RowState> = (4..15).map(|xid| state_of(Xid8(xid), &delivered, &created)).collect();
        use RowState::{Delivered as D, InStream as S, MayBeMissing as M};
        assert_eq!(states, [D, M, D, M, D, M, M, M, S, M, S]);
    }

    #[test]
    fn a_checkpoint_from_the_future_is_another_history() {
        assert!(snapshot("9:10:").is_ahead_of(&snapshot("9:9:")));
        assert!(!snapshot("9:9:").is_ahead_of(&snapshot("9:9:")));
    }
}
