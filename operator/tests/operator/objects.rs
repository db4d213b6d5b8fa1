//! What the API server makes of a relay's objects.

use std::time::Duration;

use outbox_operator::desired::configuration::configuration;
use outbox_operator::desired::configuration_file::ConfigurationFile;
use outbox_operator::desired::pod::{PodDefaults, UserIds};
use outbox_operator::desired::workload::workload;
use outbox_operator::resource::OutboxRelay;
use serde_json::json;
use testbed::wait;

use crate::cluster::{apply, least, namespace, relay, with};

const SOON: Duration = Duration::from_secs(120);

/// Every object is taken as it is, the pods also where Pod Security is restricted, and all of them go with their resource.
#[tokio::test]
async fn a_restricted_namespace_takes_the_objects_and_they_go_with_their_resource() {
    let namespace = namespace("objects").await;
    namespace.cluster().restrict(namespace.name()).await.unwrap();
    let access = json!({"networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}});
    apply(&namespace, &relay(&with(least(), "/relay", access))).await.unwrap();
    let stored = namespace.kubectl(&["get", "obr", "shop", "-o", "json"]).await.unwrap();
    let stored: OutboxRelay = serde_json::from_str(&stored).unwrap();
    let file = ConfigurationFile::of(&configuration(&stored, "relay").unwrap()).unwrap();
    let defaults = PodDefaults { image: "outbox-relay:test", user_ids: UserIds::Fixed, template: None };
    let workload = workload(&stored, &file, defaults).unwrap();
    for object in [
        json!(workload.service_account),
        json!(workload.config_map),
        json!(workload.service),
        json!(workload.disruption_budget),
        json!(workload.network_policy),
        json!(workload.deployment),
    ] {
        apply(&namespace, &object).await.unwrap();
    }
    let pods = ["get", "pods", "-l", "app.kubernetes.io/instance=shop", "-o", "name"];
    wait::until("a pod", SOON, async || {
        let pods = namespace.kubectl(&pods).await.map_err(|error| error.to_string())?;
        if pods.lines().count() == 1 {
            return Ok(());
        }
        namespace.kubectl(&["get", "events"]).await.map_or_else(|error| Err(error.to_string()), Err)
    })
    .await
    .unwrap();
    namespace.kubectl(&["delete", "obr", "shop"]).await.unwrap();
    let names = [
        "get",
        "deployments,services,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies",
        "-o",
        "name",
    ];
    wait::until("the end of every object", SOON, async || {
        let left = namespace.kubectl(&names).await.map_err(|error| error.to_string())?;
        if left.contains("shop-relay") { Err(left) } else { Ok(()) }
    })
    .await
    .unwrap();
}
