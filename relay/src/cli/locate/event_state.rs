//! What has become of an event, from what database, Kafka and relay say.

use pg_replication::EndLsn;
use serde_json::Value;

use super::committed_row::Committed;
use super::search::{SearchResult, SearchResults};
use crate::cli::RecordLocation;
use crate::config::Config;

/// What has become of the event.
#[derive(Debug, PartialEq, Eq)]
pub enum EventState {
    Acknowledged(RecordLocation),
    DeadLetter(RecordLocation),
    /// The relay has still to deliver it.
    Waiting(String),
    /// It was delivered, and the record is not there any more.
    Removed(String),
    NotCommitted(String),
    Unknown(String),
}

/// The answer: what is in Kafka counts more than what the checkpoint says.
pub fn state_of(
    config: &Config,
    row: &Result<Option<Committed>, String>,
    searched: &SearchResults,
    relay: &Result<Value, String>,
) -> EventState {
    let row = match row {
        Err(why) => return EventState::Unknown(format!("the row cannot be found: {why}")),
        Ok(None) => return EventState::NotCommitted(not_committed(config)),
        Ok(Some(row)) => row,
    };
    let location = |search: &SearchResult| match search {
        SearchResult::Found(location) => Some(location.clone()),
        _ => None,
    };
    let topic = searched.topic.as_ref();
    if let Some(location) = topic.and_then(|topic| location(topic.as_ref().ok()?)) {
        return EventState::Acknowledged(location);
    }
    if let Some(location) = searched.dead_letters.as_ref().and_then(location) {
        return EventState::DeadLetter(location);
    }
    let ended_early = |search: &SearchResult| match search {
        SearchResult::Incomplete(why) => Some(why.clone()),
        _ => None,
    };
    let early = topic.and_then(|topic| ended_early(topic.as_ref().ok()?));
    let early = early.or_else(|| searched.dead_letters.as_ref().and_then(ended_early));
    match (row.confirmed, topic, early) {
        (_, Some(Err(why)), _) => EventState::Waiting(format!("it has no topic: {why}")),
        (Some(false), ..) => EventState::Waiting(why_waiting(relay)),
        (_, _, Some(why)) => EventState::Unknown(why),
        (Some(true), ..) => EventState::Removed(
            "the checkpoint counts it as delivered, and no record has its id: Kafka's retention has removed the record, or the relay \
             began after the row was written (source.start: Now), or it was routed to another topic"
                .to_owned(),
        ),
        (None, ..) => EventState::Waiting(why_waiting(relay)),
    }
}

/// Whether the relay has read the row: certainly if it has read to the end that the server's WAL had when the row was seen.
/// Less says nothing, because the commit may be anywhere before that end.
pub fn has_read(row: &Committed, state: &EventState, relay: &Result<Value, String>) -> bool {
    let received = relay.as_ref().ok().and_then(|status| status.get("receivedLsn")?.as_str()?.parse().ok());
    state.record().is_some()
        || row.confirmed == Some(true)
        || received.is_some_and(|end: EndLsn| end >= row.server)
}

fn not_committed(config: &Config) -> String {
    format!(
        "{} has no row with this id: its transaction is still open, was rolled back, or never wrote it; or retention has removed the \
         row (retention.keepHours: {})",
        config.source.table, config.retention.keep_hours
    )
}

/// The relay's problem, or how far behind it is.
fn why_waiting(relay: &Result<Value, String>) -> String {
    let status = match relay {
        Ok(status) => status,
        Err(why) => return format!("no relay delivers it: {why}"),
    };
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    match status.get("problem").filter(|problem| problem.is_object()) {
        Some(problem) => {
            let [reason, message, remedy] = ["reason", "message", "remedy"].map(|name| text(problem, name));
            format!("the relay reports {reason}: {message}; {remedy}")
        }
        None => {
            let lag = status.get("lagSeconds").and_then(Value::as_f64).unwrap_or_default();
            format!("the relay is {}, {lag:.3} s behind", text(status, "phase"))
        }
    }
}

impl EventState {
    /// One word, for machines.
    pub fn name(&self) -> &'static str {
        match self {
            EventState::Acknowledged(_) => "acknowledged",
            EventState::DeadLetter(_) => "deadLetter",
            EventState::Waiting(_) => "waiting",
            EventState::Removed(_) => "removed",
            EventState::NotCommitted(_) => "notCommitted",
            EventState::Unknown(_) => "unknown",
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        match self {
            EventState::Acknowledged(location) => format!("acknowledged: {location}"),
            EventState::DeadLetter(location) => {
                format!("dead letter: {location}; 'outbox-relay dead-letters list' says why")
            }
            EventState::Waiting(why) => format!("waiting: {why}"),
            EventState::Removed(why) => format!("removed: {why}"),
            EventState::NotCommitted(why) => format!("not committed: {why}"),
            EventState::Unknown(why) => format!("unknown: {why}"),
        }
    }

