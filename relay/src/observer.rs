//! Looks at the slot from outside, once a second, over a connection of its own, so that metrics and `/status` go on
//! while the stream is away; and at the partitions of the outbox, less often.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;
use sqlx::postgres::PgConnection;

use crate::config::Config;
use crate::maintenance;
use crate::metrics::Metrics;
use crate::source::{self, SlotState};
use crate::status::Status;
use crate::trouble::Trouble;

/// Truth within 10 s, at the price of one cheap statement a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look that takes longer is given up: the server does not answer.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// Truth within 10 s here, too; the look counts rows of the DEFAULT partition.
const LOOK_AT_PARTITIONS_EVERY: Duration = Duration::from_secs(5);

/// Runs until the process ends.
pub async fn observe(config: Config, status: Status, metrics: Metrics) {
    let mut connection = None;
    let mut partitions_seen: Option<Instant> = None;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let looked = tokio::time::timeout(LOOK_WITHIN, look(&config, &mut connection)).await;
        match looked {
            Ok(Ok(slot)) => show(slot, &status, &metrics),
            // What is wrong with the source is the session's to say; the connection is made anew at the next look.
            Ok(Err(_)) | Err(_) => connection = None,
        }
        metrics.lag_seconds.set(status.lag_seconds());
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

async fn look(config: &Config, connection: &mut Option<PgConnection>) -> Result<Option<SlotState>, Trouble> {
    let sql = match connection {
        Some(sql) => sql,
        None => connection.insert(source::connect(&config.source, "observer").await?),
    };
    Ok(source::slot_state(sql, &config.source.slot.name).await?)
}

fn show(slot: Option<SlotState>, status: &Status, metrics: &Metrics) {
    let seen = slot.clone().unwrap_or_default();
    let behind = |lsn: Option<EndLsn>| {
        seen.current
            .zip(lsn)
            .map_or(0, |(current, lsn)| current.lsn().as_u64().saturating_sub(lsn.lsn().as_u64()))
    };
    metrics.unconfirmed_wal_bytes.set(clamp(behind(seen.confirmed)));
    metrics.retained_wal_bytes.set(clamp(behind(seen.restart)));
    metrics.slot_safe_wal_bytes.set(seen.safe_wal_bytes.unwrap_or(-1));
    metrics.slot_active.set(i64::from(seen.active_pid.is_some()));
    metrics.set_wal_status(seen.wal_status.as_deref());
    status.slot(slot);
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
