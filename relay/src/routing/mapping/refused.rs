//! Rows that Kafka refused for a topic for reasons that the relay cannot check in advance.
//!
//! Whether a broker accepts a record cannot be computed from the row. So its response becomes part of the routing
//! history: it is stored before the row is sent anywhere else, and every later start routes the row in the same way.

use std::fmt;

use outbox::Position;
use pg_replication::EndLsn;
use serde::{Deserialize, Serialize};

/// Maximum number of refused rows. If that many unconfirmed rows were refused, the cause is not in the rows.
const MAX_REFUSED: usize = 1_000;

/// A row that Kafka refused for a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedRow {
    #[serde(with = "position_text")]
    pub position: Position,
    pub topic: String,
    /// The error code, and what it means.
    pub cause: String,
}

/// The refused rows that may be read again, by position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RefusedRows(Vec<RefusedRow>);

impl RefusedRows {
    /// Whether no rows were refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a row. Returns false if the maximum is reached.
    pub fn add(&mut self, refused: RefusedRow) -> bool {
        if self.cause(refused.position, &refused.topic).is_some() {
            return true;
        }
        if self.0.len() >= MAX_REFUSED {
            return false;
        }
        let index = self.0.partition_point(|known| known.position <= refused.position);
        self.0.insert(index, refused);
        true
    }

    /// Why Kafka refused the row at `position` for `topic`, if it did.
    pub fn cause(&self, position: Position, topic: &str) -> Option<&str> {
        let from = self.0.partition_point(|known| known.position < position);
        let mut of_row = self.0.iter().skip(from).take_while(|known| known.position == position);
        of_row.find(|known| known.topic == topic).map(|known| known.cause.as_str())
    }

    /// Removes the refusals of one row, and returns their topics.
    pub fn forget(&mut self, position: Position) -> Vec<String> {
        self.0.extract_if(.., |known| known.position == position).map(|known| known.topic).collect()
    }

    /// Removes rows before `confirmed`, and returns whether there were any. Rows of the initial snapshot have the byte
    /// before the start of the stream as their position. That start stays the confirmed LSN until all of them are
    /// delivered.
    pub fn remove_confirmed(&mut self, confirmed: EndLsn) -> bool {
        let before = self.0.len();
        self.0.retain(|known| confirmed.lsn().as_u64() <= known.position.commit_lsn.saturating_add(1));
        self.0.len() < before
    }
}

mod position_text {
    use super::{Position, fmt};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(position as &dyn fmt::Display)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, end};

    fn refused(commit_lsn: u64, topic: &str) -> RefusedRow {
        RefusedRow { position: at(commit_lsn), topic: topic.into(), cause: "InvalidRecord".into() }
    }

    #[test]
    fn a_row_is_refused_for_its_topic_only_until_it_is_confirmed_or_forgotten() {
        let mut refusals = RefusedRows::default();
        for (commit, topic) in [(80, "b"), (40, "a"), (40, "dead"), (80, "b")] {
            assert!(refusals.add(refused(commit, topic)));
        }
        assert_eq!(refusals.cause(at(40), "dead"), Some("InvalidRecord"));
        assert_eq!(refusals.cause(at(40), "b"), None);
        let json = serde_json::to_value(&refusals).unwrap();
        assert_eq!(json[0]["position"], "00000001-0000000000000028-0000000000000000");
        assert_eq!(serde_json::from_value::<RefusedRows>(json).unwrap(), refusals);
        assert!(!refusals.remove_confirmed(end(41)), "a snapshot row before the stream at 41");
        assert!(refusals.remove_confirmed(end(48)) && refusals.cause(at(40), "a").is_none());
        assert_eq!(refusals.forget(at(80)), ["b"]);
        assert!(refusals.is_empty());
    }

    #[test]
    fn the_number_of_refused_rows_is_bounded() {
        let mut refusals = RefusedRows::default();
        let added = (0..2_000).filter(|commit| refusals.add(refused(*commit, "t"))).count();
        assert_eq!(added, MAX_REFUSED);
        assert!(refusals.add(refused(7, "t")), "known already");
    }
}
