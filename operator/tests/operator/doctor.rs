//! `outbox-operator doctor`, as `helm test` runs it: with the operator's account, in a restricted namespace.

use std::path::PathBuf;

use serde_json::{Value, json};
use testbed::kubernetes::Kubernetes;
use testbed::{net, wait};

use crate::chart::{CHART, REGISTRY, launch, test_pod};
use crate::cluster::{DEFINITION, define};
use crate::stage::SOON;

/// A pod, and what it connects with.
struct Doctor {
    pod: Value,
    kubeconfig: PathBuf,
}

impl Doctor {
    /// The lines that say `ok`, and the others; the exit code agrees.
    async fn looks(&self) -> (Vec<String>, Vec<String>) {
        let mut doctor = launch(&self.pod, &self.kubeconfig).start().unwrap();
        let code = doctor.wait(SOON).await.unwrap().code();
        let lines = doctor.log();
        let bad = lines.lines().any(|line| line.starts_with("problem "));
        assert_eq!(code, Some(if bad { 69 } else { 0 }), "{lines}");
        lines.lines().map(str::to_owned).partition(|line| line.starts_with("ok "))
    }

    /// Waits until one line does not say `ok`, and it has these words. The API server takes note of some changes only after a while.
    async fn until_only(&self, says: &[&str]) {
        wait::until(format!("only {says:?}"), SOON, async || {
            let (well, others) = self.looks().await;
            let is_said = |line: &String| says.iter().all(|part| line.contains(part));
            let only = others.len() == 1 && others.iter().all(is_said);
            if only { Ok(()) } else { Err(format!("{well:#?} {others:#?}")) }
        })
        .await
        .unwrap();
    }

    async fn until_well(&self) {
        wait::until("nothing but ok", SOON, async || {
            let (well, others) = self.looks().await;
            let is_well = others.is_empty() && well.len() == 5;
            if is_well { Ok(()) } else { Err(format!("{well:#?} {others:#?}")) }
        })
        .await
        .unwrap();
    }
}

/// The CRD with something else at a path.
fn definition(change: impl Fn(&mut Value)) -> String {
    let mut definition: Value = serde_saphyr::from_str(DEFINITION).unwrap();
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    change(definition.pointer_mut(schema).unwrap());
    definition.to_string()
}

#[tokio::test]
async fn each_thing_that_is_wrong_is_named_with_its_remedy() {
    let cluster = Kubernetes::start().await.unwrap();
    for namespace in ["outbox-system", "shop"] {
        cluster.kubectl(&["create", "namespace", namespace]).await.unwrap();
    }
    cluster.restrict("outbox-system").await.unwrap();
    let values = "watchNamespaces={shop},crds.install=false,rbac.aggregate=false";
    let release = ["outbox", CHART, "--namespace", "outbox-system", "--set", REGISTRY, "--set", values];
    let notes = cluster.helm(&[&["install"], &release[..]].concat()).await.unwrap();
    assert!(notes.contains("helm test outbox --namespace outbox-system"), "{notes}");
    let kubeconfig = cluster.kubeconfig_of("outbox-system", "outbox-outbox-operator").await.unwrap();
    let doctor = Doctor { pod: test_pod(&cluster, &release).await, kubeconfig };

    let (_, others) = doctor.looks().await;
    assert_eq!(others.len(), 2, "{others:?}");
    assert!(
        others[1].contains("no operator renews the Lease outbox-outbox-operator in namespace outbox-system")
    );
    let deployment = ["get", "deployment", "outbox-outbox-operator", "-n", "outbox-system", "-o", "json"];
    let deployment: Value = serde_json::from_str(&cluster.kubectl(&deployment).await.unwrap()).unwrap();
    let listen = format!("127.0.0.1:{}", net::free_port().unwrap());
    let operator = launch(&deployment["spec"]["template"], &doctor.kubeconfig);
    let mut operator = operator.env("OUTBOX_OPERATOR_LISTEN", listen).start().unwrap();
    let apply = "kubectl apply --server-side -f crds/outboxrelays.outbox.dev.yaml";
    doctor.until_only(&["problem  CRD", "knows no outboxrelays in outbox.dev/v1beta1", apply]).await;

    cluster
        .apply(&definition(|fields| drop(fields.as_object_mut().unwrap().remove("suspend"))))
        .await
        .unwrap();
    doctor.until_only(&["problem  CRD", "does not have spec.suspend:", apply]).await;
    cluster.apply(&definition(|fields| fields["suspend"]["description"] = json!("Other."))).await.unwrap();
    doctor.until_only(&["warn     CRD", "differs in spec.suspend", apply]).await;
    define(&cluster).await;
    doctor.until_well().await;

    let role = ["patch", "role", "outbox-outbox-operator", "-n", "shop", "--type=json", "-p"];
    let without = r#"[{"op": "remove", "path": "/rules/9"}, {"op": "replace", "path": "/rules/2/verbs", "value": ["get"]}]"#;
    cluster.kubectl(&[&role[..], &[without]].concat()).await.unwrap();
    let refused = "it may not create events, get secrets in namespace shop";
    doctor.until_only(&["problem  rights ", refused, "bind its account to the rules"]).await;
    cluster.helm(&[&["upgrade"], &release[..]].concat()).await.unwrap();
    doctor.until_well().await;

    operator.kill().await.unwrap();
    doctor.until_only(&["problem  leader", "so none acts", "kubectl get pods -n outbox-system"]).await;
    cluster.kill_api_server().await.unwrap();
    doctor.until_only(&["problem  API server", "onnection refused", "check that KUBECONFIG"]).await;
}
