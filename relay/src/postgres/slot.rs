//! The slot, and how far the server's WAL has come.

use std::collections::BTreeMap;
use std::time::Duration;

use pg_replication::EndLsn;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgConnection;
use sqlx::types::Text;

use crate::error::RelayError;
use crate::status::SlotState;
use crate::topics::kafka_time::KafkaTime;

/// Queries the slot. `to_jsonb`, because the view has different columns in each version.
pub async fn state(sql: &mut PgConnection, slot: &str) -> Result<Option<SlotState>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT to_jsonb(s) AS slot, pg_current_wal_lsn()::text AS current,
                extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8
                    AS inactive_for,
                (SELECT current_setting('synchronized_standby_slots', true) FROM pg_stat_activity a
                 WHERE a.pid = s.active_pid AND a.wait_event = 'WaitForStandbyConfirmation') AS standbys
         FROM pg_replication_slots s WHERE slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(&mut *sql)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let slot: BTreeMap<String, Value> = row.try_get::<sqlx::types::Json<_>, _>("slot")?.0;
    let text = |name: &str| slot.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| slot.get(name).and_then(Value::as_i64);
    let flag = |name: &str| slot.get(name).and_then(Value::as_bool).unwrap_or_default();
    let lsn = |name: &str| text(name).and_then(|text| text.parse().ok());
    Ok(Some(SlotState {
        plugin: text("plugin"),
        database: text("database"),
        temporary: flag("temporary"),
        two_phase: flag("two_phase"),
        active_pid: number("active_pid"),
        wal_status: text("wal_status"),
        invalidation_reason: text("invalidation_reason"),
        confirmed: lsn("confirmed_flush_lsn"),
        restart: lsn("restart_lsn"),
        safe_wal_bytes: number("safe_wal_size"),
        current: row.try_get("current").ok().map(|Text(lsn)| lsn),
        inactive_for: row
            .try_get::<Option<f64>, _>("inactive_for")?
            .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        waits_for_standbys: row.try_get("standbys")?,
    }))
}

pub async fn server_start_time(sql: &mut PgConnection) -> Result<KafkaTime, RelayError> {
    let milliseconds = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint";
    Ok(KafkaTime(sqlx::query_scalar(milliseconds).fetch_one(&mut *sql).await?))
}

/// The server's flush LSN: nothing committed at or beyond it has left the server.
pub async fn flush_lsn(sql: &mut PgConnection) -> Result<EndLsn, RelayError> {
    let Text(lsn): Text<EndLsn> =
        sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text").fetch_one(&mut *sql).await?;
    Ok(lsn)
}

/// Drops the slot that an interrupted relay left. PostgreSQL refuses to drop a slot that is in use.
pub async fn drop_own(sql: &mut PgConnection, slot: &str) -> Result<(), RelayError> {
    sqlx::query(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name = $1 AND plugin = 'pgoutput' AND database = current_database()",
    )
    .bind(slot)
    .execute(&mut *sql)
    .await?;
    Ok(())
}
