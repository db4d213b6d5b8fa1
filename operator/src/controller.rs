//! The loop: which resources to look at, and when.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, future};
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config, Error};
use tokio::sync::watch;

use crate::activity::Activity;
use crate::metrics::Metrics;
use crate::reconcile::{Context, MOST_AT_ONCE, ReconcileError, reconcile, reconcile_unreadable};
use crate::stores::{Guarded, Stores};

/// What is looked after.
pub struct Loop {
    controller: Controller<Guarded>,
    beside: futures::stream::BoxStream<'static, ()>,
}

/// Begins to watch `namespaces`, or all where there is none: what is seen, and the loops to [`run`].
pub fn watch(
    client: &kube::Client,
    namespaces: &[String],
    metrics: &Metrics,
    activity: &Activity,
) -> (Vec<Stores>, Vec<Loop>) {
    let places: Vec<Option<&str>> = match namespaces {
        [] => vec![None],
        named => named.iter().map(|namespace| Some(namespace.as_str())).collect(),
    };
    let begin = |place| {
        let (stores, controller, beside) = Stores::begin(client, place, metrics, activity);
        (stores, Loop { controller, beside: beside.boxed() })
    };
    places.into_iter().map(begin).unzip()
}

/// How long reconciliations may take to finish: less than a pod is given to end.
const FINISH_WITHIN: Duration = Duration::from_secs(20);

/// Runs until `stop` turns true, and finishes what is in progress. The loops then end, except one whose resources were never
/// listed, for want of rights for example.
pub async fn run(loops: Vec<Loop>, context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    let loops: Vec<_> =
        loops.into_iter().map(|one| run_one(one, Arc::clone(&context), stop.clone())).collect();
    let finished = async {
        drop(stop.wait_for(|stop| *stop).await);
        let all = context.permits.acquire_many(MOST_AT_ONCE.into());
        if tokio::time::timeout(FINISH_WITHIN, all).await.is_err() {
            tracing::warn!(
                "a reconciliation did not end within {FINISH_WITHIN:?}; the next operator does it again"
            );
        }
    };
    future::select(Box::pin(future::join_all(loops)), Box::pin(finished)).await;
}

async fn run_one(one: Loop, context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    let forgetting = Arc::clone(&context);
    let reconciliations = one
        .controller
        .with_config(Config::default().concurrency(MOST_AT_ONCE))
        .graceful_shutdown_on(async move { drop(stop.wait_for(|stop| *stop).await) })
        .run(guarded, again, context)
        .for_each(async |ended| {
            match ended {
                // Said where it happened.
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                Err(Error::QueueError(error)) => {
                    tracing::warn!(%error, "cannot watch resources: is the CRD applied, and may the operator read them?");
                }
                Err(Error::ObjectNotFound(gone)) => {
                    forgetting.forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                }
                Err(error) => tracing::debug!(%error, "a reconciliation ended early"),
            }
        });
    let beside = one.beside.for_each(|()| future::ready(()));
    future::select(Box::pin(reconciliations), Box::pin(beside)).await;
}

async fn guarded(relay: Arc<Guarded>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    for stores in context.stores() {
        stores.synced(&*relay).await?;
    }
    // Never closed.
    let _permit = context.permits.acquire().await.ok();
    match &relay.0 {
        Ok(relay) => reconcile(relay, &context).await,
        Err(invalid) => reconcile_unreadable(&relay, &invalid.error, &context).await,
    }
}

fn again(relay: Arc<Guarded>, error: &ReconcileError, context: Arc<Context>) -> Action {
    tracing::warn!(namespace = relay.namespace(), name = relay.name_any(), %error, "will be tried again");
    let failures = relay.0.as_ref().map_or(0, |relay| context.on_failure(relay));
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    Action::requeue(pause(failures, nanos))
}

/// Twice as long after each failure in a row, from 2 s to about 4 minutes; by chance down to half of it, so that what failed at once is
/// not tried at once.
fn pause(failures: u32, chance: u32) -> Duration {
    let longest = Duration::from_secs(1 << failures.clamp(1, 8));
    longest.mul_f64(0.5 + f64::from(chance % 1000) / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_not_the_same_for_all() {
        assert_eq!(pause(1, 0), Duration::from_secs(1));
        assert!(pause(1, 999) > Duration::from_millis(1990) && pause(1, 999) < Duration::from_secs(2));
        assert_eq!(pause(5, 0), Duration::from_secs(16));
        assert_eq!(pause(80, 0), Duration::from_secs(128));
    }
}