    /// The record, or that of the dead letter.
    pub fn record(&self) -> Option<&RecordLocation> {
        match self {
            EventState::Acknowledged(location) | EventState::DeadLetter(location) => Some(location),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::progress::offset::Offset;
    use crate::testing::config;
    use crate::topics::partitions::PartitionNumber;

    fn committed(confirmed: Option<bool>) -> Committed {
        Committed {
            id: String::new(),
            occurred_at: None,
            event_type: None,
            key: None,
            route: None,
            confirmed,
            server: "0/20".parse().unwrap(),
        }
    }

    fn row(confirmed: Option<bool>) -> Result<Option<Committed>, String> {
        Ok(Some(committed(confirmed)))
    }

    fn location(topic: &str) -> RecordLocation {
        RecordLocation { topic: topic.to_owned(), partition: PartitionNumber(2), offset: Offset(7) }
    }

    fn not_found() -> SearchResult {
        SearchResult::NotFound { topic: "t".to_owned(), records: 3 }
    }

    fn judged(
        row: &Result<Option<Committed>, String>,
        topic: SearchResult,
        dead_letters: Option<SearchResult>,
    ) -> EventState {
        let searched = SearchResults { topic: Some(Ok(topic)), dead_letters };
        state_of(&config(), row, &searched, &Err("refused".to_owned()))
    }

    #[test]
    fn what_is_in_kafka_counts_whatever_the_checkpoint_says() {
        for confirmed in [Some(true), Some(false), None] {
            let state = judged(&row(confirmed), SearchResult::Found(location("t")), None);
            assert_eq!(state, EventState::Acknowledged(location("t")));
            let state = judged(&row(confirmed), not_found(), Some(SearchResult::Found(location("dead"))));
            assert_eq!(state, EventState::DeadLetter(location("dead")));
        }
    }

    #[test]
    fn what_is_not_in_kafka_waits_was_removed_or_is_unknown() {
        assert_eq!(judged(&row(Some(false)), not_found(), None).name(), "waiting");
        assert_eq!(judged(&row(Some(true)), not_found(), None).name(), "removed");
        let early = || SearchResult::Incomplete("timed out".to_owned());
        assert_eq!(judged(&row(Some(true)), early(), None), EventState::Unknown("timed out".to_owned()));
        assert_eq!(judged(&row(Some(true)), not_found(), Some(early())).name(), "unknown");
        assert_eq!(judged(&row(Some(false)), early(), None).name(), "waiting");
        assert_eq!(judged(&Ok(None), not_found(), None).name(), "notCommitted");
        assert_eq!(judged(&Err("timed out".to_owned()), not_found(), None).name(), "unknown");
    }

    #[test]
    fn a_row_is_read_when_the_relay_is_past_it_or_has_delivered_it() {
        let (waiting, relay) = (EventState::Waiting(String::new()), |lsn| Ok(json!({"receivedLsn": lsn})));
        let read = |confirmed, state: &EventState, relay| has_read(&committed(confirmed), state, &relay);
        assert!(read(None, &waiting, relay("0/20")) && !read(None, &waiting, relay("0/1F")));
        assert!(read(Some(true), &waiting, relay("0/0")) && !read(Some(false), &waiting, relay("0/0")));
        assert!(read(None, &EventState::Acknowledged(location("t")), Err("no answer".to_owned())));
        assert!(!read(None, &waiting, Err("no answer".to_owned())));
    }

    #[test]
    fn a_row_without_a_topic_waits_with_the_reason() {
        let searched =
            SearchResults { topic: Some(Err("'x y' is not a topic name".to_owned())), dead_letters: None };
        let state = state_of(&config(), &row(Some(false)), &searched, &Err(String::new()));
        assert_eq!(state.text(), "waiting: it has no topic: 'x y' is not a topic name");
    }

    #[test]
    fn the_relays_problem_says_why_an_event_waits() {
        let status = json!({"phase": "streaming", "lagSeconds": 2.5, "problem": null});
        assert_eq!(why_waiting(&Ok(status)), "the relay is streaming, 2.500 s behind");
        let problem =
            json!({"reason": "TopicMissing", "message": "topic t does not exist", "remedy": "create it"});
        let status = json!({"phase": "streaming", "problem": problem});
        assert_eq!(
            why_waiting(&Ok(status)),
            "the relay reports TopicMissing: topic t does not exist; create it"
        );
    }
}
