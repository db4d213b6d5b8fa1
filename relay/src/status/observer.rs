//! Looks at the slot from outside, once a second, over a connection of its own, so that metrics and `/status` go on
//! while the stream is away; and at the partitions of the outbox, less often.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::postgres::checkpoint;

use crate::config::Config;
use crate::postgres::maintenance;
use crate::postgres::source::{self, SlotState};
use crate::status::metrics::Metrics;
use crate::status::{CheckpointSeen, Status};
use crate::trouble::Trouble;

/// Truth within 10 s, at the price of one cheap statement a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look that takes longer is given up: the server does not answer.
const LOOK_WITHIN: Duration = Duration::from_secs(3);
/// Truth within 10 s here, too; the look counts rows of the DEFAULT partition.
const LOOK_AT_PARTITIONS_EVERY: Duration = Duration::from_secs(5);

/// Runs until the process ends.
pub async fn observe(config: Config, status: Status, metrics: Metrics) {
    let mut connection = None;
    let mut partitions_seen: Option<Instant> = None;
    let mut refused = false;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let looked = tokio::time::timeout(LOOK_WITHIN, look(&config, &mut connection)).await;
        let failed = match looked {
            Ok(Ok((slot, checkpoint))) => {
                show(slot.clone().unwrap_or_default(), &metrics);
                status.slot(asked, slot, checkpoint);
                None
            }
            Ok(Err(trouble)) => Some(trouble.what),
            Err(_) => Some(format!("nothing within {LOOK_WITHIN:?}")),
        };
        metrics.connected.with_label_values(&["postgres"]).set(i64::from(failed.is_none()));
        if let Some(why) = failed {
            status.unseen(asked, why);
            // Made anew at the next look.
            connection = None;
        }
        metrics.lag_seconds.set(status.lag_seconds());
        metrics.slot_inactive_seconds.set(status.slot_inactive().as_secs_f64());
        metrics.heartbeat_age_seconds.set(status.heartbeat_age().map_or(-1.0, |age| age.as_secs_f64()));
        status.remember();
        if let Some(sql) = connection.as_mut() {
            let sent = tokio::time::timeout(LOOK_WITHIN, beat(sql, &status, &mut refused)).await;
            if sent.is_err() {
                status.heartbeat_not_sent();
                connection = None;
            }
        }
        if let Some(sql) = connection.as_mut()
            && partitions_seen.is_none_or(|at| at.elapsed() >= LOOK_AT_PARTITIONS_EVERY)
        {
            let look = maintenance::show_partitions(&config, sql, &metrics);
            match tokio::time::timeout(LOOK_WITHIN, look).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => connection = None,
            }
            partitions_seen = Some(Instant::now());
        }
    }
}

async fn look(
    config: &Config,
    connection: &mut Option<PgConnection>,
) -> Result<(Option<SlotState>, Option<CheckpointSeen>), Trouble> {
    let sql = match connection {
        Some(sql) => sql,
        None => connection.insert(source::connect(&config.source, "observer").await?),
    };
    let slot = source::slot_state(sql, &config.source.slot.name).await?;
    Ok((slot, look_at_checkpoint(config, sql).await?))
}

/// The relay's row, if there is one. That the table is missing, or may not be read, is the session's to say.
async fn look_at_checkpoint(
    config: &Config,
    sql: &mut PgConnection,
) -> Result<Option<CheckpointSeen>, sqlx::Error> {
    let table = config.source.table.sibling(checkpoint::TABLE);
    let select = format!(
        "SELECT confirmed_lsn::text AS confirmed, extract(epoch FROM clock_timestamp() - updated_at)::float8 AS age
         FROM {table} WHERE relay = $1"
    );
    let row = match sqlx::query(AssertSqlSafe(select)).bind(&config.name).fetch_optional(sql).await {
        Ok(Some(row)) => row,
        Ok(None) | Err(sqlx::Error::Database(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let confirmed: Option<String> = row.try_get("confirmed")?;
    let age: f64 = row.try_get("age")?;
    Ok(Some(CheckpointSeen {
        confirmed: confirmed.and_then(|text| text.parse().ok()).map(EndLsn::new),
        age: Duration::try_from_secs_f64(age.max(0.0)).unwrap_or_default(),
    }))
}

/// Sends a heartbeat if one is due. A role that may not is told once; delivery does not depend on it.
async fn beat(sql: &mut PgConnection, status: &Status, refused: &mut bool) {
    let Some((prefix, content)) = status.heartbeat_due() else { return };
    let message = sqlx::query("SELECT pg_logical_emit_message(false, $1, $2)").bind(prefix).bind(content);
    let Err(error) = message.execute(sql).await else { return };
    status.heartbeat_not_sent();
    if !std::mem::replace(refused, true) {
        let error = crate::trouble::chain(&error);
        tracing::warn!(error, "cannot send heartbeats; delivery goes on without them");
    }
}

fn show(seen: SlotState, metrics: &Metrics) {
    metrics.unconfirmed_wal_bytes.set(clamp(seen.behind(seen.confirmed).unwrap_or(0)));
    metrics.retained_wal_bytes.set(clamp(seen.behind(seen.restart).unwrap_or(0)));
    metrics.slot_safe_wal_bytes.set(seen.safe_wal_bytes.unwrap_or(-1));
    metrics.slot_active.set(i64::from(seen.active_pid.is_some()));
    metrics.set_wal_status(seen.wal_status.as_deref());
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
