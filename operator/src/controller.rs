//! The loop: which resources to look at, and when.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::runtime::controller::{Config, Controller, Error};
use kube::runtime::watcher;
use tokio::sync::watch;

use crate::reconcile::{Context, again, reconcile};
use crate::resource::OutboxRelay;

/// Passes wait for servers most of the time; a few at once keep one server that is away from holding up the others.
const PASSES_AT_ONCE: u16 = 8;

/// Runs until `stop` turns true, and finishes what is under way. `namespace` is the only one looked at; all, when there is none.
pub async fn run(context: Context, namespace: Option<&str>, mut stop: watch::Receiver<bool>) {
    let client = context.client.clone();
    let (relays, deployments): (Api<OutboxRelay>, Api<Deployment>) = match namespace {
        Some(namespace) => (Api::namespaced(client.clone(), namespace), Api::namespaced(client, namespace)),
        None => (Api::all(client.clone()), Api::all(client)),
    };
    let passes = Controller::new(relays, watcher::Config::default())
        .owns(deployments, watcher::Config::default())
        .with_config(Config::default().concurrency(PASSES_AT_ONCE))
        .graceful_shutdown_on(async move { drop(stop.wait_for(|stop| *stop).await) })
        .run(reconcile, again, Arc::new(context));
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
