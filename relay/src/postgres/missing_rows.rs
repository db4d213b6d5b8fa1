//! Which rows a refill delivers: those that the new slot does not stream and that no earlier slot has delivered.
//! docs/REFILL.md explains refills, and this module is their arithmetic; [`backfill`](super::backfill) selects the rows.
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

/// The first transaction id of a cluster that belongs to a client: `FirstNormalTransactionId`.
const FIRST_CLIENT_XID: u64 = 3;

/// A `pg_snapshot`: which transactions had ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionSnapshot {
    text: String,
    xmax: u64,
    /// Sorted.
    in_progress: Vec<u64>,
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

    /// Whether the transaction had ended: `pg_visible_in_snapshot`.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmax && self.in_progress.binary_search(&xid).is_err()
    }

    /// Whether it shows no transaction of a client: nothing was delivered yet.
    pub fn is_empty(&self) -> bool {
        self.xmax <= FIRST_CLIENT_XID
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
        let number = |text: &str| text.parse::<u64>().map_err(|_| invalid());
        let (xmin, xmax) = (number(xmin)?, number(xmax)?);
        let in_progress = list.split(',').filter(|xid| !xid.is_empty()).map(number);
        let mut in_progress = in_progress.collect::<Result<Vec<u64>, _>>()?;
        in_progress.sort_unstable();
        if xmin > xmax || in_progress.iter().any(|xid| !(xmin..xmax).contains(xid)) {
            return Err(invalid());
        }
        Ok(TransactionSnapshot { text: text.to_owned(), xmax, in_progress })
    }
}

/// The rows that a refill has to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingRows {
    delivered: TransactionSnapshot,
    created: TransactionSnapshot,
}

/// The checkpoint knows transactions that the server has not assigned yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delivered snapshot in the checkpoint shows transactions that this server has not assigned yet")]
pub struct OtherHistory;

/// Where the event of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// In Kafka.
    Delivered,
    /// In Kafka if the lost slot has delivered it, otherwise nowhere.
    MayBeMissing,
    /// In the stream of the new slot.
    InStream,
}

impl MissingRows {
    /// The rows between `delivered`, the snapshot in the checkpoint, and `created`, the snapshot of the new slot.
    pub fn between(
        delivered: TransactionSnapshot,
        created: TransactionSnapshot,
    ) -> Result<MissingRows, OtherHistory> {
        if delivered.xmax > created.xmax {
            return Err(OtherHistory);
        }
        Ok(MissingRows { delivered, created })
    }

    /// The snapshot in the checkpoint.
    pub fn delivered(&self) -> &TransactionSnapshot {
        &self.delivered
    }

    /// Where the event of a row is that transaction `xid` has written.
    pub fn state_of(&self, xid: u64) -> RowState {
        if self.delivered.shows(xid) {
            RowState::Delivered
        } else if self.created.shows(xid) {
            RowState::MayBeMissing
        } else {
            RowState::InStream
        }
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> TransactionSnapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_shows_the_transactions_that_had_ended() {
        let shown = snapshot("5:9:5,7");
        let ended: Vec<u64> = (0..12).filter(|xid| shown.shows(*xid)).collect();
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
        let rows = MissingRows::between(snapshot("5:9:5,7"), snapshot("12:14:12")).unwrap();
        let states: Vec<RowState> = (4..15).map(|xid| rows.state_of(xid)).collect();
        use RowState::{Delivered as D, InStream as S, MayBeMissing as M};
        assert_eq!(states, [D, M, D, M, D, M, M, M, S, M, S]);
    }

    #[test]
    fn a_checkpoint_from_the_future_is_another_history() {
        assert_eq!(MissingRows::between(snapshot("9:10:"), snapshot("9:9:")), Err(OtherHistory));
    }
}
