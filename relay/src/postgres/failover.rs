//! Queries of what a failover would find: the slot on the primary, and its copies on the standbys.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures::future::join_all;
use pg_replication::Host;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgConnection;
use sqlx::types::{Json, Text};
use tokio::time::timeout;

use super::connection;
use crate::config::{Access, Source};
use crate::error::{RelayError, chain};
use crate::status::failover_readiness::{PrimaryState, SlotCopy, Standby, StandbyState};

/// Longer than any query of a server that responds. Connecting has separate limits.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A slot that `synchronized_standby_slots` lists.
#[derive(sqlx::FromRow)]
pub struct StandbySlot {
    name: String,
    kind: Option<String>,
    active: Option<bool>,
    lost: Option<bool>,
}

impl StandbySlot {
    /// The problem with this slot, and whether it is permanent: a standby may be restarting.
    pub fn fault(&self) -> Option<(String, bool)> {
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

/// The slots that `synchronized_standby_slots` lists (PostgreSQL 17 and newer).
pub async fn listed_standby_slots(sql: &mut PgConnection) -> Result<Vec<StandbySlot>, sqlx::Error> {
    sqlx::query_as(
        "SELECT named.name, s.slot_type AS kind, s.active,
                s.wal_status = 'lost' OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL AS lost
         FROM (SELECT trim(both ' \"' FROM listed) AS name
               FROM unnest(string_to_array(current_setting('synchronized_standby_slots', true), ',')) listed) named
         LEFT JOIN pg_replication_slots s ON s.slot_name = named.name WHERE named.name <> ''",
    )
    .fetch_all(sql)
    .await
}

/// What the primary shows of a slot; `None` if it does not exist. Programs that archive WAL read physical slots, too, and
/// are no standbys.
pub async fn primary(sql: &mut PgConnection, slot: &str) -> Result<Option<PrimaryState>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system,
                coalesce((to_jsonb(s) ->> 'failover')::boolean, false) AS failover,
                confirmed_flush_lsn::text AS confirmed,
                ARRAY(SELECT p.slot_name::text FROM pg_replication_slots p
                      LEFT JOIN pg_stat_activity a ON a.pid = p.active_pid
                      WHERE p.slot_type = 'physical' AND p.active
                        AND coalesce(a.application_name, '') NOT IN ('pg_receivewal', 'barman_receive_wal')
                      ORDER BY p.slot_name) AS standby_slots
         FROM pg_replication_slots s WHERE slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(&mut *sql)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let is_failover_slot = row.try_get("failover")?;
    let listed = if is_failover_slot { listed_standby_slots(sql).await? } else { Vec::new() };
    let confirmed: Option<Text<_>> = row.try_get("confirmed")?;
    Ok(Some(PrimaryState {
        system_identifier: row.try_get("system")?,
        is_failover_slot,
        confirmed: confirmed.map(|Text(lsn)| lsn),
        unread_standby_slots: listed.iter().filter_map(StandbySlot::fault).map(|(fault, _)| fault).collect(),
        standby_slots: row.try_get("standby_slots")?,
    }))
}

/// What a standby shows of a slot; `None` if the server is no standby.
async fn standby(sql: &mut PgConnection, slot: &str) -> Result<Option<StandbyState>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT pg_is_in_recovery() AS is_standby,
                (SELECT system_identifier::text FROM pg_control_system()) AS system,
                nullif(current_setting('primary_slot_name', true), '') AS primary_slot,
                current_setting('sync_replication_slots', true) = 'on' AS synchronises,
                current_setting('hot_standby_feedback') = 'on' AS sends_feedback,
                (SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = $1) AS slot",
    )
    .bind(slot)
    .fetch_one(sql)
    .await?;
    if !row.try_get::<bool, _>("is_standby")? {
        return Ok(None);
    }
    let primary_slot: Option<String> = row.try_get("primary_slot")?;
    let obstacles = [
        (row.try_get::<Option<bool>, _>("synchronises")? == Some(true), "sync_replication_slots is off"),
        (row.try_get("sends_feedback")?, "hot_standby_feedback is off"),
        (primary_slot.is_some(), "primary_slot_name is not set"),
    ];
    let obstacles = obstacles.into_iter().filter(|(is_set, _)| !is_set).map(|(_, what)| what).collect();
    let slot: Option<Json<BTreeMap<String, Value>>> = row.try_get("slot")?;
    let copy = slot.map_or(SlotCopy::Missing, |Json(slot)| copy(&slot));
    Ok(Some(StandbyState { system_identifier: row.try_get("system")?, primary_slot, copy, obstacles }))
}

/// A row of `pg_replication_slots` on a standby.
fn copy(slot: &BTreeMap<String, Value>) -> SlotCopy {
    let flag = |name: &str| slot.get(name).and_then(Value::as_bool).unwrap_or_default();
    let text = |name: &str| slot.get(name).and_then(Value::as_str);
    if !flag("synced") {
        SlotCopy::NotSynchronized
    } else if let Some(why) = text("invalidation_reason") {
        SlotCopy::Invalidated(why.to_owned())
    } else if text("wal_status") == Some("lost") {
        SlotCopy::Invalidated("its WAL was removed".to_owned())
    } else if flag("temporary") {
        SlotCopy::Temporary
    } else {
        SlotCopy::Usable { confirmed: text("confirmed_flush_lsn").and_then(|lsn| lsn.parse().ok()) }
    }
}

/// The connections to the standbys, which are kept from one query to the next.
#[derive(Default)]
pub struct Standbys(HashMap<Host, PgConnection>);

impl Standbys {
    /// Queries the servers that `source.host` leads to, except `primary`. A server that is no standby is left out.
    pub async fn query(
        &mut self,
        source: &Source,
        primary: Option<&Host>,
    ) -> Result<Vec<Standby>, RelayError> {
        let access = connection::access(source)?;
        let mut found = Vec::new();
        let mut addresses: Vec<Host> = Vec::new();
        for host in &access.hosts {
            match host.resolve(connection::CONNECT_WITHIN).await {
                Ok(resolved) => addresses.extend(resolved),
                Err(error) => {
                    found.push(Standby { host: host.clone(), state: Err(chain(&error)) });
                }
            }
        }
        let mut kept = std::mem::take(&mut self.0);
        // Two names, or one name twice, may have the same address.
        let mut seen = HashSet::new();
        addresses.retain(|address| Some(address) != primary && seen.insert(address.clone()));
        let queries = addresses.into_iter().map(|address| {
            let kept = kept.remove(&address);
            let access = &access;
            async move { (query(source, access, &address, kept).await, address) }
        });
        for (answer, host) in join_all(queries).await {
            match answer {
                Ok((sql, state)) => {
                    self.0.insert(host.clone(), sql);
                    found.extend(state.map(|state| Standby { host, state: Ok(state) }));
                }
                Err(why) => found.push(Standby { host, state: Err(why) }),
            }
        }
        Ok(found)
    }
}

async fn query(
    source: &Source,
    access: &Access,
    host: &Host,
    kept: Option<PgConnection>,
) -> Result<(PgConnection, Option<StandbyState>), String> {
    let mut sql = match kept {
        Some(sql) => sql,
        None => {
            let connected = connection::connect_to_any(source, access, host, "standby observer").await;
            connected.map_err(|error| error.detail)?
        }
    };
    let state = timeout(ANSWER_WITHIN, standby(&mut sql, &source.slot.name)).await;
    let state = state.map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))?;
    let state = state.map_err(|error| RelayError::from(error).detail)?;
    Ok((sql, state))
}
