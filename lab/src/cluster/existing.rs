//! An existing cluster, for trying things: none of its objects is changed, and what was created is removed.

use testbed::kubernetes::Cluster;

use crate::Failure;

/// The namespaces that are made.
const NAMESPACES: [&str; 4] = ["shop", "outbox-system", "servers", "monitoring"];
/// Groups of the kinds that are made known.
const GROUPS: [&str; 2] = ["outbox.dev", "monitoring.coreos.com"];
/// Roles and bindings that are in no namespace, besides those of the charts.
const RIGHTS: [&str; 3] = [
    "clusterrole/outbox-testbed-prometheus",
    "clusterrolebinding/outbox-testbed-prometheus",
    "clusterrolebinding/outbox-testbed-prometheus-operator",
];

/// Refuses a cluster where something of what would be made is there already.
pub async fn require_room(cluster: &Cluster) -> Result<(), Failure> {
    let there = cluster.kubectl(&["get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}"]).await?;
    let mut taken = kinds(cluster).await?;
    let ours = there.split(' ').filter(|name| NAMESPACES.contains(name));
    taken.extend(ours.map(|namespace| format!("namespace/{namespace}")));
    if taken.is_empty() {
        return Ok(());
    }
    let taken = taken.join(", ");
    Err(format!("this cluster has {taken} already: take one for trying things, or remove them first").into())
}

/// Removes all that was made, as far as it came.
pub async fn remove(cluster: &Cluster) -> Result<(), Failure> {
    for command in how_to_remove(cluster).await? {
        let mut words = command.split_whitespace();
        let (program, arguments) = (words.next(), words.collect::<Vec<_>>());
        match program {
            Some("helm") => cluster.helm(&arguments).await?,
            _ => cluster.kubectl(&arguments).await?,
        };
    }
    Ok(())
}

/// The commands that remove it. The relays first, while there is an operator to do it.
pub async fn how_to_remove(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let kinds = kinds(cluster).await?;
    let mut commands = vec![
        "kubectl delete crd/outboxrelays.outbox.dev --ignore-not-found --timeout=120s".to_owned(),
        "helm uninstall shop --namespace shop --ignore-not-found --wait".to_owned(),
        "helm uninstall outbox --namespace outbox-system --ignore-not-found --wait".to_owned(),
        format!("kubectl delete namespace {} --ignore-not-found --timeout=180s", NAMESPACES.join(" ")),
        format!("kubectl delete {} --ignore-not-found", RIGHTS.join(" ")),
    ];
    if !kinds.is_empty() {
        commands.push(format!("kubectl delete {} --ignore-not-found --timeout=120s", kinds.join(" ")));
    }
    Ok(commands)
}

/// Definitions of the kinds that are made known, as far as they are.
async fn kinds(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let known = cluster.kubectl(&["get", "crd", "-o", "jsonpath={.items[*].metadata.name}"]).await?;
    let ours = known
        .split(' ')
        .filter(|kind| kind.split_once('.').is_some_and(|(_, group)| GROUPS.contains(&group)));
    Ok(ours.map(|kind| format!("crd/{kind}")).collect())
}
