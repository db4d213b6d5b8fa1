//! Recognises this outbox's records among all records of a partition.

use outbox::{Position, header};
use rdkafka::message::{Headers, Message};

use crate::progress::lineage::Lineage;
use crate::topics::kafka_time::KafkaTime;

/// The properties of this outbox's records.
#[derive(Clone, Debug)]
pub struct OwnRecords {
    /// Their `ce_source`.
    pub source: String,
    /// The timelines of the database server.
    pub lineage: Lineage,
    /// When the database server was started.
    pub server_started: KafkaTime,
}

impl OwnRecords {
    /// The position of a record, if it is of this outbox, on any timeline.
    pub fn position(&self, message: &impl Message) -> Option<Position> {
        if value_of(message, header::CE_SOURCE)? != self.source.as_bytes() {
            return None;
        }
        position_of(message)
    }

    /// Whether a record was written after the start of the database server, judging by its timestamp. A server that was
    /// restored to an earlier state was started after it lost its later rows. So if such a record lies beyond the end
    /// of the server's WAL, another server wrote it.
    pub fn is_after_server_start(&self, message: &impl Message) -> bool {
        message.timestamp().to_millis().is_some_and(|time| KafkaTime(time) >= self.server_started)
    }
}

/// The position in a record of any producer.
pub fn position_of(message: &impl Message) -> Option<Position> {
    std::str::from_utf8(value_of(message, header::CE_SEQUENCE)?).ok()?.parse().ok()
}

pub fn value_of<'m>(message: &'m impl Message, name: &str) -> Option<&'m [u8]> {
    message.headers()?.iter().find(|header| header.key == name).and_then(|header| header.value)
}
