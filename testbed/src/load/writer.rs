//! One writer: a connection, and the part of the log it answers for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::dice::Dice;
use super::plan::{Plan, Savepoint, Segment};
use super::{Fate, LoadOptions, Log, Written, digest};

/// A server that has not answered for this long is not waited for; longer than any pause a test makes.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before a new connection: a server that restarts is back in about a second.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// The event type of every row of the load.
const EVENT_TYPE: &str = "load.written.v1";

pub(super) struct Writer {
    url: String,
    options: Arc<LoadOptions>,
    dice: Dice,
    insert: Arc<str>,
    topic: Arc<str>,
    event_type: Arc<str>,
    keys: Vec<Arc<str>>,
    committed: Arc<AtomicU64>,
    stopped: watch::Receiver<bool>,
    log: Log,
}

/// Why a transaction did not run to its end.
enum Broken {
    /// The server refused a statement; the connection is still good.
    Refused,
    /// The connection is gone.
    Disconnected,
}

impl Writer {
    pub(super) fn new(
        url: &str,
        number: usize,
        options: Arc<LoadOptions>,
        committed: Arc<AtomicU64>,
        stopped: watch::Receiver<bool>,
    ) -> Writer {
        let insert = format!(
            "INSERT INTO {} (id, aggregatetype, aggregateid, type, payload, headers)
             SELECT id, $2, $3, $4, payload, $6
             FROM unnest($1::uuid[], $5::jsonb[]) AS new (id, payload)
             RETURNING id, payload::text",
            options.table
        );
        Writer {
            url: url.to_owned(),
            // Far apart, so that no writer repeats another's choices.
            dice: Dice::new(options.seed.wrapping_add((number as u64) << 32)),
            insert: insert.into(),
            topic: options.topic.as_str().into(),
            event_type: EVENT_TYPE.into(),
            keys: (0..options.keys.max(1)).map(|key| format!("key-{key}").into()).collect(),
            options,
            committed,
            stopped,
            log: Log::default(),
        }
    }

    /// Writes until told to stop, across any number of connections.
    pub(super) async fn run(mut self) -> Log {
        let mut due = Instant::now();
        while !*self.stopped.borrow() {
            let Ok(Ok(mut connection)) = timeout(STATEMENT_DEADLINE, PgConnection::connect(&self.url)).await
            else {
                sleep(RECONNECT_AFTER).await;
                continue;
            };
            while !*self.stopped.borrow() {
                let plan = Plan::draw(&self.options, &mut self.dice);
                due = self.pace(due, &plan).await;
                if let Err(Broken::Disconnected) = self.transaction(&mut connection, &plan).await {
                    break;
                }
            }
        }
        self.log
    }

    /// Waits for the plan's turn and returns when the next one is due. After an outage the rate is kept, not made up
    /// for: a burst would measure something else.
    async fn pace(&mut self, due: Instant, plan: &Plan) -> Instant {
        let Some(rate) = self.options.rate else { return due };
        let due = due.max(Instant::now() - Duration::from_secs(1));
        tokio::select! {
            () = sleep_until(due) => {}
            _ = self.stopped.changed() => {}
        }
        let rows: usize = plan.segments.iter().map(|segment| segment.rows).sum();
        let writers = self.options.writers.max(1);
        due + Duration::from_secs_f64((rows * writers) as f64 / rate.max(0.001))
    }

    async fn transaction(&mut self, connection: &mut PgConnection, plan: &Plan) -> Result<(), Broken> {
        let mut kept = Vec::new();
        let body = self.body(connection, plan, &mut kept).await;
        let end = match (&body, plan.rollback) {
            (Ok(()), false) => {
                let fate = fate_of(timeout(STATEMENT_DEADLINE, run(connection, "COMMIT")).await);
                self.record(kept, fate);
                return if fate == Fate::Indeterminate { Err(Broken::Disconnected) } else { Ok(()) };
            }
            (Ok(()), true) | (Err(Broken::Refused), _) => self.plain(connection, "ROLLBACK").await,
            (Err(Broken::Disconnected), _) => Err(Broken::Disconnected),
        };
        // COMMIT was never sent, so whatever happened to the session, the rows are not there.
        self.record(kept, Fate::RolledBack);
        end
    }

