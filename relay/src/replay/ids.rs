//! The ids that a client selects.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Ids of events. A UUID matches however it is written, as it does in PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>")]
pub struct EventIds(BTreeSet<String>);

impl From<Vec<String>> for EventIds {
    fn from(ids: Vec<String>) -> Self {
        EventIds(ids.iter().map(|id| normal(id)).collect())
    }
}

impl EventIds {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, id: &str) -> bool {
        self.0.contains(&normal(id))
    }

    pub fn remove(&mut self, id: &str) {
        self.0.remove(&normal(id));
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn normal(id: &str) -> String {
    Uuid::parse_str(id).map_or_else(|_| id.to_owned(), |uuid| uuid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_matches_however_it_is_written_and_another_id_only_as_it_is() {
        let mut ids =
            EventIds::from(["0189F7EA-AE2C-7809-8AEB-B819CF5E9E7F", "Order-1"].map(String::from).to_vec());
        assert!(ids.contains("0189f7ea-ae2c-7809-8aeb-b819cf5e9e7f") && !ids.contains("order-1"));
        ids.remove("0189f7eaae2c78098aebb819cf5e9e7f");
        assert_eq!(ids.iter().collect::<Vec<_>>(), ["Order-1"]);
    }
}
