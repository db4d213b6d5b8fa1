//! A cluster that chooses the users of pods itself, as OpenShift does: known by an API group, here with a definition of the test's own,
//! and by an admission policy that refuses what security context constraints refuse.

use serde_json::{Value, json};
use testbed::kubernetes::Kubernetes;
use testbed::wait;

use crate::cluster::relay;
use crate::stage::{SOON, Stage};

/// As little as makes the API server serve the group.
fn constraints() -> Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version =
        json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "securitycontextconstraints.security.openshift.io"},
        "spec": {
            "group": "security.openshift.io", "scope": "Cluster", "versions": [version],
            "names": {
                "kind": "SecurityContextConstraints", "plural": "securitycontextconstraints",
                "singular": "securitycontextconstraints", "listKind": "SecurityContextConstraintsList",
            },
        },
    })
}

/// Numbers outside the namespace's range.
fn policy() -> Value {
    let expression = "!has(object.spec.securityContext) || (!has(object.spec.securityContext.runAsUser) && \
        !has(object.spec.securityContext.runAsGroup) && !has(object.spec.securityContext.fsGroup))";
    let pods =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    let metadata = json!({"name": "restricted-v2"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": metadata,
            "spec": {
                "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [pods]},
                "validations": [{"expression": expression, "message": "restricted-v2: must be in the ranges"}],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata,
            "spec": {"policyName": "restricted-v2", "validationActions": ["Deny"]},
        },
    ]})
}

/// A pod that sets a user id, which the policy refuses.
fn pod_with_a_number() -> String {
    let spec = json!({"containers": [{"name": "c", "image": "c"}], "securityContext": {"runAsUser": 65532}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fixed"}, "spec": spec}).to_string()
}

#[tokio::test]
async fn where_the_cluster_chooses_users_relays_run_as_it_says() {
    let cluster = Kubernetes::start().await.unwrap();
    cluster.apply(&constraints().to_string()).await.unwrap();
    let established =
        ["wait", "--for=condition=Established", "crd/securitycontextconstraints.security.openshift.io"];
    cluster.kubectl(&established).await.unwrap();
    cluster.apply(&policy().to_string()).await.unwrap();
    // The operator looks once; what it finds is not to depend on which of the two is first.
    wait::until("the API group", SOON, async || {
        let groups = cluster.kubectl(&["api-versions"]).await.unwrap();
        if groups.contains("security.openshift.io/v1") { Ok(()) } else { Err(groups) }
    })
    .await
    .unwrap();
    let stage = Stage::in_cluster("openshift", &cluster).await;
    wait::until("the policy", SOON, async || {
        let create = ["create", "--dry-run=server", "-f", "-"];
        match stage.namespace.kubectl_with(&create, &pod_with_a_number()).await {
            Err(refused) if refused.to_string().contains("must be in the ranges") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let pods = ["get", "pods", "-o", "jsonpath={.items[*].spec.securityContext}"];
    let context: Value = serde_json::from_str(&stage.namespace.kubectl(&pods).await.unwrap()).unwrap();
    assert_eq!(context, json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}));
}

/// Where the cluster is no OpenShift and has such a rule all the same.
#[tokio::test]
async fn a_pod_template_unsets_numbers_with_null() {
    let mut stage = Stage::shared("unset").await;
    stage.make_secret().await;
    let nothing = json!({"runAsUser": null, "fsGroup": null});
    stage.spec["relay"] = json!({"podTemplate": {"spec": {"securityContext": nothing}}});
    let with_null = relay(&stage.spec).to_string();
    stage.spec["relay"] = json!({});
    // A change, which is what kubectl would send without null if it computed it.
    for resource in [relay(&stage.spec).to_string(), with_null] {
        stage.namespace.kubectl_with(&["apply", "--server-side", "-f", "-"], &resource).await.unwrap();
    }
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let expected = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    wait::until("a Deployment without numbers", SOON, async || {
        let context = "jsonpath={.spec.template.spec.securityContext}";
        let context =
            stage.namespace.kubectl(&["get", "deployment", "shop-relay", "-o", context]).await.unwrap();
        let found: Value = serde_json::from_str(&context).unwrap();
        if found == expected { Ok(()) } else { Err(context) }
    })
    .await
    .unwrap();
}