    /// Everything between BEGIN and the end; `kept` gets the rows that a COMMIT would make permanent.
    async fn body(
        &mut self,
        connection: &mut PgConnection,
        plan: &Plan,
        kept: &mut Vec<Written>,
    ) -> Result<(), Broken> {
        self.plain(connection, "BEGIN").await?;
        for segment in &plan.segments {
            if segment.savepoint != Savepoint::None {
                self.plain(connection, "SAVEPOINT part").await?;
            }
            let rows = self.insert(connection, segment).await?;
            match segment.savepoint {
                Savepoint::None => kept.extend(rows),
                Savepoint::Released => {
                    kept.extend(rows);
                    self.plain(connection, "RELEASE SAVEPOINT part").await?;
                }
                Savepoint::RolledBack => {
                    self.record(rows, Fate::RolledBack);
                    self.plain(connection, "ROLLBACK TO SAVEPOINT part").await?;
                }
            }
        }
        Ok(())
    }

    /// Takes the key's lock and its next numbers, then inserts the rows with one statement.
    async fn insert(&self, connection: &mut PgConnection, segment: &Segment) -> Result<Vec<Written>, Broken> {
        let Some(key) = self.keys.get(segment.key).cloned() else { return Ok(Vec::new()) };
        let count = i64::try_from(segment.rows).unwrap_or(i64::MAX);
        let last: i64 = self
            .answer(
                sqlx::query_scalar("UPDATE load_key SET seq = seq + $2 WHERE key = $1 RETURNING seq")
                    .bind(&*key)
                    .bind(count)
                    .fetch_one(&mut *connection),
            )
            .await?;
        let numbered: BTreeMap<Uuid, i64> =
            (last - count + 1..=last).map(|key_seq| (Uuid::now_v7(), key_seq)).collect();
        let filler = "x".repeat(self.options.filler_bytes);
        let ids: Vec<Uuid> = numbered.keys().copied().collect();
        let payloads: Vec<Json<serde_json::Value>> = numbered
            .values()
            .map(|key_seq| Json(serde_json::json!({ "key": *key, "key_seq": key_seq, "filler": filler })))
            .collect();
        let headers = BTreeMap::from([("load-key".to_owned(), key.to_string())]);
        let inserted = self
            .answer(
                sqlx::query(AssertSqlSafe(Arc::clone(&self.insert)))
                    .bind(ids)
                    .bind(&self.options.aggregatetype)
                    .bind(&*key)
                    .bind(EVENT_TYPE)
                    .bind(payloads)
                    .bind(Json(&headers))
                    .fetch_all(connection),
            )
            .await?;
        let written = inserted.iter().filter_map(|row| {
            let id: Uuid = row.try_get(0).ok()?;
            let payload: String = row.try_get(1).ok()?;
            Some(Written {
                id,
                topic: self.topic.clone(),
                key: key.clone(),
                key_seq: *numbered.get(&id)?,
                event_type: self.event_type.clone(),
                payload: Some(digest(payload.as_bytes())),
                headers: headers.clone(),
                fate: Fate::RolledBack,
            })
        });
        Ok(written.collect())
    }

    async fn plain(&self, connection: &mut PgConnection, sql: &'static str) -> Result<(), Broken> {
        self.answer(run(connection, sql)).await
    }

    async fn answer<T>(&self, statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Broken> {
        match timeout(STATEMENT_DEADLINE, statement).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if session_survives(&error) => Err(Broken::Refused),
            Ok(Err(_)) | Err(_) => Err(Broken::Disconnected),
        }
    }

    fn record(&mut self, rows: Vec<Written>, fate: Fate) {
        if fate == Fate::Committed {
            self.committed.fetch_add(rows.len() as u64, Ordering::Relaxed);
        }
        for row in rows {
            self.log.push(Written { fate, ..row });
        }
    }
}

async fn run(connection: &mut PgConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(|_| ())
}

/// Only an ERROR says that the server has refused to commit. A FATAL can come after the commit record was written,
/// while the session waits for a standby.
fn fate_of(commit: Result<Result<(), sqlx::Error>, tokio::time::error::Elapsed>) -> Fate {
    match commit {
        Ok(Ok(())) => Fate::Committed,
        Ok(Err(error)) if session_survives(&error) => Fate::RolledBack,
        Ok(Err(_)) | Err(_) => Fate::Indeterminate,
    }
}

/// Whether the error is an ERROR of the server: FATAL and PANIC end the session, anything else broke the connection.
fn session_survives(error: &sqlx::Error) -> bool {
    use sqlx::postgres::{PgDatabaseError, PgSeverity};
    let database = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    database.is_some_and(|error| matches!(error.severity(), PgSeverity::Error))
}
