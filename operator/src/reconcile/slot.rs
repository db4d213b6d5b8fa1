//! The slot as the relay has left it: the relay creates it, and the operator only observes it.

use outbox_relay::config::Config;
use outbox_relay::error::{ErrorKind, RelayError};
use outbox_relay::postgres::{checkpoint, slot};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::Context;
use crate::conditions::{ConditionState, Reason, Status};
use crate::resource::OutboxRelay;

/// Whether the relay can use its slot. `streaming` is whether the relay reports that it delivers.
pub(super) async fn observe(
    relay: &OutboxRelay,
    context: &Context,
    sql: &mut PgConnection,
    config: &Config,
    streaming: Status,
) -> Result<ConditionState, RelayError> {
    let name = &config.source.slot.name;
    let slot = slot::state(sql, name).await?;
    // A relay that streams exports the slot's metrics.
    let is_exported = streaming == Status::True;
    context.metrics.slot(relay, slot.as_ref().filter(|_| !is_exported));
    let lost = |how: &str| (&RelayError::new(ErrorKind::SlotLost, format!("slot {name}: {how}"))).into();
    Ok(match slot {
        Some(slot) if slot.database.as_ref().is_some_and(|database| *database != config.source.database) => {
            let database = slot.database.unwrap_or_default();
            let what = format!(
                "slot {name} belongs to database {database}: choose another name, slots are the server's"
            );
            ConditionState::no(ErrorKind::SlotUnsuitable, what)
        }
        Some(slot) if slot.plugin.as_deref() != Some("pgoutput") => {
            let what = format!("slot {name} has another plugin: choose another name");
            ConditionState::no(ErrorKind::SlotUnsuitable, what)
        }
        Some(slot) if slot.is_lost() => lost(&slot.loss_reason()),
        Some(_) => ConditionState::yes(Reason::Present, ""),
        None if slot_existed(sql, config).await? => lost(
            "it does not exist any more; rows that were committed since the checkpoint are not in a new slot's stream, and are still in the outbox table",
        ),
        None => check_slot_capacity(sql, name).await?,
    })
}

/// Whether the relay's checkpoint rests on a slot. A role that may not look is not told.
async fn slot_existed(sql: &mut PgConnection, config: &Config) -> Result<bool, RelayError> {
    let table = config.source.table.sibling(checkpoint::TABLE);
    let rests = "relay = $1 AND slot = $2 AND confirmed_lsn IS NOT NULL";
    let had = sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {table} WHERE {rests})")))
        .bind(&config.name)
        .bind(&config.source.slot.name)
        .fetch_one(sql)
        .await;
    match had.map_err(RelayError::from) {
        Err(error) if error.kind == ErrorKind::PermissionDenied => Ok(false),
        had => had,
    }
}

/// Whether the relay will find room for its slot.
async fn check_slot_capacity(sql: &mut PgConnection, slot: &str) -> Result<ConditionState, RelayError> {
    let (used, most): (i64, i64) = sqlx::query_as(
        "SELECT count(*), current_setting('max_replication_slots')::bigint FROM pg_replication_slots",
    )
    .fetch_one(sql)
    .await?;
    if used < most {
        let what = format!("the relay makes slot {slot} when it first starts");
        return Ok(ConditionState::no(Reason::WaitingForRelay, what));
    }
    let remedy = "drop one that is not read, or raise max_replication_slots";
    let what = format!("all {most} slots of the server are in use: {remedy}");
    Ok(ConditionState::no(Reason::NoFreeSlot, what))
}
