//! What values of the two charts render: names, images, accounts and pods by the conventions of helm, alone and as part of an umbrella chart.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use outbox_operator::desired::pod::check_common;
use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::shared_cluster;

use crate::chart::REGISTRY;

const CHARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
/// Each chart with what it requires beside a registry.
const EACH: [(&str, &str); 2] = [
    ("outbox-operator", "replicas=2"),
    ("basket-api", "database.secret=db,auth.mode=static-token,auth.staticToken.secret=token"),
];

/// What helm prints for release `rel` of a chart, with these arguments after what it requires.
async fn template(chart: &str, arguments: &[&str]) -> Result<String, String> {
    let required = EACH.iter().find(|(name, _)| *name == chart).unwrap().1;
    let path = format!("{CHARTS}/{chart}");
    let template = ["template", "rel", &path, "--namespace", "ns", "--set", required];
    let rendered = shared_cluster().await.unwrap().helm(&[&template[..], arguments].concat()).await;
    rendered.map_err(|error| error.to_string())
}

/// The objects of a chart with these values, and a registry.
async fn objects(chart: &str, values: &[&str]) -> Vec<Value> {
    let values: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    read(&template(chart, &[&["--set", REGISTRY], &values[..]].concat()).await.unwrap())
}

/// A key that occurs twice is an error.
fn read(rendered: &str) -> Vec<Value> {
    let documents = rendered.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap());
    documents.filter(|object: &Value| object.is_object()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

/// The pod of each object that has one: metadata and spec.
fn pods(objects: &[Value]) -> Vec<&Value> {
    let pod = |object: &'_ Value| match object["kind"].as_str().unwrap() {
        "Deployment" | "Job" => Some("/spec/template"),
        "Pod" => Some(""),
        _ => None,
    };
    objects.iter().filter_map(|object| object.pointer(pod(object)?)).collect()
}

fn variable<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let variables = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    &variables.iter().find(|variable| variable["name"] == name).unwrap()["value"]
}

/// An umbrella chart with both, as links, and these values.
fn umbrella(folder: &Path, values: &Value) {
    let dependencies = json!([
        {"name": "outbox-operator", "version": "0.1.0", "condition": "outbox-operator.enabled"},
        {"name": "basket-api", "version": "0.1.0", "condition": "shop.enabled", "alias": "shop"},
    ]);
    let chart = json!({"apiVersion": "v2", "name": "all", "version": "1.0.0", "dependencies": dependencies});
    fs::write(folder.join("Chart.yaml"), chart.to_string()).unwrap();
    fs::write(folder.join("values.yaml"), values.to_string()).unwrap();
    fs::create_dir(folder.join("charts")).unwrap();
    for (name, _) in EACH {
        symlink(format!("{CHARTS}/{name}"), folder.join("charts").join(name)).unwrap();
    }
}

#[tokio::test]
async fn an_umbrella_chart_switches_them_and_shares_registry_secrets_and_security_contexts() {
    let cluster = shared_cluster().await.unwrap();
    let unset = json!({"runAsUser": null, "runAsGroup": null, "fsGroup": null});
    let values = json!({
        "global": {"imageRegistry": "mirror.example/team", "imagePullSecrets": ["first", {"name": "second"}], "other": {"x": 1}},
        "outbox-operator": {"enabled": true, "podSecurityContext": unset, "imagePullSecrets": [{"name": "second"}]},
        "shop": {"enabled": true, "podSecurityContext": unset, "database": {"secret": "db"}, "auth": {"mode": "none"}},
    });
    let folder = Folder::new("umbrella").unwrap();
    umbrella(folder.path(), &values);
    let path = folder.path().to_str().unwrap();
    let render = async |set: &str| {
        let rendered = cluster.helm(&["template", "rel", path, "--set", set]).await;
        rendered.map_err(|error| error.to_string())
    };
    let rendered = render("shop.replicas=3").await.unwrap();
    let rendered = read(&rendered);
    let pods = pods(&rendered);
    assert_eq!(pods.len(), 5);
    for pod in pods {
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "first"}, {"name": "second"}]));
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
        assert!(image.starts_with("mirror.example/team/"), "{image}");
        let context = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(pod["spec"]["securityContext"], context);
    }
    let without = render("outbox-operator.enabled=false").await.unwrap();
    assert!(!without.contains("outbox-operator") && without.contains("name: rel-shop\n"), "{without}");
    let refused = render("outbox-operator.replicaCount=2").await.unwrap_err();
    assert!(refused.contains("additional properties 'replicaCount' not allowed"), "{refused}");
}

