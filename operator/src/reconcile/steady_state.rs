//! The steady state: most of the time nothing has changed since the last reconciliation, and a quick check sees that without a request to
//! API server or database. What the relay itself watches (connection, slot and publication) it reports in its status.
//!
//! With kept connections, one thread and requeues at common ticks, 300 resources cost 0.6 % of a core instead of 1.9 %, measured over two
//! minutes; the aim is 1 % (docs/PERFORMANCE.md, "The operator with 300 resources"). That is why this is more than a fixed requeue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::pods::running_image;
use super::relay_status::RelayReport;
use super::report::{Progress, Report};
use super::side::KafkaAccess;
use super::{Context, relay_status, workload};
use crate::conditions::{ConditionType, Status};
use crate::resource::{OutboxRelay, OutboxRelayStatus};
use crate::topics::{Cluster, Topics};

/// How often each resource is checked again: what happens outside shows within 10 s.
const RESYNC_INTERVAL: Duration = Duration::from_secs(8);
/// Requeues are at ticks of this process's clock, so that many resources share one wake-up.
const TICK: Duration = Duration::from_secs(1);
/// So many resyncs in a row whose servers did not answer are as quick as others; then each pause is twice the one before,
const RESYNCS_BEFORE_BACKOFF: u32 = 3;
/// so many times: up to 64 s.
const MOST_DOUBLINGS: u32 = 3;
/// How long a successful reconciliation stays valid while the quick check sees no change. What shows neither to the relay
/// nor in the lists of topics, a topic's configuration for example, is repaired within this time.
const STEADY_STATE_TTL: Duration = Duration::from_secs(60);
/// The TTL of a resource is longer by up to this.
const MOST_SPREAD_MILLIS: u64 = 15_000;

/// A reconciliation that found everything as it should be.
pub(super) struct LastSuccess {
    at: Instant,
    /// Of the specification.
    generation: Option<i64>,
    /// As it was written.
    status: OutboxRelayStatus,
    topics: ObservedTopics,
}

/// The topics as that reconciliation saw them.
enum ObservedTopics {
    At(Cluster, Topics),
    /// Only the relay has access to them.
    NoAccess,
}

/// Whether everything is as the last reconciliation found it, as far as the quick check can see.
pub(super) async fn is_unchanged(relay: &OutboxRelay, context: &Context) -> bool {
    let cached = context.cache.of(relay);
    let (Some(last), Some(applied)) = (cached.last_success, cached.applied) else { return false };
    last.at.elapsed() < STEADY_STATE_TTL + spread(relay)
        && last.generation == relay.metadata.generation
        && Some(&last.status) == relay.status.as_ref()
        && applied.change_count == context.change_count(relay)
        && workload::available(relay, context, None).status == Status::True
        // Pods are watched apart from their Deployment, and may be seen later.
        && last.status.image == running_image(&context.pods(relay))
        && is_relay_unchanged(relay, context, &last.status).await
        && last.topics.are_unchanged(relay).await
}

/// Whether a relay streams still, and reports the same about a failover.
async fn is_relay_unchanged(relay: &OutboxRelay, context: &Context, before: &OutboxRelayStatus) -> bool {
    let RelayReport { streaming, failover_ready } = relay_status::observe(relay, context).await;
    let type_ = ConditionType::FailoverReady.to_string();
    let mut written = before.conditions.iter().filter(|condition| condition.type_ == type_);
    streaming.status == Status::True && written.any(|condition| failover_ready.is_written_as(condition))
}

/// What the quick check compares with: `None` where the reconciliation found something that is not as it should be.
pub(super) async fn last_success(
    relay: &OutboxRelay,
    report: &Report,
    status: OutboxRelayStatus,
) -> Option<Arc<LastSuccess>> {
    let Progress::Applied(access) = &report.progress else { return None };
    if !report.conditions.is_ready() {
        return None;
    }
    let topics = match access {
        KafkaAccess::RelayOnly => ObservedTopics::NoAccess,
        KafkaAccess::Operator(cluster) => {
            let topics = cluster.topics(&relay.spec.topic_names()).await.ok()?;
            ObservedTopics::At(cluster.clone(), topics)
        }
    };
    let generation = relay.metadata.generation;
    Some(Arc::new(LastSuccess { at: Instant::now(), generation, status, topics }))
}

impl ObservedTopics {
    async fn are_unchanged(&self, relay: &OutboxRelay) -> bool {
        let ObservedTopics::At(cluster, before) = self else { return true };
        cluster.topics(&relay.spec.topic_names()).await.is_ok_and(|topics| topics == *before)
    }
}

/// Spreads the reconciliations of resources that were created at the same time.
fn spread(relay: &OutboxRelay) -> Duration {
    let uid = relay.uid().unwrap_or_default();
    Duration::from_millis(uid.bytes().map(u64::from).sum::<u64>() * 61 % MOST_SPREAD_MILLIS)
}

/// When to check a resource again.
pub(super) fn next_resync(context: &Context) -> Action {
    let past_tick = context.since.elapsed().as_nanos() % TICK.as_nanos();
    Action::requeue(RESYNC_INTERVAL - Duration::from_nanos_u128(past_tick))
}

/// When to check a resource again whose database or Kafka did not answer `failures` times in a row.
pub(super) fn next_resync_after(context: &Context, failures: u32) -> Action {
    backoff(failures).map_or_else(|| next_resync(context), Action::requeue)
}

/// `None` is the usual interval. What does not answer takes time, and the others need it.
fn backoff(failures: u32) -> Option<Duration> {
    let more = failures.checked_sub(RESYNCS_BEFORE_BACKOFF).filter(|more| *more > 0)?;
    Some(RESYNC_INTERVAL * (1 << more.min(MOST_DOUBLINGS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_asked_less_and_less_often() {
        let seconds = |failures| backoff(failures).map(|pause| pause.as_secs());
        let pauses: Vec<_> = [0, 1, 3, 4, 5, 6, 7, u32::MAX].map(seconds).to_vec();
        assert_eq!(pauses, [None, None, None, Some(16), Some(32), Some(64), Some(64), Some(64)]);
    }
}
