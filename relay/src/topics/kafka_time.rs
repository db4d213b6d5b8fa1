//! Time as Kafka has it.

use pg_replication::PgTime;

/// The timestamp of a record: milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KafkaTime(pub i64);

impl KafkaTime {
    /// Milliseconds since `earlier`; negative if that is later.
    pub fn millis_since(self, earlier: KafkaTime) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<PgTime> for KafkaTime {
    fn from(time: PgTime) -> KafkaTime {
        KafkaTime(time.unix_micros().div_euclid(1000))
    }
}