#[tokio::test]
async fn only_what_an_umbrella_chart_adds_is_allowed_beside_the_values() {
    for (chart, _) in EACH {
        for value in ["enabled=true", "global.anything.else=1"] {
            assert!(!objects(chart, &[value]).await.is_empty());
        }
        for (value, said) in [
            ("enable=true", "additional properties 'enable' not allowed"),
            ("enabled=1", "'/enabled': got number, want boolean"),
            ("global.imageRegistry=1", "'/global/imageRegistry': got number"),
        ] {
            let refused = template(chart, &["--set", REGISTRY, "--set", value]).await.unwrap_err();
            assert!(refused.contains(said), "{chart} {value}: {refused}");
        }
    }
}

/// The values that the document has people use.
#[tokio::test]
async fn openshift_assigns_the_user() {
    let file = format!("{DOCS}/install/openshift-values.yaml");
    for (chart, _) in EACH {
        let rendered = template(chart, &["--set", REGISTRY, "--values", &file]).await.unwrap();
        for pod in pods(&read(&rendered)) {
            let context = &pod["spec"]["securityContext"];
            assert_eq!(context, &json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}));
            let context = &pod["spec"]["containers"][0]["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true);
        }
        let fixed = objects(chart, &[]).await;
        assert!(pods(&fixed).iter().all(|pod| pod["spec"]["securityContext"]["runAsUser"] == 65532));
        let none = objects(chart, &["podSecurityContext=null", "containerSecurityContext=null"]).await;
        assert!(pods(&none).iter().all(|pod| pod["spec"].get("securityContext").is_none()));
    }
}

#[tokio::test]
async fn names_follow_the_release_and_the_overrides() {
    for (chart, _) in EACH {
        let full = format!("rel-{chart}");
        for (value, name, label) in [
            ("nameOverride=", full.as_str(), chart),
            ("nameOverride=relays", "rel-relays", "relays"),
            ("nameOverride=rel", "rel", "rel"),
            ("fullnameOverride=events", "events", chart),
        ] {
            let objects = objects(chart, &[value]).await;
            let deployment = of_kind(&objects, "Deployment");
            assert_eq!(deployment["metadata"]["name"], name, "{value}");
            let selector = json!({"app.kubernetes.io/name": label, "app.kubernetes.io/instance": "rel"});
            assert_eq!(deployment["spec"]["selector"]["matchLabels"], selector);
            let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            assert!(selector.as_object().unwrap().iter().all(|(key, value)| labels[key] == *value));
            let budget = of_kind(&objects, "PodDisruptionBudget");
            assert_eq!(budget["spec"]["selector"]["matchLabels"], selector);
            assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
            // Each other pod has its own label.
            let names: Vec<_> = pods(&objects)
                .iter()
                .map(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap().to_owned())
                .collect();
            assert!(names.contains(&format!("{label}-doctor")), "{names:?}");
            assert_eq!(names.iter().filter(|name| *name == label).count(), 1, "{names:?}");
        }
        let long = "a".repeat(51);
        for value in ["fullnameOverride=Upper", "nameOverride=1st", &format!("fullnameOverride={long}")] {
            let refused = template(chart, &["--set", REGISTRY, "--set", value]).await.unwrap_err();
            assert!(refused.contains("Override'"), "{value}: {refused}");
        }
    }
}

