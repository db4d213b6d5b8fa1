//! The record of an event in Kafka.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use outbox::header;
use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::cli::RecordLocation;
use crate::config::Config;
use crate::kafka::topic_reader::{ReadError, TopicReader, failed};
use crate::progress::offset::Offset;
use crate::topics::partitions::PartitionNumber;

/// Records that are searched at most, and for how long: a person is waiting.
const MAX_RECORDS: u64 = 5_000_000;
const SEARCH_WITHIN: Duration = Duration::from_secs(60);

/// What the search of a topic found.
#[derive(Debug)]
pub enum SearchResult {
    Found(RecordLocation),
    /// Among so many records.
    NotFound {
        topic: String,
        records: u64,
    },
    /// It ended early, and why.
    Incomplete(String),
}

/// What Kafka has.
#[derive(Debug, Default)]
pub struct SearchResults {
    /// `Err` if the row has no topic, and why. `None` if nothing was searched.
    pub topic: Option<Result<SearchResult, String>>,
    pub dead_letters: Option<SearchResult>,
}

impl SearchResults {
    /// The search did not take place.
    pub fn failed(why: &str) -> SearchResults {
        SearchResults { topic: Some(Ok(SearchResult::Incomplete(why.to_owned()))), dead_letters: None }
    }
}

/// Searches the topic, and the dead-letter topic where the record is not in it. Blocks.
pub fn search_all(
    config: &Config,
    topic: Result<String, String>,
    id: &str,
    since: Option<DateTime<Utc>>,
) -> SearchResults {
    let topic = topic.map(|topic| search(config, &topic, id, since));
    let dead_letters = match &topic {
        Ok(SearchResult::Found(_)) => None,
        _ => config.delivery.dead_letters().map(|topic| search(config, topic, id, since)),
    };
    SearchResults { topic: Some(topic), dead_letters }
}

/// Looks for the record in all partitions, because there may have been fewer when it was written. Its timestamp is the row's
/// or, where that does not fit the topic, a later one: no record before the row's time can be it.
fn search(config: &Config, topic: &str, id: &str, since: Option<DateTime<Utc>>) -> SearchResult {
    let source = config.source.event_source();
    let (mut found, mut records, began) = (None, 0, Instant::now());
    let mut is_full = false;
    let read = TopicReader::new(&config.sink, "where").map_err(failed(topic)).and_then(|reader| {
        reader.read(topic, since, |message| {
            if has(message, header::CE_ID, id) && has(message, header::CE_SOURCE, &source) {
                found = Some(RecordLocation {
                    topic: topic.to_owned(),
                    partition: PartitionNumber(message.partition()),
                    offset: Offset(message.offset()),
                });
                return ControlFlow::Break(());
            }
            records += 1;
            is_full = records >= MAX_RECORDS || began.elapsed() >= SEARCH_WITHIN;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    match (found, read) {
        (Some(location), _) => SearchResult::Found(location),
        (None, Err(ReadError::NoSuchTopic(topic))) => SearchResult::NotFound { topic, records: 0 },
        (None, Err(error)) => SearchResult::Incomplete(error.to_string()),
        (None, Ok(())) if is_full => SearchResult::Incomplete(format!(
            "not among the first {records} records of {topic} since it was written"
        )),
        (None, Ok(())) => SearchResult::NotFound { topic: topic.to_owned(), records },
    }
}

fn has(message: &BorrowedMessage<'_>, name: &str, value: &str) -> bool {
    let headers = message.headers();
    headers.is_some_and(|headers| {
        headers.iter().any(|header| header.key == name && header.value == Some(value.as_bytes()))
    })
}
