//! Maintains the partitions of the outbox table: creates them ahead and drops them behind with the table owner's
//! function `outbox_maintain`. It uses a dedicated connection, because checking all rows of a partition may take long.
//! Failures and partitions that cannot be dropped yet are reported and retried; delivery never waits for maintenance.

use std::time::{Duration, SystemTime};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::config::Config;
use crate::error::RelayError;
use crate::postgres::connection;
use crate::status::{Maintenance, Status};

/// Partitions are one day wide and created days ahead.
const MAINTAIN_EVERY: Duration = Duration::from_secs(3600);
/// After something due was not done: a lock was held, or a relay is behind. Each attempt to lock may keep writers
/// waiting for 200 ms, so not more often.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Longer than any call of a server that responds.
const CALL_WITHIN: Duration = Duration::from_secs(3600);

/// What one call of `outbox_maintain` did.
#[derive(Debug, sqlx::FromRow)]
struct Done {
    made: i32,
    dropped: i32,
    deleted: i32,
    held: Option<String>,
}

pub async fn maintain(config: Config, status: Status) {
    let mut last_logged = None;
    loop {
        let called = tokio::time::timeout(CALL_WITHIN, call_until_done(&config, &status)).await;
        let (held, error) = match called {
            Ok(Ok(held)) => (held, None),
            Ok(Err(error)) => (None, Some(error.detail)),
            Err(_) => (None, Some(format!("outbox_maintain has not returned within {CALL_WITHIN:?}"))),
        };
        let problem = error.as_ref().or(held.as_ref()).cloned();
        if problem != last_logged {
            log(held.as_deref(), error.as_deref());
            last_logged.clone_from(&problem);
        }
        status.set_maintenance(Maintenance { at: SystemTime::now(), held, error });
        tokio::time::sleep(if problem.is_none() { MAINTAIN_EVERY } else { TRY_AGAIN_AFTER }).await;
    }
}

/// Repeats the call while it does something: each call does a small part, because it keeps its locks until it ends.
/// Returns what could not be done.
async fn call_until_done(config: &Config, status: &Status) -> Result<Option<String>, RelayError> {
    let function = config.source.table.sibling("outbox_maintain");
    let call = format!("SELECT * FROM {function}(make_interval(hours => $1), make_interval(hours => $2))");
    let hours = |hours: u32| i32::try_from(hours).unwrap_or(i32::MAX);
    let server = status.server();
    let (mut sql, _) = connection::connect_first(&config.source, "maintenance", server.as_ref()).await?;
    let (mut made, mut dropped, mut deleted) = (0, 0, 0);
    let held = loop {
        let done: Done = sqlx::query_as(AssertSqlSafe(call.as_str()))
            .bind(hours(config.retention.keep_hours))
            .bind(hours(config.retention.ahead_hours))
            .fetch_one(&mut sql)
            .await?;
        made += done.made;
        dropped += done.dropped;
        deleted += i64::from(done.deleted);
        if done.made == 0 && done.dropped == 0 && done.deleted == 0 {
            break done.held;
        }
    };
    if made > 0 {
        tracing::info!(partitions = made, "created partitions ahead");
    }
    if dropped > 0 || deleted > 0 {
        tracing::info!(
            partitions = dropped,
            default_rows = deleted,
            "dropped partitions, and rows of the DEFAULT partition, that every relay has delivered"
        );
    }
    drop(sql.close().await);
    Ok(held)
}

fn log(held: Option<&str>, error: Option<&str>) {
    match (held, error) {
        (_, Some(error)) => tracing::warn!(
            error,
            "cannot maintain the partitions of the outbox; rows go to the DEFAULT partition, and old partitions are kept"
        ),
        (Some(held), None) => {
            tracing::warn!("some partitions of the outbox could not be maintained: {held}");
        }
        (None, None) => tracing::info!("the partitions of the outbox are fully maintained again"),
    }
}

/// The number of rows in the DEFAULT partition, and how many seconds ago the range of the oldest partition ended;
/// `None` for a table without `outbox_partition_state`, or a role without EXECUTE on it.
pub async fn partition_state(
    config: &Config,
    sql: &mut PgConnection,
) -> Result<Option<(i64, f64)>, sqlx::Error> {
    let function = config.source.table.sibling("outbox_partition_state");
    // Checked first: every denied call would be an error in the server log.
    let may_call: bool =
        sqlx::query_scalar("SELECT coalesce(has_function_privilege(to_regprocedure($1), 'EXECUTE'), false)")
            .bind(format!("{function}()"))
            .fetch_one(&mut *sql)
            .await?;
    if !may_call {
        return Ok(None);
    }
    let call = format!("SELECT default_rows, oldest_age FROM {function}()");
    sqlx::query_as(AssertSqlSafe(call)).fetch_optional(&mut *sql).await
}