/// Its Lease, too, or two releases in a namespace would wait for each other. The account may use that one and no other.
#[tokio::test]
async fn the_lease_of_the_operator_is_of_its_release() {
    let objects = objects("outbox-operator", &["fullnameOverride=events"]).await;
    for pod in pods(&objects) {
        assert_eq!(variable(pod, "OUTBOX_OPERATOR_LEASE_NAME"), "events");
        assert_eq!(variable(pod, "OUTBOX_OPERATOR_LEASE_NAMESPACE"), "ns");
    }
    let role = of_kind(&objects, "Role");
    assert_eq!(role["metadata"]["name"], "events-lease");
    let rules = role["rules"].as_array().unwrap().iter();
    let rules: Vec<_> = rules.map(|rule| (&rule["resourceNames"], &rule["verbs"])).collect();
    let (limited, verbs, create) = (json!(["events"]), json!(["get", "update"]), json!(["create"]));
    assert_eq!(rules, [(&Value::Null, &create), (&limited, &verbs)]);
}

/// With long build metadata.
#[tokio::test]
async fn the_version_is_a_label_whatever_is_in_it() {
    let cluster = shared_cluster().await.unwrap();
    let folder = Folder::new("packages").unwrap();
    let version = format!("0.1.0+build.20261129.{}-x", "abcdef".repeat(8));
    for (chart, required) in EACH {
        let (source, to) = (format!("{CHARTS}/{chart}"), folder.path().to_str().unwrap());
        let package =
            ["package", &source, "--destination", to, "--version", &version, "--app-version", &version];
        cluster.helm(&package).await.unwrap();
        let package = format!("{to}/{chart}-{version}.tgz");
        let template = ["template", "rel", &package, "--set", required, "--set", REGISTRY];
        let rendered = read(&cluster.helm(&template).await.unwrap());
        let labels = &of_kind(&rendered, "Deployment")["metadata"]["labels"];
        for key in ["helm.sh/chart", "app.kubernetes.io/version"] {
            let label = labels[key].as_str().unwrap();
            let fits = label.len() <= 63 && label.ends_with(|c: char| c.is_ascii_alphanumeric());
            assert!(fits && label.contains("0.1.0_build.20261129.abcdef"), "{label}");
        }
        let image = pods(&rendered)[0]["spec"]["containers"][0]["image"].as_str().unwrap();
        assert!(image.ends_with("-x") && !image.contains('+'), "{image}");
    }
}

#[tokio::test]
async fn an_image_has_a_registry() {
    let digest = format!("sha256:{}", "0".repeat(64));
    for (chart, _) in EACH {
        let with_digest = format!("image.repository=x.example/a,image.digest={digest}");
        for (values, image) in [
            (REGISTRY, format!("registry.example/{chart}:0.1.0")),
            ("image.registry=x.example:5000/team", format!("x.example:5000/team/{chart}:0.1.0")),
            ("image.registry=x.example,global.imageRegistry=y.example/", format!("y.example/{chart}:0.1.0")),
            ("image.repository=x.example/a,global.imageRegistry=y.example", "x.example/a:0.1.0".to_owned()),
            ("image.repository=localhost/a,global.imageRegistry=y.example", "localhost/a:0.1.0".to_owned()),
            (
                "image.repository=team/a,global.imageRegistry=y.example,image.tag=v2",
                "y.example/team/a:v2".to_owned(),
            ),
            ("image.repository=team/a", "team/a:0.1.0".to_owned()),
            (with_digest.as_str(), format!("x.example/a@{digest}")),
        ] {
            let relay = ["--set", "relayImage.registry=relays.example"];
            let relay = if chart == "outbox-operator" { &relay[..] } else { &[] };
            let rendered = read(&template(chart, &[&["--set", values], relay].concat()).await.unwrap());
            assert!(
                pods(&rendered).iter().all(|pod| pod["spec"]["containers"][0]["image"] == image),
                "{image}"
            );
        }
        let refused = template(chart, &[]).await.unwrap_err();
        let said = format!("image.repository is {chart}, without a registry");
        assert!(refused.contains(&said), "{refused}");
    }
    let refused = template("outbox-operator", &["--set", "image.registry=x.example"]).await.unwrap_err();
    assert!(refused.contains("relayImage.repository is outbox-relay, without a registry"), "{refused}");
    let rendered = objects("outbox-operator", &["relayImage.tag=v3"]).await;
    let relay = variable(pods(&rendered)[0], "OUTBOX_OPERATOR_RELAY_IMAGE");
    assert_eq!(relay, "registry.example/outbox-relay:v3");
}

