//! Sends events of the table again, in the order of `seq`.
//!
//! Only rows that the checkpoint counts as delivered: the stream still has to deliver the others, and would deliver
//! them a second time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use outbox::column;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::ids::EventIds;
use super::other_topic::OtherTopic;
use super::{Replay, ReplayHandle, ReplayRejected, ReplaySource};
use crate::config::{Config, quote};
use crate::error::{ErrorKind, RelayError};
use crate::event::record::ce_time;
use crate::kafka::topic_reader::TopicReader;
use crate::postgres::checkpoint;
use crate::postgres::columns::text_form;
use crate::postgres::connection;
use crate::postgres::initial_rows::{self, RowsFor};
use crate::postgres::table::literal;
use crate::postgres::whole_row::{RowKey, WholeRows};

/// Number of rows that one query finds. Each is read separately when it is sent.
const PAGE_ROWS: u32 = 1_000;
/// Timeout of a statement. The client waits for the next line for a minute.
const STATEMENT_TIMEOUT: &str = "50s";
/// Longest name of a replay.
const MAX_NAME_CHARS: usize = 64;

/// Which rows to send again. A row has to meet all criteria.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    /// The value of header `ce_replay`.
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "EventIds::is_empty")]
    pub ids: EventIds,
    /// Values of column `seq`: exactly these rows, also where several have the same id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seqs: Vec<i64>,
    /// Written at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Written before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Maximum number of events per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// The topic to send to, instead of those that the present routing gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// A row that would be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct FoundRow {
    pub seq: i64,
    pub id: Option<String>,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub event_type: Option<String>,
    pub key: Option<String>,
}

impl Selection {
    /// Whether it names rows: a replay of everything has to be asked for by a time.
    fn has_criterion(&self) -> bool {
        !self.ids.is_empty() || !self.seqs.is_empty() || self.since.is_some()
    }

    fn condition(&self) -> String {
        let time = |time: DateTime<Utc>| literal(&ce_time(time));
        let is = |name: &str, value: &str| {
            format!("{} = {}", text_form(&format!("o.{}", quote(name))), literal(value))
        };
        let ids: Vec<String> = self.ids.iter().map(literal).collect();
        let seqs: Vec<String> = self.seqs.iter().map(i64::to_string).collect();
        let criteria = [
            (!seqs.is_empty()).then(|| format!("o.seq IN ({})", seqs.join(", "))),
            // In the type of the column, which finds them by its index.
            (!ids.is_empty()).then(|| format!("o.id IN ({})", ids.join(", "))),
            self.since.map(|since| format!("o.occurred_at >= {}", time(since))),
            self.until.map(|until| format!("o.occurred_at < {}", time(until))),
            self.event_type.as_ref().map(|event_type| is(column::TYPE, event_type)),
            self.key.as_ref().map(|key| is(column::AGGREGATE_ID, key)),
        ];
        criteria.into_iter().flatten().collect::<Vec<_>>().join(" AND ")
    }
}

impl ReplayHandle {
    /// Starts to send the rows of `selection` again. Each result is one line; the last line is a summary.
    pub fn replay_rows(
        &self,
        config: &Arc<Config>,
        selection: Selection,
    ) -> Result<mpsc::Receiver<Value>, ReplayRejected> {
        if !selection.has_criterion() {
            return Err(ReplayRejected::NothingSelected("'ids', 'seqs' or 'since'"));
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name = &selection.name;
        if !(1..=MAX_NAME_CHARS).contains(&name.len()) || !name.chars().all(is_allowed) {
            return Err(ReplayRejected::Name);
        }
        let (replay, answer) =
            self.begin(config, ReplaySource::Table(name.as_str().into()), selection.ids.clone())?;
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || run(replay, &selection, &runtime));
        Ok(answer)
    }
}

fn run(mut replay: Replay, selection: &Selection, runtime: &Handle) {
    let error = send_rows(&mut replay, selection, runtime).err();
    replay.finish(error, "no delivered row has this id");
}

