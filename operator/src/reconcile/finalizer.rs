//! The finalizer: a resource is held until what its policies say is done, or cannot be done.

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::cleanup::{self, Pending};
use super::{Context, Pass, RETRY_AFTER, ReconcileError};
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

/// Adds the finalizer, or takes it away; answers whether that was done. The list as it was read is part of the request: no other finalizer is
/// lost, and where the resource has changed the next reconciliation does it.
pub(super) async fn set_finalizer(
    relay: &impl ResourceExt,
    context: &Context,
    held: bool,
) -> Result<bool, ReconcileError> {
    let mut finalizers: Vec<&str> = relay.finalizers().iter().map(String::as_str).collect();
    finalizers.retain(|finalizer| *finalizer != FINALIZER);
    if held {
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

/// Lets a resource go that is being deleted, once what its policies say is done, or cannot be done.
pub(super) async fn finalize(relay: &OutboxRelay, context: &Context) -> Result<Action, ReconcileError> {
    let mut pass = Pass::new(relay, context);
    let (namespace, name) = (relay.namespace(), relay.name_any());
    let within = cleanup::within(relay);
    let cleaned = tokio::time::timeout(within, pass.clean_up()).await;
    if let Err(pending) = cleaned.unwrap_or(Err(Pending::Late { what: "what is to be deleted", within })) {
        if !cleanup::is_given_up(relay, Timestamp::now()) {
            tracing::warn!(namespace, name, %pending, "deletion waits");
            pass.findings.deletion_waits(pending.to_string());
            pass.write_status().await?;
            return Ok(Action::requeue(RETRY_AFTER));
        }
        if set_finalizer(relay, context, false).await? {
            let note = format!("what is left outside has to be deleted by hand: {pending}");
            context.publish_event(relay, EventType::Warning, "DeletionGivenUp", &note);
            context.metrics.deletions_given_up.inc();
        }
    } else {
        set_finalizer(relay, context, false).await?;
    }
    // By then it is gone, and what is remembered of it goes.
    Ok(Action::requeue(RETRY_AFTER))
}
