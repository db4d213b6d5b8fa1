//! The chart as people install it. The control plane has no node that could run its pods, so the test runs the operator itself, with the
//! account, the rights and the settings that the chart gives it.

use std::path::Path;

use serde_json::Value;
use testbed::guard::Folder;
use testbed::kubernetes::{Cluster, Kubernetes, shared_cluster};
use testbed::process::Launch;
use testbed::prometheus::define_monitors;
use testbed::{net, wait};

use crate::cluster::define;
use crate::stage::{SOON, Stage, program};

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outbox-operator");
/// Images are nowhere by default.
pub const REGISTRY: &str = "global.imageRegistry=registry.example";

/// The program as a pod's container runs it.
pub fn launch(pod: &Value, kubeconfig: &Path) -> Launch {
    let container = &pod["spec"]["containers"][0];
    let arguments = container["args"].as_array().unwrap().iter();
    let launch =
        arguments.fold(program(kubeconfig), |launch, argument| launch.arg(argument.as_str().unwrap()));
    container["env"].as_array().unwrap().iter().fold(launch, |launch, setting| {
        launch.env(setting["name"].as_str().unwrap(), setting["value"].as_str().unwrap())
    })
}

/// The pod of a release's `helm test`, as the namespace takes it.
pub async fn test_pod(cluster: &Cluster, release: &[&str]) -> Value {
    let template = ["template", "--show-only", "templates/tests/doctor.yaml"];
    let rendered = cluster.helm(&[&template[..], release].concat()).await.unwrap();
    let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "json"];
    serde_json::from_str(&cluster.kubectl_with(&create, &rendered).await.unwrap()).unwrap()
}

