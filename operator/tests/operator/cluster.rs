//! A cluster that knows the resource, and resources to give it.

use serde_json::{Value, json};
use testbed::kubernetes::{Cluster, Namespace, shared_cluster};
use tokio::sync::OnceCell;

/// What people apply.
pub const DEFINITION: &str = include_str!("../../../crds/outboxrelays.outbox.dev.yaml");

static DEFINED: OnceCell<()> = OnceCell::const_new();

/// A namespace of a cluster that knows the resource.
pub async fn namespace(purpose: &str) -> Namespace {
    let cluster = shared_cluster().await.unwrap();
    DEFINED.get_or_init(|| define(cluster)).await;
    cluster.namespace(purpose).await.unwrap()
}

/// Makes the resource known.
pub async fn define(cluster: &Cluster) {
    cluster.apply(DEFINITION).await.unwrap();
    cluster.until_established(&["outboxrelays.outbox.dev"]).await.unwrap();
}

pub fn relay(spec: &Value) -> Value {
    json!({"apiVersion": "outbox.dev/v1beta1", "kind": "OutboxRelay", "metadata": {"name": "shop"}, "spec": spec})
}

pub fn least() -> Value {
    json!({
        "source": {"postgres": {
            "host": "db", "database": "shop", "credentialsSecretRef": {"name": "credentials"},
            "publication": {"name": "outbox"}, "slot": {"name": "outbox"},
        }},
        "sink": {"kafka": {"bootstrapServers": "kafka:9092"}},
        "topics": [{"name": "events", "partitions": 3}],
    })
}

/// `least` with a value at a path; `null` takes it away.
pub fn with(mut spec: Value, path: &str, value: Value) -> Value {
    let (parent, last) = path.rsplit_once('/').unwrap();
    let members = spec.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        members.remove(last);
    } else {
        members.insert(last.to_owned(), value);
    }
    spec
}

pub async fn apply(namespace: &Namespace, object: &Value) -> Result<String, String> {
    let applied = namespace.kubectl_with(&["apply", "-f", "-"], &object.to_string()).await;
    applied.map_err(|error| error.to_string())
}
