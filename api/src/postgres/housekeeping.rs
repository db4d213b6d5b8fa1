//! The statements of housekeeping: each works on one batch, so that nothing waits for it long.

use std::time::Duration;

use basket::application::expire_baskets::{IdleBasket, IdleBaskets};
use basket::application::ports::{BoxFuture, PortError};
use basket::domain::{BasketId, Version};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::ids::first_id_at;
use super::port_error;

/// Baskets or keys of one batch.
const BATCH: i64 = 500;
/// Longer than a statement may take: an answer that is later was lost on its way.
const ANSWERS_WITHIN: Duration = Duration::from_secs(35);

/// Waits for an answer of the database, but not for longer than it can take.
async fn bounded<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, PortError> {
    let answered = tokio::time::timeout(ANSWERS_WITHIN, answer).await;
    answered.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))).map_err(port_error)
}

/// Takes the lock of a job for as long as the session lasts, so that one replica at a time does it, and one that dies
/// does not keep it.
pub async fn try_lock(sql: &mut PgConnection, job: i32) -> Result<bool, PortError> {
    /// Tells these locks from others in the database: "bskt" in ASCII.
    const LOCKS: i32 = 0x6273_6b74;
    let taken = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)").bind(LOCKS).bind(job);
    bounded(taken.fetch_one(sql)).await
}

/// Finds open baskets over one session.
pub struct PostgresIdleBaskets<'a>(pub &'a mut PgConnection);

impl IdleBaskets for PostgresIdleBaskets<'_> {
    fn find(
        &mut self,
        before: DateTime<Utc>,
        after: Option<BasketId>,
    ) -> BoxFuture<'_, Result<Vec<IdleBasket>, PortError>> {
        Box::pin(async move {
            // A basket is not changed before it is created, and its id tells when that was: the bound on the id ends
            // the scan at the first basket that is too young.
            let rows = sqlx::query_as(
                "SELECT id, version FROM basket
                 WHERE status = 'open' AND updated_at < $1 AND id < $2 AND ($3::uuid IS NULL OR id > $3)
                 ORDER BY id LIMIT $4",
            )
            .bind(before)
            .bind(first_id_at(before))
            .bind(after.map(|id| id.0))
            .bind(BATCH);
            let found: Vec<(Uuid, i64)> = bounded(rows.fetch_all(&mut *self.0)).await?;
            let idle = |(id, version)| IdleBasket { id: BasketId(id), version: Version(version) };
            Ok(found.into_iter().map(idle).collect())
        })
    }
}

/// Forgets a batch of idempotency keys older than `keep`; returns how many. The commands stay in the log.
pub async fn expire_keys(sql: &mut PgConnection, keep: Duration) -> Result<u64, PortError> {
    let expired = sqlx::query(
        "DELETE FROM idempotency_key WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM idempotency_key WHERE received_at < now() - make_interval(secs => $1)
             ORDER BY received_at LIMIT $2))",
    )
    .bind(keep.as_secs_f64())
    .bind(BATCH);
    Ok(bounded(expired.execute(sql)).await?.rows_affected())
}

/// What a call of `command_log_maintain` did.
#[derive(Debug, sqlx::FromRow)]
pub struct LogMaintenance {
    /// Partitions created.
    pub created: i32,
    /// Partitions dropped.
    pub dropped: i32,
    /// Rows of the default partition deleted.
    pub deleted: i32,
    /// Why something that is due was not done.
    pub held: Option<String>,
}

/// Creates the partitions of the log that are due, and drops what ended longer than `keep` ago.
pub async fn maintain_log(
    sql: &mut PgConnection,
    keep: Option<Duration>,
) -> Result<LogMaintenance, PortError> {
    let maintained = sqlx::query_as(
        "SELECT created, dropped, deleted, held FROM command_log_maintain(make_interval(secs => $1))",
    )
    .bind(keep.map(|keep| keep.as_secs_f64()));
    bounded(maintained.fetch_one(sql)).await
}
