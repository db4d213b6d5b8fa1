//! The operator does all it does with the rights that its chart gives it.

use serde_json::{Value, json};
use testbed::guard::Folder;

use crate::cluster::apply;
use crate::stage::{Stage, operator};

#[tokio::test]
async fn the_rules_of_the_chart_are_enough() {
    let rules = [
        include_str!("../../../charts/outbox-operator/files/rules.yaml"),
        include_str!("../../../charts/outbox-operator/files/lease-rules.yaml"),
    ];
    let rules: Vec<Value> =
        rules.iter().flat_map(|rules| serde_saphyr::from_str::<Vec<Value>>(rules).unwrap()).collect();
    let mut stage = Stage::shared("permissions").await;
    stage.operator.kill().await.unwrap();
    let (namespace, name) = (stage.namespace.name().to_owned(), json!({"name": "operator"}));
    let subject = json!({"kind": "ServiceAccount", "name": "operator", "namespace": namespace});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"});
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name, "rules": rules}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name,
               "roleRef": role, "subjects": [subject]}),
    ] {
        apply(&stage.namespace, &object).await.unwrap();
    }
    let kubeconfig = stage.namespace.cluster().kubeconfig_of(&namespace, "operator").await.unwrap();
    let launch = operator(&namespace, &kubeconfig).arg(format!("--lease-namespace={namespace}"));
    stage.operator = launch.start().unwrap();
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    relay.kill().await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--timeout=120s"]).await.unwrap();
    let log = stage.operator.log();
    assert!(!log.to_lowercase().contains("forbidden"), "{log}");
}