#[tokio::test]
async fn an_account_is_created_or_named() {
    for (chart, _) in EACH {
        let of_deployment = |objects: &[Value]| {
            of_kind(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"].clone()
        };
        let created = objects(chart, &["serviceAccount.annotations.role=a"]).await;
        let account = of_kind(&created, "ServiceAccount");
        assert_eq!(account["metadata"]["name"], format!("rel-{chart}"));
        assert_eq!(account["metadata"]["annotations"]["role"], "a");
        assert_eq!(of_deployment(&created), format!("rel-{chart}"));
        let named = objects(chart, &["serviceAccount.create=false,serviceAccount.name=mine"]).await;
        assert!(named.iter().all(|object| object["kind"] != "ServiceAccount"));
        assert!(pods(&named).iter().all(|pod| pod["spec"]["serviceAccountName"] == "mine"));
        let refused = template(chart, &["--set", REGISTRY, "--set", "serviceAccount.create=false"]).await;
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("serviceAccount.create is false and serviceAccount.name is not set"),
            "{refused}"
        );
    }
    // It runs before the chart's own account exists.
    let job = |objects: &[Value]| of_kind(objects, "Job")["spec"]["template"]["spec"].clone();
    assert!(job(&objects("basket-api", &[]).await).get("serviceAccountName").is_none());
    let given = objects("basket-api", &["migration.serviceAccountName=owner"]).await;
    assert_eq!(job(&given)["serviceAccountName"], "owner");
}

/// A Job that has no place, too little memory or a sidecar would hold up the installation.
#[tokio::test]
async fn jobs_and_tests_are_configured_as_the_deployment_and_by_separate_values() {
    for (chart, _) in EACH {
        let all = [
            "podLabels.team=shop,podAnnotations.note=a,nodeSelector.disk=fast,priorityClassName=high",
            "tolerations[0].key=all,affinity.nodeAffinity.a=b,imagePullSecrets[0].name=registry",
            "podSecurityContext.supplementalGroups[0]=7,containerSecurityContext.runAsGroup=8,extraArgs={--log-format=text}",
        ];
        let rendered = objects(chart, &all).await;
        let kinds = pods(&rendered);
        assert!(kinds.len() >= 2);
        for pod in &kinds {
            let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
            assert_eq!(metadata["labels"]["team"], "shop");
            assert_eq!(metadata["annotations"]["note"], "a");
            assert_eq!(spec["nodeSelector"]["disk"], "fast");
            assert_eq!(spec["tolerations"][0]["key"], "all");
            assert_eq!(spec["affinity"], json!({"nodeAffinity": {"a": "b"}}));
            assert_eq!(spec["priorityClassName"], "high");
            assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
            assert_eq!(spec["securityContext"]["supplementalGroups"], json!([7]));
            assert_eq!(spec["containers"][0]["securityContext"]["runAsGroup"], 8);
            assert!(spec["containers"][0]["resources"]["limits"]["memory"].is_string());
        }
        let arguments =
            &of_kind(&rendered, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"];
        assert_eq!(arguments[1], "--log-format=text");
        let groups: &[(&str, &str)] = if chart == "basket-api" {
            &[("test", "-doctor"), ("migration", "-migrate")]
        } else {
            &[("test", "-doctor")]
        };
        for (group, suffix) in groups {
            let own = format!(
                "{group}.podLabels.team=own,{group}.podAnnotations.sidecar=no,{group}.nodeSelector.disk=slow,\
                 {group}.tolerations[0].key=own,{group}.affinity.podAffinity.a=b,{group}.resources.limits.memory=1Gi"
            );
            let rendered = objects(chart, &[&all[..], &[&own]].concat()).await;
            for pod in pods(&rendered) {
                let is_of_group = |name: &Value| name.as_str().unwrap().ends_with(suffix);
                let is_own = is_of_group(&pod["metadata"]["labels"]["app.kubernetes.io/name"]);
                assert_eq!(pod["metadata"]["labels"]["team"], if is_own { "own" } else { "shop" });
                assert_eq!(pod["metadata"]["annotations"]["note"], "a");
                assert_eq!(pod["metadata"]["annotations"].get("sidecar").is_some(), is_own);
                assert_eq!(pod["spec"]["nodeSelector"]["disk"] == "slow", is_own);
                assert_eq!(pod["spec"]["tolerations"][0]["key"] == "own", is_own);
                assert_eq!(pod["spec"]["affinity"].get("podAffinity").is_some(), is_own);
                assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "1Gi", is_own);
            }
        }
    }
    let rendered = objects("basket-api", &["migration.annotations.note=b"]).await;
    let annotations = &of_kind(&rendered, "Job")["metadata"]["annotations"];
    assert_eq!(
        (&annotations["note"], &annotations["helm.sh/hook"]),
        (&json!("b"), &json!("pre-install,pre-upgrade"))
    );
}

