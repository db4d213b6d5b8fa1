//! Checks of what the walsender waits for, replies of the relay and standbys, and of what standbys have of the slot.

use pg_replication::{FAILOVER_SINCE, Host};
use process::Finding;
use sqlx::postgres::PgConnection;

use crate::config::{Config, Failover};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::failover::{self, StandbySlot, Standbys};
use crate::status::failover_readiness::{FailoverReadiness, FailoverReason, FailoverState};

pub async fn timeout(sql: &mut PgConnection) -> Result<Finding, RelayError> {
    const CHECK: &str = "walsender timeout";
    let (milliseconds, shown): (i64, String) = sqlx::query_as(
        "SELECT setting::bigint, current_setting(name) FROM pg_settings WHERE name = 'wal_sender_timeout'",
    )
    .fetch_one(sql)
    .await?;
    if milliseconds > 0 {
        return Ok(Finding::ok(CHECK, format!("wal_sender_timeout is {shown}")));
    }
    let message = "wal_sender_timeout is 0: PostgreSQL keeps the slot of a vanished client in use; the relay sets 60s for its own stream";
    Ok(Finding::warn(CHECK, message, "set it to 60s, the default, for other clients"))
}

/// Whether the stream of a failover slot would wait for missing standbys (PostgreSQL 17 and newer).
pub async fn standbys(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "standbys";
    if !is_failover_slot(sql, config).await? {
        return Ok(Finding::ok(CHECK, "the slot is no failover slot: delivery waits for no standby"));
    }
    let listed = failover::listed_standby_slots(sql).await?;
    let faults: Vec<(String, bool)> = listed.iter().filter_map(StandbySlot::fault).collect();
    if faults.is_empty() {
        let message = match listed.len() {
            0 => "synchronized_standby_slots is empty: delivery waits for no standby".to_owned(),
            count => format!(
                "delivery waits for {count}, listed in synchronized_standby_slots, and all are connected"
            ),
        };
        return Ok(Finding::ok(CHECK, message));
    }
    let texts: Vec<&str> = faults.iter().map(|(text, _)| text.as_str()).collect();
    let message =
        format!("delivery waits for standbys: synchronized_standby_slots lists {}", texts.join(", "));
    let remedy = ErrorKind::WaitingForStandby.remedy();
    Ok(if faults.iter().any(|(_, lasting)| *lasting) {
        Finding::problem(CHECK, message, remedy)
    } else {
        Finding::warn(CHECK, message, remedy)
    })
}

/// Whether delivery would continue from a promoted standby.
pub async fn failover(sql: &mut PgConnection, config: &Config, server: &Host) -> Result<Finding, RelayError> {
    const CHECK: &str = "failover";
    let primary = match failover::primary(sql, &config.source.slot.name).await {
        Ok(primary) => primary,
        Err(error) => {
            let message = format!("not known: {}", RelayError::from(error).detail);
            return Ok(Finding::warn(CHECK, message, FailoverReason::StandbyUnknown.remedy()));
        }
    };
    let standbys = Standbys::default().query(&config.source, Some(server)).await?;
    let FailoverReadiness { reason, message } = FailoverState { primary, standbys }.readiness();
    Ok(match reason.is_ready() {
        Some(true) => Finding::ok(CHECK, message),
        Some(false) => Finding::warn(CHECK, message, reason.remedy()),
        None if reason == FailoverReason::StandbyUnknown => {
            Finding::warn(CHECK, format!("not known: {message}"), reason.remedy())
        }
        None => Finding::ok(CHECK, format!("not known: {message}")),
    })
}

/// The state of the relay's slot, or of the slot it would create.
async fn is_failover_slot(sql: &mut PgConnection, config: &Config) -> Result<bool, RelayError> {
    let (version, failover): (i32, Option<bool>) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int / 10000,
                (SELECT coalesce((to_jsonb(s) ->> 'failover')::boolean, false)
                 FROM pg_replication_slots s WHERE slot_name = $1)",
    )
    .bind(&config.source.slot.name)
    .fetch_one(sql)
    .await?;
    let would_be = config.source.slot.failover == Failover::Auto
        && u32::try_from(version).is_ok_and(|version| version >= FAILOVER_SINCE);
    Ok(failover.unwrap_or(would_be))
}
