//! The consumer at the end of the way: prints records as they arrive.

use std::time::SystemTime;

use sqlx::{Connection, PgConnection};
use testbed::records::{Record, Tail};

use super::in_time;
use crate::Failure;
use crate::paint::{faint, notable};
use crate::stack::{Stack, TOPIC};

/// Reads the topic and remembers how long events took.
pub struct Reader {
    tail: Tail,
    sql: PgConnection,
    seen: usize,
    latencies_ms: Vec<f64>,
}

impl Reader {
    /// Follows the topic from its beginning.
    pub async fn start(stack: &Stack) -> Result<Reader, Failure> {
        let tail = Tail::start(&stack.kafka.bootstrap(), &[TOPIC]).await?;
        let sql = PgConnection::connect(&stack.database_url()).await?;
        Ok(Reader { tail, sql, seen: 0, latencies_ms: Vec::new() })
    }

    /// Records seen.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Waits for `count` more and prints them.
    pub async fn show(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let (record, arrived) = self.next().await?;
            let took = self.since_commit(&record, arrived).await?;
            self.latencies_ms.push(took);
            let place = format!("{}[{}]@{}", record.topic, record.partition, record.offset);
            let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
            println!(
                "      {} {} {}  key {}  {}",
                notable("→"),
                // Padded before it is painted: escape sequences would count.
                notable(&format!("{:<22}", record.header("ce_type").unwrap_or("?"))),
                place,
                short(&key),
                faint(&format!("{took:.1} ms from COMMIT"))
            );
        }
        Ok(())
    }

    /// Waits for `count` more.
    pub async fn skip(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            self.next().await?;
        }
        Ok(())
    }

    /// Waits until `count` were seen in all.
    pub async fn until(&mut self, count: usize) -> Result<(), Failure> {
        self.skip(count.saturating_sub(self.seen)).await
    }

    /// Median and slowest, in milliseconds.
    pub fn latencies(&self) -> (String, String) {
        let mut sorted = self.latencies_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let shown = |value: Option<&f64>| value.map_or_else(|| "?".to_owned(), |value| format!("{value:.1}"));
        (shown(sorted.get(sorted.len() / 2)), shown(sorted.last()))
    }

    async fn next(&mut self) -> Result<(Record, SystemTime), Failure> {
        let tail = &self.tail;
        let record = in_time("the next record", async { Ok(tail.next().await?) }).await?;
        self.seen += 1;
        Ok((record, SystemTime::now()))
    }

    /// Milliseconds from the commit, as PostgreSQL timed it, to `arrived`. One machine, one clock.
    async fn since_commit(&mut self, record: &Record, arrived: SystemTime) -> Result<f64, Failure> {
        let committed = "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000)::float8
                         FROM outbox WHERE id = $1";
        let id = record.event_id().ok_or("a record without an event id")?;
        let committed: f64 = sqlx::query_scalar(committed).bind(id).fetch_one(&mut self.sql).await?;
        let arrived = arrived.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() * 1000.0;
        Ok((arrived - committed).max(0.0))
    }
}

/// The last characters of an id: UUIDv7 begin alike.
pub fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}
