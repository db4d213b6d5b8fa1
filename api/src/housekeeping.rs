//! The housekeeper: abandons baskets nobody touches any more, forgets old idempotency keys, keeps the log's
//! partitions. One replica at a time does it, in small portions.

use std::sync::Arc;

use basket::application::ports::PortError;
use basket::application::{
    BasketChange, BasketCommand, CommandContext, CommandEnvelope, CommandId, Dispatch, DispatchError, Outcome,
};
use basket::domain::{AbandonReason, Principal};
use chrono::{SubsecRound, TimeDelta, Utc};
use uuid::Uuid;

use crate::config::Retention;
use crate::postgres::{Housekeeping, Idle};

/// The principal that abandons baskets.
const EXPIRY: &str = "expiry";

/// Keeps house for ever. What fails is tried again at the next round.
pub async fn keep_house(house: Housekeeping, bus: Arc<dyn Dispatch>, retention: Retention) {
    loop {
        tokio::time::sleep(retention.housekeeping_every).await;
        if let Err(error) = round(&house, &*bus, &retention).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "housekeeping failed; it is tried again"
            );
        }
    }
}

async fn round(house: &Housekeeping, bus: &dyn Dispatch, retention: &Retention) -> Result<(), DispatchError> {
    let Some(turn) = house.turn().await? else { return Ok(()) };
    let abandoned = abandon(house, bus, retention).await?;
    let keys = house.expire_keys(retention.keep_keys).await?;
    house.maintain_log(retention.keep_commands).await?;
    drop(turn);
    if abandoned + keys > 0 {
        tracing::info!(abandoned, keys, "housekeeping is done");
    }
    Ok(())
}

async fn abandon(
    house: &Housekeeping,
    bus: &dyn Dispatch,
    retention: &Retention,
) -> Result<u64, DispatchError> {
    let age = TimeDelta::from_std(retention.abandon_after).unwrap_or(TimeDelta::MAX);
    let Some(before) = Utc::now().checked_sub_signed(age) else { return Ok(0) };
    let (mut abandoned, mut after) = (0, None);
    loop {
        let idle = house.idle_baskets(before, after).await?;
        let Some(last) = idle.last() else { return Ok(abandoned) };
        after = Some(last.id);
        for basket in &idle {
            abandoned += u64::from(abandon_one(bus, *basket).await?);
        }
    }
}

/// A command like every other: in the log, with its event in the outbox. A basket that was touched since it was seen
/// has another version and stays.
async fn abandon_one(bus: &dyn Dispatch, idle: Idle) -> Result<bool, DispatchError> {
    let id = CommandId(Uuid::now_v7());
    let command = BasketCommand::Change {
        basket_id: idle.id,
        expected_version: Some(idle.version),
        change: BasketChange::Abandon { reason: AbandonReason::Expired },
    };
    let context = CommandContext {
        principal: Principal::service(EXPIRY),
        correlation_id: id.to_string(),
        traceparent: None,
        tracestate: None,
    };
    let received_at = Utc::now().trunc_subsecs(6);
    let envelope = CommandEnvelope { id, command, context, idempotency_key: None, received_at };
    let result = match bus.dispatch(&envelope).await {
        Ok(result) => result,
        Err(DispatchError::Port(PortError::Conflict(_))) => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(matches!(result.outcome, Outcome::Accepted(_)))
}