fn send_rows(replay: &mut Replay, selection: &Selection, runtime: &Handle) -> Result<(), String> {
    let config = Arc::clone(&replay.config);
    let topics = TopicReader::new(&config.sink, "replay").map_err(|error| error.to_string())?;
    let failed = |error: RelayError| error.to_string();
    let mut rows = runtime.block_on(DeliveredRows::open(&config, selection)).map_err(failed)?;
    if let Some(topic) = &selection.topic {
        if rows.own_topics.contains(topic) {
            return Err(format!("the relay itself delivers to topic {topic}: leave 'topic' out"));
        }
        replay.other_topic = Some(OtherTopic::open(&config, topic, &topics, runtime.clone())?);
    }
    let whole = runtime.block_on(WholeRows::of(&mut rows.sql, &config)).map_err(failed)?;
    let pause = selection.rate.map(|rate| Duration::from_secs(1) / rate.max(1));
    loop {
        let page = runtime.block_on(rows.next_page()).map_err(failed)?;
        if page.is_empty() {
            return Ok(());
        }
        for found in page {
            let began = Instant::now();
            let row = runtime.block_on(whole.read(&mut rows.sql, RowKey::Seq(found.seq)));
            let row = row.map_err(|error| error.to_string());
            let row = row.and_then(|row| row.ok_or_else(|| "retention has removed the row".to_owned()));
            if replay.send(found.id, row, &topics).is_break() {
                return Ok(());
            }
            if let Some(pause) = pause {
                std::thread::sleep(pause.saturating_sub(began.elapsed()));
            }
        }
    }
}

/// The rows of a selection that the checkpoint counts as delivered.
pub struct DeliveredRows {
    sql: PgConnection,
    select: String,
    read_to: i64,
    /// The topics that the relay delivers to.
    own_topics: BTreeSet<String>,
}

impl DeliveredRows {
    pub async fn open(config: &Config, selection: &Selection) -> Result<DeliveredRows, RelayError> {
        let source = &config.source;
        let mut sql = connection::connect(source, "replay").await?;
        initial_rows::check_columns(&mut sql, source, RowsFor::Replay).await?;
        connection::require_all_rows(&mut sql, STATEMENT_TIMEOUT).await?;
        let checkpoint = checkpoint::load(&mut sql, config).await?.ok_or_else(|| {
            let what = format!("relay {} has no checkpoint yet, so no row counts as delivered", config.name);
            RelayError::new(ErrorKind::CheckpointLost, what)
        })?;
        let select = format!(
            "SELECT seq, {} AS id, {} AS type, {} AS key FROM {} o
             WHERE seq > $1 AND pg_visible_in_snapshot(xid, (SELECT {}::pg_snapshot)) AND {}
             ORDER BY seq LIMIT {PAGE_ROWS}",
            text_form("o.id"),
            text_form(&format!("o.{}", quote(column::TYPE))),
            text_form(&format!("o.{}", quote(column::AGGREGATE_ID))),
            source.table.quoted(),
            literal(checkpoint.delivered.as_text()),
            selection.condition(),
        );
        let mut own_topics: BTreeSet<String> = checkpoint.evidence_starts().into_keys().collect();
        own_topics.extend(config.delivery.dead_letters().map(str::to_owned));
        Ok(DeliveredRows { sql, select, read_to: -1, own_topics })
    }

    /// The next rows; none after the last.
    pub async fn next_page(&mut self) -> Result<Vec<FoundRow>, RelayError> {
        let select = AssertSqlSafe(self.select.as_str());
        let found: Vec<FoundRow> = sqlx::query_as(select).bind(self.read_to).fetch_all(&mut self.sql).await?;
        self.read_to = found.last().map_or(self.read_to, |last| last.seq);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_has_to_meet_all_criteria() {
        let selection: Selection = serde_json::from_value(json!({
            "name": "n", "ids": ["a'", "b"], "seqs": [7, 8], "since": "2026-11-24T10:00:00Z", "type": "t.v1",
        }))
        .unwrap();
        let condition = selection.condition();
        assert!(condition.starts_with("o.seq IN (7, 8) AND o.id "), "{condition}");
        let expected =
            ["IN ('a''', 'b') AND o.occurred_at >= '2026-11-24T10:00:00.000000Z' AND ", " = 't.v1'"];
        assert!(expected.iter().all(|part| condition.contains(part)), "{condition}");
        assert!(selection.has_criterion() && !Selection::default().has_criterion());
        let misspelt = serde_json::from_value::<Selection>(json!({"id": "a"}));
        assert!(misspelt.is_err(), "a typing error is no selection");
    }
}
