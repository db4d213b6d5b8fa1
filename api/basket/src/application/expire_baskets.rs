//! The use case "expire baskets": abandons open baskets that were not changed for long.
//!
//! A basket that cannot be abandoned stops no other: it is reported and tried again later, each time after a longer wait.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use uuid::Uuid;

use super::command::{BasketChange, BasketCommand, CommandContext, CommandEnvelope, CommandId, Outcome};
use super::dispatch::{Dispatch, DispatchError};
use super::ports::{BoxFuture, PortError};
use crate::domain::{AbandonReason, BasketId, Principal, Version};

/// The part of this service that abandons baskets.
const EXPIRY: &str = "expiry";
/// How long a basket that failed waits at first, and at most.
const FIRST_WAIT: TimeDelta = TimeDelta::minutes(1);
const LONGEST_WAIT: TimeDelta = TimeDelta::days(1);
/// A run ends after so many failures: each of them is reported. The next run continues behind them.
const MOST_FAILURES: usize = 100;

/// An open basket that was not changed for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleBasket {
    /// Its id.
    pub id: BasketId,
    /// The version that was seen.
    pub version: Version,
}

/// Finds the baskets that may have expired.
pub trait IdleBaskets: Send {
    /// Open baskets that were last changed before `before`: a batch in the order of their ids, behind `after`. An empty
    /// batch MUST mean that there are no more.
    fn find(
        &mut self,
        before: DateTime<Utc>,
        after: Option<BasketId>,
    ) -> BoxFuture<'_, Result<Vec<IdleBasket>, PortError>>;
}

/// The result of one run.
#[derive(Debug, Default)]
pub struct Expired {
    /// How many baskets were abandoned.
    pub abandoned: u64,
    /// The baskets that could not be, and why.
    pub failed: Vec<(BasketId, DispatchError)>,
}

/// A basket that failed.
#[derive(Clone, Copy, Debug)]
struct Postponed {
    failures: u32,
    until: DateTime<Utc>,
}

/// Abandons baskets, and remembers those that failed from one run to the next.
#[derive(Debug, Default)]
pub struct ExpireBaskets {
    postponed: HashMap<BasketId, Postponed>,
}

impl ExpireBaskets {
    /// Abandons the baskets that were last changed more than `after` before `now`. Ends early if the store is not
    /// available, or after a hundred failures.
    pub async fn run(
        &mut self,
        bus: &dyn Dispatch,
        idle: &mut dyn IdleBaskets,
        now: DateTime<Utc>,
        after: TimeDelta,
    ) -> Result<Expired, PortError> {
        let Some(before) = now.checked_sub_signed(after) else { return Ok(Expired::default()) };
        let (mut expired, mut met, mut last) = (Expired::default(), HashSet::new(), None);
        loop {
            let batch = idle.find(before, last).await?;
            let Some(end) = batch.last() else { break };
            last = Some(end.id);
            for basket in batch {
                self.try_one(bus, basket, now, &mut expired).await?;
                if self.postponed.contains_key(&basket.id) {
                    met.insert(basket.id);
                }
                if expired.failed.len() >= MOST_FAILURES {
                    return Ok(expired);
                }
            }
        }
        // A basket that was changed or closed meanwhile needs no memory any more.
        self.postponed.retain(|id, _| met.contains(id));
        Ok(expired)
    }

    async fn try_one(
        &mut self,
        bus: &dyn Dispatch,
        basket: IdleBasket,
        now: DateTime<Utc>,
        expired: &mut Expired,
    ) -> Result<(), PortError> {
        let earlier = self.postponed.get(&basket.id).copied();
        if earlier.is_some_and(|postponed| now < postponed.until) {
            return Ok(());
        }
        match abandon(bus, basket).await {
            Ok(abandoned) => expired.abandoned += u64::from(abandoned),
            Err(DispatchError::Port(error @ PortError::Unavailable(_))) => return Err(error),
            Err(error) => {
                let failures = earlier.map_or(0, |postponed| postponed.failures);
                let until = now + wait(failures);
                self.postponed.insert(basket.id, Postponed { failures: failures.saturating_add(1), until });
                expired.failed.push((basket.id, error));
            }
        }
        Ok(())
    }
}

fn wait(failures: u32) -> TimeDelta {
    // Twelve times doubled is more than the longest wait.
    (FIRST_WAIT * (1 << failures.min(12))).min(LONGEST_WAIT)
}

/// A command like every other: in the log, with its event in the outbox. A basket that was changed since it was seen
/// has another version and stays.
async fn abandon(bus: &dyn Dispatch, idle: IdleBasket) -> Result<bool, DispatchError> {
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
    match bus.dispatch(&envelope).await {
        Ok(result) => Ok(matches!(result.outcome, Outcome::Accepted(_))),
        Err(DispatchError::Port(PortError::Conflict(_))) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_day() {
        let waits: Vec<i64> =
            [0, 1, 2, 10, 11, 30, 31, 32, u32::MAX].map(wait).iter().map(TimeDelta::num_minutes).collect();
        assert_eq!(waits, [1, 2, 4, 1024, 1440, 1440, 1440, 1440, 1440]);
    }
}
