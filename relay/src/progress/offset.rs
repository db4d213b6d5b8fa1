//! Offsets of records in a partition, and ranges of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The offset of a record in its partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl Offset {
    /// The offset of the first record of a new partition.
    pub const ZERO: Offset = Offset(0);

    #[must_use]
    pub fn next(self) -> Offset {
        Offset(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Successive offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    pub from: Offset,
    /// The first offset after the range.
    pub until: Offset,
}

impl OffsetRange {
    pub fn contains(self, offset: Offset) -> bool {
        self.from <= offset && offset < self.until
    }

    pub fn count(self) -> i64 {
        (self.until.0 - self.from.0).max(0)
    }

    /// The last offset, unless the range is empty.
    pub fn last(self) -> Option<Offset> {
        (self.count() > 0).then_some(Offset(self.until.0 - 1))
    }
}