#[tokio::test]
async fn labels_of_pods_never_change_the_selector() {
    for (chart, _) in EACH {
        let rendered = objects(chart, &["podLabels.app\\.kubernetes\\.io/part-of=mine"]).await;
        for pod in pods(&rendered) {
            assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/part-of"], "mine");
        }
        for (values, key) in
            [("podLabels", "name"), ("podLabels", "instance"), ("test.podLabels", "instance")]
        {
            let value = format!("{values}.app\\.kubernetes\\.io/{key}=mine");
            let refused = template(chart, &["--set", REGISTRY, "--set", &value]).await.unwrap_err();
            let said =
                format!("podLabels sets app.kubernetes.io/{key}, by which the Deployment finds its pods");
            assert!(refused.contains(&said), "{value}: {refused}");
        }
    }
}

/// As people take a default away with helm.
#[tokio::test]
async fn a_value_that_is_null_is_left_out_or_refused_by_name() {
    for (chart, required) in EACH {
        let file = fs::read_to_string(format!("{CHARTS}/{chart}/values.yaml")).unwrap();
        let values: Value = serde_saphyr::from_str(&file).unwrap();
        let schema = fs::read_to_string(format!("{CHARTS}/{chart}/values.schema.json")).unwrap();
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let needed = schema["required"].as_array().unwrap();
        let mut left_out = 0;
        for key in values.as_object().unwrap().keys() {
            let null = format!("{key}=null");
            // With image names that need no registry, so that global can be left out.
            let images = "image.repository=x.example/a";
            let relay = if chart == "outbox-operator" { ",relayImage.repository=x.example/b" } else { "" };
            let switched = format!("{required},{images}{relay},podMonitor.enabled=true");
            let arguments = ["--set", &switched, "--set", &null];
            match template(chart, &arguments).await {
                Ok(_) => {
                    assert!(!needed.contains(&json!(key)), "{chart} {key}");
                    left_out += 1;
                }
                Err(refused) => {
                    assert!(needed.contains(&json!(key)), "{chart}: {refused}");
                    assert!(refused.contains(&format!("missing property '{key}'")), "{chart}: {refused}");
                }
            }
        }
        assert!(left_out >= 15, "{chart}: {left_out}");
    }
    for value in [
        "rbac.create",
        "alerts.rules.OutboxGap",
        "alerts.rules.OutboxSlotAtRisk.safeShare",
        "image.repository",
    ] {
        let (group, key) = value.rsplit_once('.').unwrap();
        let null = format!("{value}=null");
        let refused = template("outbox-operator", &["--set", REGISTRY, "--set", &null]).await.unwrap_err();
        let said = format!("at '/{}': missing property '{key}'", group.replace('.', "/"));
        assert!(refused.contains(&said), "{refused}");
    }
}

/// helm keeps the CRD and the relay; Argo CD prunes them all the same unless its own annotation is there.
#[tokio::test]
async fn neither_helm_nor_argo_cd_deletes_what_holds_a_slot() {
    let kept = json!({"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Prune=false,Delete=false"});
    let operator = objects("outbox-operator", &[]).await;
    assert_eq!(of_kind(&operator, "CustomResourceDefinition")["metadata"]["annotations"], kept);
    let relay = objects("basket-api", &["outboxRelay.enabled=true,outboxRelay.spec.suspend=true"]).await;
    assert_eq!(of_kind(&relay, "OutboxRelay")["metadata"]["annotations"], kept);
    let unkept = objects("outbox-operator", &["crds.keep=false"]).await;
    assert!(of_kind(&unkept, "CustomResourceDefinition")["metadata"].get("annotations").is_none());
}

