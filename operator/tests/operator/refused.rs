//! What the API server has let in and cannot work: refused before anything is created for it, and its finalizer is removed when it is deleted.

use serde_json::{Value, json};
use testbed::kubernetes::Kubernetes;
use testbed::wait;

use crate::cluster::{DEFINITION, define};
use crate::stage::{SOON, Stage, operator};

/// The definition as it was before there were rules about names.
fn without_rules_about_names() -> String {
    let mut definition: Value = serde_saphyr::from_str(DEFINITION).unwrap();
    let schema = definition.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").unwrap();
    let rules = schema["x-kubernetes-validations"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["rule"].as_str().unwrap().contains("self.metadata.name")));
    schema.as_object_mut().unwrap().remove("x-kubernetes-validations");
    definition.to_string()
}

async fn has_made_nothing(stage: &Stage) {
    assert!(!stage.has_topic(&stage.topic).await);
    assert_eq!(stage.value("SELECT count(*) FROM pg_publication").await.as_deref(), Some("0"));
    let kinds = "deployment,service,configmap,serviceaccount,poddisruptionbudget";
    let made = ["get", kinds, "-l", "app.kubernetes.io/managed-by=outbox-operator", "-o", "name"];
    assert_eq!(stage.namespace.kubectl(&made).await.unwrap(), "");
}

#[tokio::test]
async fn a_resource_whose_name_is_older_than_the_rule_can_be_changed_and_deleted() {
    let cluster = Kubernetes::start().await.unwrap();
    let stage = Stage::in_cluster("names", &cluster).await;
    stage.make_secret().await;
    cluster.apply(&without_rules_about_names()).await.unwrap();
    let names = ["shop.v1", "2024-orders", &"x".repeat(51)];
    // The API server takes a changed definition up after a moment.
    for name in names {
        wait::until("the former definition", SOON, async || stage.try_to_apply_as(name).await).await.unwrap();
    }
    define(&cluster).await;
    wait::until("the rules about names", SOON, async || match stage.try_to_apply_as("another.name").await {
        Err(refused) if refused.contains("names start with a letter") => Ok(()),
        other => {
            stage.namespace.kubectl(&["delete", "obr", "another.name", "--wait=false"]).await.ok();
            Err(format!("{other:?}"))
        }
    })
    .await
    .unwrap();
    for name in names {
        let invalid = ("ReferencesResolved", "False", "SpecificationInvalid");
        stage.until_of(name, &[invalid, ("Ready", "False", "SpecificationInvalid")]).await;
    }
    has_made_nothing(&stage).await;
    for name in names {
        let change =
            ["patch", "obr", name, "--type=merge", "-p", r#"{"spec":{"relay":{"logLevel":"debug"}}}"#];
        stage.namespace.kubectl(&change).await.unwrap();
        stage.namespace.kubectl(&["delete", "obr", name, "--timeout=60s"]).await.unwrap();
    }
}

#[tokio::test]
async fn a_pod_template_that_would_run_another_relay() {
    let mut stage = Stage::shared("backdoor").await;
    stage.make_secret().await;
    let variable = json!({"name": "OUTBOX_RELAY__SOURCE__SLOT__NAME", "value": "another"});
    stage.spec["relay"] =
        json!({"podTemplate": {"spec": {"containers": [{"name": "relay", "env": [variable]}]}}});
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "SpecificationInvalid")]).await;
    let said = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}";
    let said = stage.namespace.kubectl(&["get", "obr", "shop", "-o", said]).await.unwrap();
    assert!(
        said.contains("spec.relay.podTemplate: OUTBOX_RELAY__SOURCE__SLOT__NAME cannot be set"),
        "{said}"
    );
    has_made_nothing(&stage).await;
    // What is wrong with the pods is no reason to keep it.
    stage.namespace.kubectl(&["delete", "obr", "shop", "--timeout=60s"]).await.unwrap();
}

/// The template for all relays is checked when the operator starts, where no resource is known yet.
#[tokio::test]
async fn a_template_for_all_relays_that_contradicts_the_resource() {
    let mut stage = Stage::shared("common").await;
    stage.operator.kill().await.unwrap();
    let template = json!({"spec": {"volumes": [{"name": "postgres", "emptyDir": {}}]}});
    let launch = operator(stage.namespace.name(), stage.namespace.cluster().kubeconfig());
    stage.operator = launch.arg(format!("--relay-pod-template={template}")).start().unwrap();
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "SpecificationInvalid")]).await;
    let said = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}";
    let said = stage.namespace.kubectl(&["get", "obr", "shop", "-o", said]).await.unwrap();
    assert!(said.contains("--relay-pod-template: the volume postgres is the operator's"), "{said}");
    has_made_nothing(&stage).await;
}
