//! `where`: what has become of one event. The database knows whether its row is *committed* and *confirmed*, Kafka whether
//! it is *acknowledged*, and the running relay why it is not. The first column names the source of each value.

mod committed_row;
mod event_state;
mod search;

use serde_json::{Value, json};

use self::committed_row::{Committed, find_row};
use self::event_state::{EventState, has_read, state_of};
use self::search::{SearchResult, SearchResults, search_all};
use super::lag::relay_status;
use super::present_routing::PresentRouting;
use super::{Format, print};
use crate::config::Config;
use crate::error::{RelayError, excerpt};
use crate::postgres::connection;

/// Prints what has become of the event; returns whether it is in Kafka.
pub async fn locate(config: &Config, id: &str, format: Format) -> Result<bool, RelayError> {
    let mut sql = connection::connect(&config.source, "where").await?;
    let row = find_row(&mut sql, config, id).await;
    drop(sql);
    let searched = match &row {
        Ok(Some(row)) => {
            let (config, id, since) = (config.clone(), row.id.clone(), row.occurred_at);
            let topic = PresentRouting::new(&config).topic(row.route.as_deref());
            let search = move || search_all(&config, topic, &id, since);
            let ended = tokio::task::spawn_blocking(search).await;
            ended.unwrap_or_else(|_| SearchResults::failed("the search failed"))
        }
        _ => SearchResults::default(),
    };
    let relay = relay_status(config.admin.listen).await;
    let state = state_of(config, &row, &searched, &relay);
    let is_there = matches!(state, EventState::Acknowledged(_));
    print(format, || to_text(&row, &searched, &relay, &state), || to_json(id, &row, &relay, &state));
    Ok(is_there)
}

fn to_json(
    id: &str,
    row: &Result<Option<Committed>, String>,
    relay: &Result<Value, String>,
    state: &EventState,
) -> Value {
    json!({
        "id": id,
        "state": state.name(),
        "message": state.text(),
        "committed": row.as_ref().ok().and_then(Option::as_ref),
        "read": row.as_ref().ok().and_then(Option::as_ref).map(|row| has_read(row, state, relay)),
        "record": state.record(),
        "relayPhase": relay.as_ref().ok().and_then(|status| status.get("phase")),
    })
}

fn to_text(
    row: &Result<Option<Committed>, String>,
    searched: &SearchResults,
    relay: &Result<Value, String>,
    state: &EventState,
) -> String {
    let mut lines = vec![state.text()];
    let mut line =
        |source: &str, what: &str, value: String| lines.push(format!("{source:<9} {what:<13} {value}"));
    match row {
        Ok(Some(row)) => {
            // Escaped, so that it stays on one line.
            let text = |value: &Option<String>| {
                let shown = value.as_ref().map(|value| excerpt(value).escape_debug().to_string());
                shown.unwrap_or_else(|| "NULL".to_owned())
            };
            let at = row.occurred_at.map_or_else(|| "yes".to_owned(), |at| at.to_rfc3339());
            line(
                "database",
                "committed",
                format!("{at}, type {}, key {}", text(&row.event_type), text(&row.key)),
            );
            let confirmed = match row.confirmed {
                Some(true) => "yes, by the checkpoint",
                Some(false) => "not yet",
                None => "unknown: the table has no column xid, or the checkpoint no snapshot yet",
            };
            line("database", "confirmed", confirmed.to_owned());
        }
        Ok(None) => line("database", "committed", "no row".to_owned()),
        Err(why) => line("database", "committed", format!("unknown: {why}")),
    }
    let found = |search: &SearchResult| match search {
        SearchResult::Found(location) => location.to_string(),
        SearchResult::NotFound { topic, records } => {
            format!("no, not among {records} records of {topic} since then")
        }
        SearchResult::Incomplete(why) => format!("unknown: {why}"),
    };
    match &searched.topic {
        Some(Ok(search)) => line("Kafka", "acknowledged", found(search)),
        Some(Err(why)) => line("Kafka", "acknowledged", format!("no: {why}")),
        None => {}
    }
    if let Some(search) = &searched.dead_letters {
        line("Kafka", "dead letter", found(search));
    }
    let phase = match relay {
        Ok(status) => status.get("phase").and_then(Value::as_str).unwrap_or("-").to_owned(),
        Err(why) => format!("no answer: {why}"),
    };
    if let Ok(Some(row)) = row {
        let read =
            if has_read(row, state, relay) { "yes" } else { "not certain: it has not read all WAL yet" };
        line("relay", "read", read.to_owned());
    }
    line("relay", "phase", phase);
    lines.join("\n")
}
