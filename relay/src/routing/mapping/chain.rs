//! The current mapping and the earlier ones that still matter: stored ones in a checkpoint, compiled ones in a session.

use pg_replication::{EndLsn, Lsn};
use serde::{Deserialize, Serialize};

use super::RefusedRows;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingChain<M> {
    /// The number of the current mapping. The checkpoint has a separate column for it, so that people need not read
    /// JSON.
    #[serde(skip)]
    pub version: i32,
    pub current: M,
    /// Earlier mappings, oldest first, for rows that may be read again.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Superseded<M>>,
    /// Rows that Kafka refused at the destination of a mapping.
    #[serde(default, skip_serializing_if = "RefusedRows::is_empty")]
    pub refused: RefusedRows,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Superseded<M> {
    /// No row committed at or after this position was sent by this mapping.
    #[serde(with = "lsn_text")]
    pub until: EndLsn,
    #[serde(flatten)]
    pub mapping: M,
}

impl<M> MappingChain<M> {
    /// The chain of a relay's first mapping.
    pub fn new(mapping: M) -> MappingChain<M> {
        MappingChain { version: 1, current: mapping, previous: Vec::new(), refused: RefusedRows::default() }
    }

    /// Makes `mapping` the current one. No row committed at or after `until` was sent yet.
    pub(super) fn replace(&mut self, mapping: M, until: EndLsn) {
        let mapping = std::mem::replace(&mut self.current, mapping);
        self.previous.push(Superseded { until, mapping });
        self.version += 1;
    }

    /// Drops what only concerns rows before `confirmed`. Returns whether there was anything.
    pub(super) fn drop_confirmed(&mut self, confirmed: EndLsn) -> bool {
        let before = self.previous.len();
        self.previous.retain(|earlier| earlier.until > confirmed);
        self.refused.remove_confirmed(confirmed) || self.previous.len() < before
    }

    /// The mappings, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = &M> {
        self.previous.iter().map(|earlier| &earlier.mapping).chain([&self.current])
    }

    /// The same chain of other mappings.
    pub(super) fn try_map<N, E>(
        &self,
        mut convert: impl FnMut(&M) -> Result<N, E>,
    ) -> Result<MappingChain<N>, E> {
        let current = convert(&self.current)?;
        let mut earlier = |Superseded { until, mapping }: &Superseded<M>| {
            Ok(Superseded { until: *until, mapping: convert(mapping)? })
        };
        let previous = self.previous.iter().map(&mut earlier).collect::<Result<_, E>>()?;
        Ok(MappingChain { version: self.version, current, previous, refused: self.refused.clone() })
    }
}

mod lsn_text {
    use super::{EndLsn, Lsn};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(lsn: &EndLsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EndLsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<Lsn>().map(EndLsn::new).map_err(D::Error::custom)
    }
}
