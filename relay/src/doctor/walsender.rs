//! Checks of what the walsender waits for: replies of the relay, and standbys.

use pg_replication::FAILOVER_SINCE;
use process::Finding;
use sqlx::postgres::PgConnection;

use crate::config::{Config, Failover};
use crate::error::{ErrorKind, RelayError};

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

/// A slot that `synchronized_standby_slots` lists.
#[derive(sqlx::FromRow)]
struct StandbySlot {
    name: String,
    kind: Option<String>,
    active: Option<bool>,
    lost: Option<bool>,
}

/// Whether the stream of a failover slot would wait for missing standbys (PostgreSQL 17 and newer).
pub async fn standbys(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "standbys";
    if !is_failover_slot(sql, config).await? {
        return Ok(Finding::ok(CHECK, "the slot is no failover slot: delivery waits for no standby"));
    }
    let listed: Vec<StandbySlot> = sqlx::query_as(
        "SELECT named.name, s.slot_type AS kind, s.active,
                s.wal_status = 'lost' OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL AS lost
         FROM (SELECT trim(both ' \"' FROM listed) AS name
               FROM unnest(string_to_array(current_setting('synchronized_standby_slots', true), ',')) listed) named
         LEFT JOIN pg_replication_slots s ON s.slot_name = named.name WHERE named.name <> ''",
    )
    .fetch_all(sql)
    .await?;
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

impl StandbySlot {
    /// The problem with this slot, and whether it is permanent: a standby may be restarting.
    fn fault(&self) -> Option<(String, bool)> {
        let name = &self.name;
        match (self.kind.as_deref(), self.lost, self.active) {
            (None, ..) => Some((format!("slot {name}, which does not exist"), true)),
            (Some("logical"), ..) => Some((format!("slot {name}, which is a logical slot"), true)),
            (_, Some(true), _) => Some((format!("slot {name}, which is invalidated"), true)),
            (.., Some(false)) => Some((format!("slot {name}, which no standby reads"), false)),
            _ => None,
        }
    }
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
