//! The loop: which resources to look at, and when.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller, Error};
use kube::runtime::watcher;
use tokio::sync::watch;

use crate::reconcile::{Context, RETRY_AFTER, ReconcileError, reconcile};
use crate::resource::OutboxRelay;

/// One resource that cannot be read, written by an older or newer version perhaps, must not keep all others from being
/// watched.
type Guarded = DeserializeGuard<OutboxRelay>;

/// Passes wait for servers most of the time; a few at once keep one server that is away from holding up the others.
const PASSES_AT_ONCE: u16 = 8;

/// Runs until `stop` turns true, and finishes what is under way.
pub async fn run(context: Context, mut stop: watch::Receiver<bool>) {
    let passes = Controller::new(context.everywhere::<Guarded>(), watcher::Config::default())
        .owns(context.everywhere::<Deployment>(), watcher::Config::default())
        .with_config(Config::default().concurrency(PASSES_AT_ONCE))
        .graceful_shutdown_on(async move { drop(stop.wait_for(|stop| *stop).await) })
        .run(guarded, again, Arc::new(context));
    passes
        .for_each(async |pass| {
            match pass {
                // Said where it happened.
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                Err(Error::QueueError(error)) => {
                    tracing::warn!(%error, "cannot watch resources: is the definition applied, and may the operator read them?");
                }
                // It was deleted before its turn came.
                Err(error) => tracing::debug!(%error, "a pass ended early"),
            }
        })
        .await;
}

async fn guarded(relay: Arc<Guarded>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    match &relay.0 {
        Ok(relay) => reconcile(relay, &context).await,
        Err(invalid) => {
            let (namespace, name) = (relay.namespace(), relay.name_any());
            tracing::error!(namespace, name, error = %invalid.error, "the resource cannot be read; correct it, or use the operator that knows it");
            Ok(Action::await_change())
        }
    }
}

fn again(relay: Arc<Guarded>, error: &ReconcileError, _: Arc<Context>) -> Action {
    tracing::warn!(namespace = relay.namespace(), name = relay.name_any(), %error, "will be tried again");
    Action::requeue(RETRY_AFTER)
}
