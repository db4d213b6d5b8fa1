//! `audit`: compares the rows of the table with the records in Kafka, row by row.
//!
//! The relay itself relies on LSNs and offsets. An audit does not: it finds what those cannot show, such as a row that was
//! committed while the publication did not have its table.

mod compared_rows;
mod comparison;
mod report;
mod topic_records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};

use self::compared_rows::Page;
pub(super) use self::compared_rows::{MissingRow, Period};
#[cfg(test)]
pub(super) use self::comparison::Counts;
use self::comparison::{Compared, Comparison, MAX_REPLAYED, MAX_UNPAIRED, UnpairedRecords};
pub(super) use self::report::{Report, UnverifiableRow, shown};
use self::topic_records::{ReadTopic, TopicRecords};
use super::present_routing::PresentRouting;
use super::{Format, print};
use crate::config::Config;
use crate::error::RelayError;
use crate::kafka::client::{self, client_config};
use crate::kafka::topic_reader::{ReadError, failed};
use crate::kafka::verify::read_settings;
use crate::postgres::checkpoint;

/// Timeout of one request; a person is waiting for it.
const REQUEST: Duration = Duration::from_secs(10);

/// Which rows are compared with which topics.
#[derive(Clone, Debug)]
pub struct Scope {
    pub since: DateTime<Utc>,
    pub until: Option<DateTime<Utc>>,
    /// Topics besides those of the checkpoint and of the present routing.
    pub topics: Vec<String>,
}

/// Why rows and records could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("{0}")]
    Database(RelayError),
    #[error(transparent)]
    Kafka(#[from] ReadError),
    #[error("relay {0} has no checkpoint yet, so no row counts as delivered")]
    NotStarted(String),
    #[error("the period is empty: there are no rows from {0} to {1}")]
    EmptyPeriod(DateTime<Utc>, DateTime<Utc>),
    /// Up to this time, they were not too many.
    #[error(
        "more than {MAX_UNPAIRED} rows and records have no counterpart, or more than {MAX_REPLAYED} events were replayed; audit a \
         shorter period, with --until {}", shown(*.0)
    )]
    TooDifferent(DateTime<Utc>),
    #[error("the comparison failed: {0}")]
    Failed(#[from] JoinError),
}

impl From<RelayError> for AuditError {
    fn from(error: RelayError) -> Self {
        AuditError::Database(error)
    }
}

/// Prints what was found; returns whether every row is in Kafka once.
pub async fn audit(config: &Config, scope: &Scope, format: Format) -> Result<bool, AuditError> {
    let report = examine(config, scope).await?;
    print(format, || report.text(), || json!(report));
    Ok(report.is_clean())
}

/// Compares the rows with the records.
pub(super) async fn examine(config: &Config, scope: &Scope) -> Result<Report, AuditError> {
    let (source, mut sql) = (&config.source, compared_rows::connect(config).await?);
    // First the checkpoint, then the ends of the partitions: so the record of each confirmed row lies before them.
    let checkpoint = checkpoint::load(&mut sql, config).await?;
    let checkpoint = checkpoint.ok_or_else(|| AuditError::NotStarted(config.name.clone()))?;
    let delivered = checkpoint.delivered.as_text().to_owned();
    let period = compared_rows::limit_period(&mut sql, source, scope.since, scope.until).await?;
    if period.since >= period.until {
        return Err(AuditError::EmptyPeriod(period.since, period.until));
    }
    let mut names: BTreeSet<String> = checkpoint.evidence_starts().into_keys().collect();
    names.extend(scope.topics.iter().cloned());
    names.extend(config.delivery.dead_letters().map(str::to_owned));
    // After a move to another Kafka cluster, the checkpoint has only topics that have got an event there.
    let routing = PresentRouting::new(config);
    let routes = compared_rows::routes(&mut sql, config, period, &delivered).await?;
    names.extend(routes.iter().filter_map(|route| routing.topic(route.as_deref()).ok()));

    let compacted = compacted(config, &names).await?;
    let kafka = config.clone();
    let records = spawn_blocking(move || TopicRecords::open(&kafka, &names, &compacted, period)).await??;
    let pages = compared_rows::read(sql, source, period, delivered.clone());
    let (compared, topics) = spawn_blocking(move || compare(pages, records, period)).await??;
    let Compared { counts, out_of_order, missing, mut records } = compared;

    let mut sql = compared_rows::connect(config).await?;
    let missing = compared_rows::describe(&mut sql, config, &missing).await?;
    let oldest = compared_rows::oldest(&mut sql, source).await?;
    if !records.is_empty() {
        judge(&mut records, compared_rows::read(sql, source, period, delivered)).await?;
    }
    let (mut phantoms, duplicates) = records.into_phantoms_and_duplicates();
    // Retention may have removed rows during the audit.
    phantoms.retain(|record| oldest.is_some_and(|oldest| record.time >= oldest));
    let mut report = Report {
        period,
        counts,
        republished: 0,
        missing: Vec::new(),
        duplicates,
        phantoms,
        out_of_order,
        unverifiable: Vec::new(),
        topics,
    };
    report.classify(missing, config);
    Ok(report)
}