/// It does all it does with the rights of a Role in the one namespace it looks at.
#[tokio::test]
async fn its_rights_and_settings_are_enough() {
    let mut stage = Stage::shared("chart").await;
    stage.operator.kill().await.unwrap();
    let (cluster, namespace) = (stage.namespace.cluster().clone(), stage.namespace.name().to_owned());
    let watched = format!("watchNamespaces={{{namespace}}}");
    let release = [&namespace, CHART, "--namespace", &namespace, "--set", REGISTRY, "--set", &watched];
    let values = ["--set", "crds.install=false", "--set", "rbac.aggregate=false"];
    let release = [&release[..], &values].concat();
    cluster.helm(&[&["install"], &release[..]].concat()).await.unwrap();
    let name = format!("{namespace}-outbox-operator");
    let deployment = stage.namespace.kubectl(&["get", "deployment", &name, "-o", "json"]).await.unwrap();
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    let kubeconfig = cluster.kubeconfig_of(&namespace, &name).await.unwrap();
    let listen = format!("127.0.0.1:{}", net::free_port().unwrap());
    let launch = launch(&deployment["spec"]["template"], &kubeconfig);
    stage.operator = launch.env("OUTBOX_OPERATOR_LISTEN", listen).start().unwrap();
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    let mut doctor = self::launch(&test_pod(&cluster, &release).await, &kubeconfig).start().unwrap();
    assert_eq!(doctor.wait(SOON).await.unwrap().code(), Some(0), "{}", doctor.log());
    let checks = doctor.log();
    assert!(checks.lines().count() == 5 && checks.lines().all(|line| line.starts_with("ok ")), "{checks}");
    relay.kill().await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--timeout=120s"]).await.unwrap();
    let log = stage.operator.log();
    assert!(!log.to_lowercase().contains("forbidden"), "{log}");
    assert!(log.contains(r#""message":"leads""#), "{log}");
}

async fn may(cluster: &Cluster, who: &str, what: &[&str]) -> bool {
    let who = format!("--as={who}");
    // It fails where the answer is no.
    let answer = cluster.kubectl(&[&["auth", "can-i", "-A", &who], what].concat()).await;
    answer.is_ok_and(|answer| answer.trim() == "yes")
}

/// Installed, upgraded, uninstalled and installed again: the CRD stays, and with it every resource.
#[tokio::test]
async fn it_installs_all_there_is_and_never_takes_the_definition_away() {
    let cluster = Kubernetes::start().await.unwrap();
    cluster.kubectl(&["create", "namespace", "outbox-system"]).await.unwrap();
    cluster.restrict("outbox-system").await.unwrap();
    let of_release = ["outbox", CHART, "--namespace", "outbox-system", "--set", REGISTRY];
    // By hand first, as docs/UPGRADE.md has it.
    define(&cluster).await;
    let refused = cluster.helm(&[&["install"], &of_release[..]].concat()).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be imported into the current release"), "{refused}");
    let install = [&["install", "--take-ownership"], &of_release[..]].concat();
    let notes = cluster.helm(&install).await.unwrap();
    assert!(notes.contains("kubectl -n outbox-system rollout status deployment/outbox-outbox-operator"));
    cluster.until_established(&["outboxrelays.outbox.dev"]).await.unwrap();
    wait::until("pods, which the restricted namespace takes", SOON, async || {
        let pods = cluster.kubectl(&["get", "pods", "-n", "outbox-system", "-o", "name"]).await;
        if pods.as_ref().is_ok_and(|pods| pods.lines().count() == 2) {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    })
    .await
    .unwrap();
    let operator = "system:serviceaccount:outbox-system:outbox-outbox-operator";
    assert!(may(&cluster, operator, &["list", "outboxrelays.outbox.dev"]).await);
    assert!(!may(&cluster, operator, &["list", "secrets"]).await);
    assert!(!may(&cluster, operator, &["create", "pods"]).await);
    let kubeconfig = cluster.kubeconfig_of("outbox-system", "outbox-outbox-operator").await.unwrap();
    wait::until("rights everywhere, and the CRD as published", SOON, async || {
        let mut doctor = program(&kubeconfig).arg("doctor").start().unwrap();
        let code = doctor.wait(SOON).await.unwrap().code();
        let is_well = code == Some(0) && doctor.log().contains("that it needs in all namespaces");
        if is_well { Ok(()) } else { Err(doctor.log()) }
    })
    .await
    .unwrap();
    for role in ["view", "edit", "admin"] {
        wait::until(format!("OutboxRelay in the cluster's role {role}"), SOON, async || {
            let rules = cluster.kubectl(&["get", "clusterrole", role, "-o", "json"]).await.unwrap();
            if rules.contains("outboxrelays") { Ok(()) } else { Err(rules) }
        })
        .await
        .unwrap();
    }
    // As docs/INSTALL.md has a second operator.
    let second = ["install", "second", CHART, "--namespace", "outbox-system", "--set", REGISTRY];
    let beside = ["--set", "watchNamespaces={default}", "--set", "crds.install=false,rbac.aggregate=false"];
    cluster.helm(&[&second[..], &beside[..]].concat()).await.unwrap();
    cluster.helm(&["uninstall", "second", "--namespace", "outbox-system"]).await.unwrap();
    let sample = include_str!("../../../docs/samples/least.yaml");
    cluster.apply(sample).await.unwrap();
    let fewer = ["--set", "replicas=1", "--set", "crds.keep=true"];
    cluster.helm(&[&["upgrade"], &of_release[..], &fewer[..]].concat()).await.unwrap();
    cluster.helm(&["uninstall", "outbox", "--namespace", "outbox-system"]).await.unwrap();
    let left = cluster.kubectl(&["get", "obr", "-A", "-o", "name"]).await.unwrap();
    assert_eq!(left.lines().count(), 1, "{left}");
    let gone = cluster.kubectl(&["get", "clusterrole,clusterrolebinding", "-o", "name"]).await.unwrap();
    assert!(!gone.contains("outbox"), "{gone}");
    cluster.helm(&[&["install"], &of_release[..]].concat()).await.unwrap();
    cluster.kill_api_server().await.unwrap();
}

/// Everything that can be switched on is what the API server takes, field by field.
#[tokio::test]
async fn every_object_is_accepted() {
    let cluster = shared_cluster().await.unwrap();
    let namespace = cluster.namespace("chart-objects").await.unwrap();
    cluster.restrict(namespace.name()).await.unwrap();
    // Of what is only tried, the pod of helm test cannot use.
    namespace.kubectl(&["create", "serviceaccount", "outbox-outbox-operator"]).await.unwrap();
    cluster.kubectl(&["create", "priorityclass", "high", "--value=1"]).await.unwrap();
    define_monitors(cluster).await.unwrap();
    let values = r#"{"networkPolicy": {"enabled": true, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            "ingressFrom": [{"namespaceSelector": {}}]},
        "dashboard": {"enabled": true}, "podMonitor": {"enabled": true, "labels": {"a": "b"}},
        "alerts": {"enabled": true, "labels": {"a": "b"}}, "imagePullSecrets": [{"name": "registry"}],
        "serviceAccount": {"annotations": {"a": "b"}}, "global": {"imagePullSecrets": ["other"]}, "extraArgs": ["--a=b"],
        "test": {"podLabels": {"c": "d"}, "tolerations": [{"operator": "Exists"}], "resources": {"limits": {"memory": "1Gi"}}},
        "podLabels": {"a": "b"}, "podAnnotations": {"a": "b"},
        "nodeSelector": {"disk": "fast"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "high",
        "affinity": {"nodeAffinity": {}}, "extraEnv": [{"name": "A", "value": "b"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "extraVolumes": [{"name": "v", "emptyDir": {}}], "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}]}"#;
    let folder = Folder::new("values").unwrap();
    let file = folder.path().join("values.json");
    std::fs::write(&file, values).unwrap();
    let watched = format!("podMonitor.enabled=true,watchNamespaces={{default,{}}}", namespace.name());
    for more in [["--set", "crds.keep=false"], ["--set", &watched], ["--values", file.to_str().unwrap()]] {
        let template = ["template", "outbox", CHART, "--namespace", namespace.name(), "--set", REGISTRY];
        let rendered = cluster.helm(&[&template[..], &more].concat()).await.unwrap();
        // It names the namespace of each object itself.
        let dry_run = [
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
        ];
        cluster.kubectl_with(&dry_run, &rendered).await.unwrap();
    }
}

/// Each with the field it is about.
#[tokio::test]
async fn values_that_cannot_work_are_refused() {
    let cluster = shared_cluster().await.unwrap();
    let linted = cluster.helm(&["lint", "--strict", CHART]).await.unwrap();
    assert!(linted.contains("0 chart(s) failed"), "{linted}");
    for (value, said) in [
        ("replicas=two", "'/replicas': got string"),
        ("replicas=9", "'/replicas': maximum"),
        ("replicas=-1", "'/replicas': minimum"),
        ("replicaCount=2", "'replicaCount' not allowed"),
        ("watchNamespaces=shop", "'/watchNamespaces': got string"),
        ("watchNamespaces={Shop}", "'/watchNamespaces/0'"),
        ("watchNamespaces={shop,shop}", "'/watchNamespaces': items at 0 and 1 are equal"),
        ("image=outbox-operator:1", "'/image': got string"),
        ("image.name=x", "'/image': additional properties 'name' not allowed"),
        ("image.repository=", "'/image/repository'"),
        ("image.tag=a/b", "'/image/tag'"),
        ("image.digest=sha256:1", "'/image/digest'"),
        ("image.pullPolicy=Sometimes", "'/image/pullPolicy'"),
        ("relayImage.pullPolicy=Always", "'/relayImage': additional properties 'pullPolicy'"),
        ("imagePullSecrets={registry}", "'/imagePullSecrets/0': got string"),
        ("crds.install=maybe", "'/crds/install'"),
        ("crds.remove=true", "'/crds': additional properties 'remove'"),
        ("rbac.create=1", "'/rbac/create'"),
        ("serviceAccount=x", "'/serviceAccount': got string"),
        ("log.format=xml", "'/log/format'"),
        ("log.level=", "'/log/level'"),
        ("resources.cpu=1", "'/resources': additional properties 'cpu'"),
        ("podDisruptionBudget.minAvailable=1", "'/podDisruptionBudget'"),
        ("podAnnotations.a=1", "'/podAnnotations/a': got number"),
        ("extraEnv={A}", "'/extraEnv/0': got string"),
        ("podMonitor.interval=often", "'/podMonitor/interval'"),
        ("alerts.rules.OutboxSlotAtRisk.safeShare=20", "'/alerts/rules/OutboxSlotAtRisk/safeShare'"),
        ("alerts.rules.OutboxRelayLagHigh.for=long", "'/alerts/rules/OutboxRelayLagHigh/for'"),
        ("networkPolicy.enabled=true", "networkPolicy.egress is empty"),
        ("alerts.rules.OutboxNothing.enabled=true", "'OutboxNothing' not allowed"),
    ] {
        let refused = cluster.helm(&["template", "outbox", CHART, "--set", REGISTRY, "--set", value]).await;
        let refused = refused.map_err(|error| error.to_string()).expect_err(value);
        assert!(refused.contains(said), "{value}: {refused}");
    }
}