/// Alerts lead to pages that can be opened, or nowhere.
#[tokio::test]
async fn alerts_link_to_the_runbooks_where_their_url_is_given() {
    let rules = async |more: &str| -> Vec<Value> {
        let objects = objects("outbox-operator", &["alerts.enabled=true", more]).await;
        let groups = of_kind(&objects, "PrometheusRule")["spec"]["groups"].as_array().unwrap().clone();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    };
    let without = rules("alerts.runbookUrl=").await;
    assert!(
        without.len() > 10 && without.iter().all(|rule| rule["annotations"].get("runbook_url").is_none())
    );
    for rule in rules("alerts.runbookUrl=https://wiki.example/runbooks/").await {
        let page = format!("https://wiki.example/runbooks/{}.md", rule["alert"].as_str().unwrap());
        assert_eq!(rule["annotations"]["runbook_url"], page);
    }
    let relative = ["--set", REGISTRY, "--set", "alerts.runbookUrl=docs/runbooks"];
    let refused = template("outbox-operator", &relative).await.unwrap_err();
    assert!(refused.contains("'/alerts/runbookUrl'"), "{refused}");
}

/// A team's Alertmanager routes by labels of alerts.
#[tokio::test]
async fn each_alert_has_the_labels_that_are_given() {
    for chart in ["outbox-operator", "basket-api"] {
        let values = "alerts.enabled=true,alerts.additionalRuleLabels.team=payments";
        let objects = objects(chart, &[values]).await;
        let groups = of_kind(&objects, "PrometheusRule")["spec"]["groups"].as_array().unwrap();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert!(rules.iter().all(|rule| rule["labels"]["team"] == "payments"), "{rules:?}");
        assert!(rules.iter().any(|rule| rule["labels"]["severity"] == "critical"), "{rules:?}");
    }
}

/// One number, in both charts and in the document.
#[tokio::test]
async fn the_oldest_kubernetes_is_the_one_that_is_documented() {
    let document = fs::read_to_string(format!("{DOCS}/INSTALL.md")).unwrap();
    let row = document.lines().find(|line| line.starts_with("| Kubernetes |")).unwrap();
    let minor = row.split("1.").nth(1).unwrap().split(' ').next().unwrap();
    let minor: u32 = minor.parse().unwrap();
    for (chart, _) in EACH {
        let version = |minor: u32| format!("1.{minor}.0");
        let (oldest, older) = (version(minor), version(minor - 1));
        template(chart, &["--set", REGISTRY, "--kube-version", &oldest]).await.unwrap();
        let refused = template(chart, &["--set", REGISTRY, "--kube-version", &older]).await.unwrap_err();
        assert!(refused.contains("incompatible with Kubernetes"), "{refused}");
    }
}

/// In the form in which the operator takes it.
#[tokio::test]
async fn a_template_for_all_relays_reaches_the_operator() {
    let given =
        json!({"spec": {"imagePullSecrets": [{"name": "registry"}], "nodeSelector": {"pool": "relays"}}});
    let set = format!("relayPodTemplate={given}");
    let rendered = template("outbox-operator", &["--set", REGISTRY, "--set-json", &set]).await.unwrap();
    let objects = read(&rendered);
    let pod = &of_kind(&objects, "Deployment")["spec"]["template"];
    let passed = variable(pod, "OUTBOX_OPERATOR_RELAY_POD_TEMPLATE").as_str().unwrap();
    let passed: Value = serde_saphyr::from_str(passed).unwrap();
    assert_eq!(passed, given);
    check_common(&passed).unwrap();
    let refused =
        template("outbox-operator", &["--set", REGISTRY, "--set-json", r#"relayPodTemplate={"spc": {}}"#]);
    assert!(refused.await.unwrap_err().contains("additional properties 'spc' not allowed"));
}