/// The topics that are compacted. A topic whose settings cannot be read counts as one that is not.
async fn compacted(config: &Config, names: &BTreeSet<String>) -> Result<BTreeSet<String>, ReadError> {
    let any = names.first().map_or("", String::as_str);
    let admin: Arc<AdminClient<_>> =
        client::create(&config.sink, &client_config(&config.sink), DefaultClientContext)
            .map_err(failed(any))?;
    let mut compacted = BTreeSet::new();
    for name in names {
        let settings = read_settings(&admin, name, REQUEST).await;
        if settings.is_ok_and(|settings| settings.compacted) {
            compacted.insert(name.clone());
        }
    }
    Ok(compacted)
}

/// Compares all pages with the records up to their time, and at the end with all others. Blocks.
fn compare(
    mut pages: mpsc::Receiver<Result<Page, RelayError>>,
    mut records: TopicRecords,
    period: Period,
) -> Result<(Compared, BTreeMap<String, ReadTopic>), AuditError> {
    let mut comparison = Comparison::default();
    let mut compared_to = period.since;
    loop {
        let page = pages.blocking_recv().transpose()?;
        let until = page.map(|page| {
            page.rows.into_iter().for_each(|row| comparison.on_row(row));
            compared_to.max(page.latest)
        });
        records.read(until, &mut comparison)?;
        if comparison.is_full() {
            return Err(AuditError::TooDifferent(compared_to));
        }
        let Some(until) = until else { return Ok((comparison.finish(), records.into_topics())) };
        compared_to = until;
    }
}

/// Reads the rows a second time, to tell the second records of a row from records without a row.
async fn judge(
    records: &mut UnpairedRecords,
    mut pages: mpsc::Receiver<Result<Page, RelayError>>,
) -> Result<(), RelayError> {
    while let Some(page) = pages.recv().await {
        page?.rows.iter().for_each(|row| records.on_row(row));
    }
    Ok(())
}

impl Report {
    /// Adds rows without a record: to those that are missing, or to those of which that is not certain.
    fn classify(&mut self, rows: Vec<MissingRow>, config: &Config) {
        let (routing, dead_letters) = (PresentRouting::new(config), config.delivery.dead_letters());
        for row in rows {
            if row.is_republished {
                self.republished += 1;
                continue;
            }
            let doubt = match routing.topic(row.route.as_deref()) {
                Ok(topic) => {
                    let mut topics = [Some(topic.as_str()), dead_letters].into_iter().flatten();
                    topics.find_map(|topic| self.doubt(topic, &row))
                }
                Err(why) => Some(format!("it has no topic under the present routing: {why}")),
            };
            match doubt {
                None => self.missing.push(row),
                Some(reason) => self.unverifiable.push(UnverifiableRow { row, reason }),
            }
        }
    }

    /// Why a row may have been delivered to this topic, as a record or a dead letter, although none is there.
    fn doubt(&self, topic: &str, row: &MissingRow) -> Option<String> {
        let Some(read) = self.topics.get(topic) else {
            return Some(format!("topic {topic} was not read; add --topic {topic}"));
        };
        if read.compacted {
            return Some(format!(
                "topic {topic} is compacted: a later event of the key replaces an earlier one"
            ));
        }
        let removed = read.complete_since.filter(|since| row.occurred_at < *since);
        removed.map(|since| format!("topic {topic}: retention has removed records from before {since}"))
    }
}
