//! The finalizer: a resource is held until what its policies say is done, or cannot be done.

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::cleanup::{self, Pending};
use super::report::Report;
use super::{Context, RETRY_AFTER, ReconcileError, write_status};
use crate::events::EventType;
use crate::resource::OutboxRelay;
use crate::stores::Guarded;

const FINALIZER: &str = "outbox.dev/cleanup";

/// Whether the resource is held.
pub(super) fn is_held(relay: &impl ResourceExt) -> bool {
    relay.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// A resource that an older or newer version of the operator has written. Nothing is done about it, and nothing of it is taken for well; when
/// it is deleted, its finalizer is removed as for any other resource whose policies cannot be carried out.
///
/// # Errors
/// The API server refused something.
pub async fn reconcile_unreadable(
    relay: &Guarded,
    problem: &str,
    context: &Context,
) -> Result<Action, ReconcileError> {
    let (namespace, name) = (relay.namespace().unwrap_or_default(), relay.name_any());
    context.metrics.unreadable(&namespace, &name);
    tracing::error!(namespace, name, error = %problem, "the resource cannot be read; correct it, or use the operator that knows it");
    if relay.meta().deletion_timestamp.is_none() || !is_held(relay) {
        return Ok(Action::await_change());
    }
    if !cleanup::is_given_up(relay, Timestamp::now()) {
        return Ok(Action::requeue(RETRY_AFTER));
    }
    tracing::warn!(
        namespace,
        name,
        "finalizer removed; external resources may remain, which are not known here: delete them by hand"
    );
    context.metrics.deletions_given_up.inc();
    set_finalizer(relay, context, false).await?;
    Ok(Action::requeue(RETRY_AFTER))
}

/// Adds the finalizer, or removes it; returns whether that was done. The list as it was read is part of the request: no other finalizer is
/// lost, and where the resource has changed the next reconciliation does it.
pub(super) async fn set_finalizer(
    relay: &impl ResourceExt,
    context: &Context,
    is_wanted: bool,
) -> Result<bool, ReconcileError> {
    let mut finalizers: Vec<&str> = relay.finalizers().iter().map(String::as_str).collect();
    finalizers.retain(|finalizer| *finalizer != FINALIZER);
    if is_wanted {
        finalizers.push(FINALIZER);
    }
    let metadata = json!({"finalizers": finalizers, "resourceVersion": relay.resource_version()});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let api = context.namespaced::<PartialObjectMeta<OutboxRelay>>(relay);
    let (name, parameters) = (relay.name_any(), PatchParams::default());
    let patching = api.patch_metadata(&name, &parameters, &patch);
    match context.metrics.kubernetes("hold", patching).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        // It is gone.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        patched => Ok(patched.map(|_| true)?),
    }
}

/// Deletes what the policies of a resource say, and removes its finalizer once that is done, or cannot be done.
pub(super) async fn finalize(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    let within = cleanup::within(relay);
    let cleaned = tokio::time::timeout(within, cleanup::clean_up(relay, context)).await;
    match cleaned.unwrap_or(Err(Pending::Late { what: "what is to be deleted", within })) {
        Ok(()) => {
            set_finalizer(relay, context, false).await?;
        }
        Err(pending) if cleanup::is_given_up(relay, Timestamp::now()) => {
            if set_finalizer(relay, context, false).await? {
                let note = format!("what is left outside has to be deleted by hand: {pending}");
                context.publish_event(relay, EventType::Warning, "DeletionGivenUp", &note);
                context.metrics.deletions_given_up.inc();
            }
        }
        Err(pending) => {
            tracing::warn!(namespace = relay.namespace(), name = relay.name_any(), %pending, "deletion waits");
            let report = Report::of_deletion(relay, pending.to_string());
            write_status::write(relay, context, &report).await?;
        }
    }
    // By then it is gone, and what is cached of it goes; or it is tried again.
    Ok(Action::requeue(RETRY_AFTER))
}
