//! The records that an audit compares: those of this outbox in its topics, each partition in order of offsets. All calls
//! block.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use chrono::{DateTime, TimeDelta, Utc};
use outbox::{Position, header};
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;

use super::compared_rows::Period;
use super::comparison::{Comparison, FoundRecord, RecordKind};
use crate::cli::RecordLocation;
use crate::config::Config;
use crate::kafka::evidence::EventKey;
use crate::kafka::own_records::{position_of, value_of};
use crate::kafka::topic_reader::{PartitionRange, ReadError, TopicReader, failed};
use crate::progress::offset::{Offset, OffsetRange};
use crate::topics::partitions::PartitionNumber;

/// How far the brokers' clocks may be behind the database's: in some topics the broker sets the time of a record.
const CLOCK_DIFFERENCE: TimeDelta = TimeDelta::minutes(10);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadTopic {
    /// 0 if it does not exist.
    pub partitions: i32,
    /// The number of this outbox's records in the period.
    pub records: u64,
    /// Retention has removed records from before this time.
    pub complete_since: Option<DateTime<Utc>>,
    /// Compaction may have removed records.
    pub compacted: bool,
}

pub struct TopicRecords {
    reader: TopicReader,
    source: String,
    period: Period,
    dead_letters: Option<String>,
    topics: BTreeMap<String, ReadTopic>,
    partitions: Vec<PartitionCursor>,
}

/// A partition, and how far it was read.
struct PartitionCursor {
    topic: String,
    number: PartitionNumber,
    rest: OffsetRange,
    /// The highest position so far.
    highest: Option<Position>,
    /// Retention may have removed records of the period, and no record was read yet.
    begins_late: bool,
}

impl TopicRecords {
    /// Looks up where the period begins and ends in each partition. What is delivered later is not read.
    pub fn open(
        config: &Config,
        names: &BTreeSet<String>,
        compacted: &BTreeSet<String>,
        period: Period,
    ) -> Result<TopicRecords, ReadError> {
        let any = names.first().map_or("", String::as_str);
        let mut records = TopicRecords {
            reader: TopicReader::new(&config.sink, "audit").map_err(failed(any))?,
            source: config.source.event_source(),
            period,
            dead_letters: config.delivery.dead_letters().map(str::to_owned),
            topics: BTreeMap::new(),
            partitions: Vec::new(),
        };
        for name in names {
            let partitions = records.reader.partitions(name)?;
            let topic = ReadTopic { partitions, compacted: compacted.contains(name), ..ReadTopic::default() };
            records.topics.insert(name.clone(), topic);
            for number in (0..partitions).map(PartitionNumber) {
                records.open_partition(name, number)?;
            }
        }
        Ok(records)
    }

    fn open_partition(&mut self, topic: &str, number: PartitionNumber) -> Result<(), ReadError> {
        let since = self.period.since - CLOCK_DIFFERENCE;
        let PartitionRange { low, range: rest } = self.reader.range(topic, number, Some(since))?;
        let begins_late = low > Offset::ZERO && rest.from == low;
        if begins_late && rest.count() == 0 {
            self.is_complete_since(topic, self.period.until);
        }
        let topic = topic.to_owned();
        self.partitions.push(PartitionCursor { topic, number, rest, highest: None, begins_late });
        Ok(())
    }

    fn is_complete_since(&mut self, topic: &str, time: DateTime<Utc>) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.complete_since = topic.complete_since.max(Some(time));
        }
    }

    /// Reads each partition up to the first record of a later event than `until`, or to its end.
    pub fn read(
        &mut self,
        until: Option<DateTime<Utc>>,
        comparison: &mut Comparison,
    ) -> Result<(), ReadError> {
        for mut partition in std::mem::take(&mut self.partitions) {
            self.read_partition(&mut partition, until, comparison)?;
            self.partitions.push(partition);
        }
        Ok(())
    }

    fn read_partition(
        &mut self,
        partition: &mut PartitionCursor,
        until: Option<DateTime<Utc>>,
        comparison: &mut Comparison,
    ) -> Result<(), ReadError> {
        let PartitionCursor { topic, number, rest, highest, begins_late } = partition;
        let is_dead_letter = self.dead_letters.as_ref() == Some(topic);
        let (mut first, mut count, range) = (None, 0, *rest);
        let Period { since, until: end } = self.period;
        let read = self.reader.read_partition(topic, *number, range, &mut |message| {
            rest.from = Offset(message.offset()).next();
            if std::mem::take(begins_late) {
                first = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
            }
            let Some(event) = Event::of(message, &self.source) else { return ControlFlow::Continue(()) };
            let position = position_of(message);
            let is_behind = position.is_some() && position < *highest;
            *highest = position.max(*highest);
            if event.time < since || event.time >= end {
                return ControlFlow::Continue(());
            }
            count += 1;
            let kind = match position {
                _ if is_dead_letter => RecordKind::DeadLetter,
                Some(_) => RecordKind::Event,
                None => RecordKind::Replayed,
            };
            let location =
                RecordLocation { topic: topic.clone(), partition: *number, offset: Offset(message.offset()) };
            let key = EventKey::new(event.id, event.time_text);
            let id = String::from_utf8_lossy(event.id).into_owned();
            comparison.on_record(key, FoundRecord { id, time: event.time, location, kind, is_behind });
            let is_later = until.is_some_and(|until| event.time > until);
            if is_later || comparison.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if read.is_continue() {
            rest.from = rest.until;
        }
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.records += count;
        }
        if let Some(first) = first {
            let topic = topic.clone();
            self.is_complete_since(&topic, first);
        }
        Ok(())
    }

    pub fn into_topics(self) -> BTreeMap<String, ReadTopic> {
        self.topics
    }
}

/// The headers that identify an event.
struct Event<'m> {
    id: &'m [u8],
    time_text: &'m [u8],
    time: DateTime<Utc>,
}

impl<'m> Event<'m> {
    /// `None` for another producer's record.
    fn of(message: &'m BorrowedMessage<'_>, source: &str) -> Option<Event<'m>> {
        if value_of(message, header::CE_SOURCE)? != source.as_bytes() {
            return None;
        }
        let (id, time_text) = (value_of(message, header::CE_ID)?, value_of(message, header::CE_TIME)?);
        let time = DateTime::parse_from_rfc3339(std::str::from_utf8(time_text).ok()?).ok()?;
        Some(Event { id, time_text, time: time.to_utc() })
    }
}
