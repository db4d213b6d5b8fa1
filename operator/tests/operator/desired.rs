//! From a resource to the relay's configuration and pods, without a cluster.

use k8s_openapi::api::core::v1::PodSpec;
use outbox_operator::desired::configuration::configuration;
use outbox_operator::desired::configuration_file::ConfigurationFile;
use outbox_operator::desired::pod::{PodDefaults, UserIds, check_common};
use outbox_operator::desired::workload::{Workload, workload};
use outbox_operator::resource::OutboxRelay;
use outbox_relay::config::Config;
use serde_json::{Value, json};

pub fn relay(spec: &Value) -> OutboxRelay {
    let metadata = json!({"name": "shop", "namespace": "team", "uid": "u-1"});
    serde_json::from_value(
        json!({"apiVersion": "outbox.dev/v1beta1", "kind": "OutboxRelay", "metadata": metadata, "spec": spec}),
    )
    .unwrap()
}

pub fn least() -> Value {
    json!({
        "source": {"postgres": {
            "host": "db", "database": "shop", "credentialsSecretRef": {"name": "db-credentials"},
            "publication": {"name": "outbox"}, "slot": {"name": "outbox"},
        }},
        "sink": {"kafka": {"bootstrapServers": "kafka:9092"}},
    })
}

fn everything() -> Value {
    json!({
        "source": {"postgres": {
            "host": "db-1,db-2", "port": 5433, "database": "shop", "table": "sales.outbox",
            "credentialsSecretRef": {"name": "db-credentials", "usernameKey": "user"},
            "adminCredentialsSecretRef": {"name": "db-admin"},
            "tls": {
                "mode": "verify-ca", "caSecretRef": {"name": "db-ca"}, "certificateSecretRef": {"name": "db-cert"},
                "channelBinding": "require",
            },
            "publication": {"name": "outbox"}, "slot": {"name": "outbox", "creationPolicy": "Never"},
        }, "start": "Now", "eventSource": "/shop"},
        "sink": {"kafka": {
            "bootstrapServers": "kafka:9093", "compression": "zstd", "lingerMs": 5, "producers": 2,
            "tls": {"caSecretRef": {"name": "kafka-ca"}},
            "sasl": {"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "kafka-credentials"}},
            "adminCredentialsSecretRef": {"name": "kafka-admin"},
        }},
        "routing": {"regex": "(?<t>.*)", "replacement": "events.${t}"},
        "delivery": {"onPoison": "DeadLetter", "deadLetterTopic": "dead", "maxInFlightBytes": 1_000_000},
        "retention": {"keepHours": 24},
        "heartbeat": {"intervalSeconds": 3},
        "shutdown": {"graceSeconds": 60},
        "relay": {"replicas": 2, "image": "relay:test", "logLevel": "debug"},
    })
}

pub fn file(spec: &Value) -> ConfigurationFile {
    ConfigurationFile::of(&configuration(&relay(spec), "outbox_relay").unwrap()).unwrap()
}

pub fn built(spec: &Value) -> Workload {
    workload(&relay(spec), &file(spec), DEFAULTS).unwrap()
}

const DEFAULTS: PodDefaults<'_> =
    PodDefaults { image: "relay:default", user_ids: UserIds::Fixed, template: None };

pub fn pod(workload: &Workload) -> &PodSpec {
    workload.deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

/// What the operator writes, the relay reads as it was meant, and has nothing against it.
#[test]
fn the_relay_reads_its_configuration_as_it_was_meant() {
    for spec in [least(), everything()] {
        let meant = configuration(&relay(&spec), "outbox_relay").unwrap();
        let read: Config = serde_saphyr::from_str(file(&spec).as_str()).unwrap();
        assert_eq!(json!(read), json!(meant));
        read.check().unwrap();
    }
    let read = json!(serde_saphyr::from_str::<Config>(file(&everything()).as_str()).unwrap());
    for (path, expected) in [
        ("/version", json!(1)),
        ("/name", json!("team/shop")),
        ("/source/host", json!("db-1,db-2")),
        ("/source/user", json!("outbox_relay")),
        ("/source/passwordFile", json!("/etc/outbox-relay/secrets/postgres/password")),
        ("/source/tls/mode", json!("verify-ca")),
        ("/source/tls/caFile", json!("/etc/outbox-relay/secrets/postgres-ca/ca.crt")),
        ("/source/tls/keyFile", json!("/etc/outbox-relay/secrets/postgres-tls/tls.key")),
        ("/source/tls/channelBinding", json!("require")),
        ("/source/table", json!("sales.outbox")),
        // The operator makes the publication, and the relay the slot.
        ("/source/publication/creationPolicy", json!("Never")),
        ("/source/slot/creationPolicy", json!("Never")),
        ("/source/start", json!("Now")),
        ("/sink/sasl/mechanism", json!("SCRAM-SHA-512")),
        ("/sink/sasl/usernameFile", json!("/etc/outbox-relay/secrets/kafka/username")),
        ("/sink/compression", json!("zstd")),
        ("/routing/replacement", json!("events.${t}")),
        ("/delivery/deadLetterTopic", json!("dead")),
        ("/retention/aheadHours", json!(72)),
        ("/heartbeat/intervalSeconds", json!(3)),
        ("/shutdown/graceSeconds", json!(60)),
        ("/admin/listen", json!("[::]:9100")),
    ] {
        assert_eq!(read.pointer(path), Some(&expected), "{path}");
    }
    assert_eq!(
        json!(serde_saphyr::from_str::<Config>(file(&least()).as_str()).unwrap())["source"]["slot"]["creationPolicy"],
        "IfMissing"
    );
}

/// The schema cannot know what a regular expression is.
#[test]
fn what_only_the_relay_can_refuse_is_refused_by_its_own_words() {
    let mut spec = least();
    spec["routing"] = json!({"regex": "("});
    let refused = configuration(&relay(&spec), "u").unwrap().check().unwrap_err().to_string();
    assert!(refused.starts_with("routing.regex: "), "{refused}");
}

/// Restricted Pod Security, and nothing a pod does not need.
#[test]
fn pods_may_do_nothing_and_see_only_their_own_secrets() {
    let workload = built(&everything());
    let pod = pod(&workload);
    let secrets: Vec<&str> = pod
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref())
        .collect();
    assert_eq!(
        secrets,
        ["db-credentials", "db-ca", "db-cert", "kafka-credentials", "kafka-ca"],
        "no administrator's"
    );
    let container = &pod.containers[0];
    assert_eq!(container.volume_mounts.as_ref().unwrap().len(), secrets.len() + 1);
    assert!(container.volume_mounts.iter().flatten().all(|mount| mount.read_only == Some(true)));
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!(pod.security_context.as_ref().unwrap().run_as_non_root, Some(true));
    let security = container.security_context.as_ref().unwrap();
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    let text = serde_json::to_string(&workload.deployment).unwrap();
    assert!(!text.contains("secretKeyRef"), "secrets are files: the environment is shown in many places");
}

#[test]
fn a_pod_rolls_when_its_configuration_changes_and_for_no_other_reason() {
    let template = |spec: &Value| json!(built(spec).deployment)["spec"]["template"].clone();
    let mut slower = least();
    slower["sink"]["kafka"]["lingerMs"] = json!(5);
    assert_eq!(template(&least()), template(&least()));
    assert_ne!(template(&least()), template(&slower));
}

/// By name, so that little has to be said; and pods are found by their labels whatever is said.
#[test]
fn a_pod_template_is_laid_over_the_operators() {
    let mut spec = least();
    let labels = json!({"team": "shop", "app.kubernetes.io/instance": "other"});
    spec["relay"] = json!({"podTemplate": {
        "metadata": {"labels": labels, "annotations": {"sidecar": "yes"}},
        "spec": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}], "containers": [
            {"name": "relay", "env": [{"name": "TZ", "value": "UTC"}]},
            {"name": "proxy", "image": "proxy:1"},
        ]},
    }});
    let template = built(&spec).deployment.spec.unwrap().template;
    let (metadata, pod) = (template.metadata.unwrap(), template.spec.unwrap());
    assert_eq!(metadata.labels.as_ref().unwrap()["team"], "shop");
    assert_eq!(metadata.labels.unwrap()["app.kubernetes.io/instance"], "shop");
    assert_eq!(metadata.annotations.unwrap().len(), 2);
    assert_eq!(pod.host_aliases.unwrap().len(), 1);
    assert_eq!(pod.containers.len(), 2);
    assert_eq!(pod.containers[0].image.as_deref(), Some("relay:default"));
    let env: Vec<&str> = pod.containers[0].env.iter().flatten().map(|env| env.name.as_str()).collect();
    assert_eq!(env, ["RUST_LOG", "TZ"]);
    for (given, said) in [
        (json!({"spec": {"contaners": [{}]}}), "there is no field spec.contaners in a pod template"),
        (json!({"spec": {"containers": "relay"}}), "invalid type: string"),
        (
            json!({"spec": {"containers": [{"name": "relay", "env": [{"name": "OUTBOX_RELAY__NAME", "value": "x"}]}]}}),
            "OUTBOX_RELAY__NAME cannot be set",
        ),
        (json!({"spec": {"containers": [{"name": "relay", "args": ["run"]}]}}), "command and args"),
        (
            json!({"spec": {"volumes": [{"name": "postgres", "secret": {"secretName": "other"}}]}}),
            "the volume postgres is the operator's",
        ),
    ] {
        spec["relay"]["podTemplate"] = given;
        let refused = workload(&relay(&spec), &file(&least()), DEFAULTS).unwrap_err().to_string();
        assert!(refused.starts_with("spec.relay.podTemplate: ") && refused.contains(said), "{refused}");
    }
}

/// The annotation by which pods are replaced cannot be taken away either.
#[test]
fn null_in_a_pod_template_removes_what_the_operator_sets() {
    let mut spec = least();
    let annotation = "outbox.dev/configuration-digest";
    spec["relay"] = json!({"podTemplate": {
        "metadata": {"annotations": {annotation: null}, "labels": {"app.kubernetes.io/instance": null}},
        "spec": {
            "securityContext": {"runAsUser": null, "fsGroup": null},
            "containers": [{"name": "relay", "resources": null}],
        },
    }});
    let (given, own) = (built(&spec), built(&least()));
    let template = |workload: &Workload| json!(workload.deployment)["spec"]["template"].clone();
    assert_eq!(template(&given)["metadata"], template(&own)["metadata"]);
    let context = &template(&given)["spec"]["securityContext"];
    assert_eq!(*context, json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!(pod(&given).containers[0].resources, None);
}

#[test]
fn the_cluster_chooses_users_where_it_wants_to() {
    let of = |user_ids| {
        let defaults = PodDefaults { user_ids, ..DEFAULTS };
        let workload = workload(&relay(&least()), &file(&least()), defaults).unwrap();
        let context = pod(&workload).security_context.clone().unwrap();
        (context.run_as_user, context.run_as_group, context.fs_group, context.run_as_non_root)
    };
    assert_eq!(of(UserIds::Fixed), (Some(65_532), None, Some(65_532), Some(true)));
    assert_eq!(of(UserIds::ChosenByCluster), (None, None, None, Some(true)));
}

/// A pod that requests nothing is evicted first, and refused where a quota counts requests.
#[test]
fn relays_request_what_they_need_unless_said_otherwise() {
    let resources = |resources: Value| {
        let mut spec = least();
        spec["relay"] = resources;
        json!(pod(&built(&spec)).containers[0].resources)
    };
    assert_eq!(resources(json!({})), json!({"requests": {"cpu": "100m", "memory": "64Mi"}}));
    let own = json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}});
    assert_eq!(resources(json!({"resources": own})), own);
    assert_eq!(resources(json!({"resources": {}})), json!({}));
}

/// The relay ends before it is killed.
#[test]
fn pods_have_longer_than_the_relay_takes_to_stop() {
    let grace = |spec: &Value| pod(&built(spec)).termination_grace_period_seconds;
    assert_eq!((grace(&least()), grace(&everything())), (Some(30), Some(65)));
}

#[test]
fn suspended_means_no_pods_and_everything_else_stays() {
    let mut suspended = everything();
    suspended["suspend"] = json!(true);
    let replicas = |spec: &Value| built(spec).deployment.spec.unwrap().replicas;
    assert_eq!((replicas(&everything()), replicas(&suspended)), (Some(2), Some(0)));
    assert_eq!(built(&everything()).config_map, built(&suspended).config_map);
}

/// What is collected when the resource goes.
#[test]
fn every_object_belongs_to_its_resource() {
    let mut spec = least();
    spec["relay"] = json!({"networkPolicy": {"egress": [{}]}});
    let Workload { service_account, config_map, service, disruption_budget, network_policy, deployment } =
        built(&spec);
    for metadata in [
        service_account.metadata,
        config_map.metadata,
        service.metadata,
        disruption_budget.metadata,
        network_policy.unwrap().metadata,
        deployment.metadata,
    ] {
        assert_eq!(
            (metadata.name.as_deref(), metadata.namespace.as_deref()),
            (Some("shop-relay"), Some("team"))
        );
        let owner = &metadata.owner_references.unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str(), owner.controller),
            ("OutboxRelay", "u-1", Some(true))
        );
    }
}

/// Policies of a cluster demand labels of every object, and a service account gets its cloud role by an annotation.
#[test]
fn every_object_has_the_labels_and_annotations_of_the_resource_and_is_found_all_the_same() {
    let mut spec = least();
    spec["relay"] = json!({
        "labels": {"team": "shop", "app.kubernetes.io/instance": "another"},
        "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/shop"},
        "networkPolicy": {"egress": [{}]},
        "podTemplate": {"metadata": {"labels": {"team": "pods"}}},
    });
    let common =
        json!({"metadata": {"annotations": {"eks.amazonaws.com/role-arn": "common", "all": "relays"}}});
    let defaults = PodDefaults { template: Some(&common), ..DEFAULTS };
    let Workload { service_account, config_map, service, disruption_budget, network_policy, deployment } =
        workload(&relay(&spec), &file(&spec), defaults).unwrap();
    let pods = json!(deployment)["spec"]["template"]["metadata"].clone();
    for metadata in [
        json!(service_account.metadata),
        json!(config_map.metadata),
        json!(service.metadata),
        json!(disruption_budget.metadata),
        json!(network_policy.unwrap().metadata),
        json!(deployment.metadata),
    ] {
        let labels = json!({
            "team": "shop",
            "app.kubernetes.io/name": "outbox-relay",
            "app.kubernetes.io/instance": "shop",
            "app.kubernetes.io/managed-by": "outbox-operator",
        });
        assert_eq!(metadata["labels"], labels);
        assert_eq!(
            metadata["annotations"],
            json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/shop"})
        );
    }
    assert_eq!(pods["labels"]["team"], "pods", "the pod template is laid over them");
    assert_eq!(pods["labels"]["app.kubernetes.io/instance"], "shop");
    assert_eq!(pods["annotations"]["eks.amazonaws.com/role-arn"], "arn:aws:iam::1:role/shop");
    assert_eq!(pods["annotations"]["all"], "relays");
}

/// An administrator's template for all relays is below what each resource says.
#[test]
fn a_template_for_all_relays_is_laid_under_what_a_resource_says() {
    let common = json!({
        "metadata": {"annotations": {"team": "platform"}},
        "spec": {
            "imagePullSecrets": [{"name": "registry"}],
            "priorityClassName": "low",
            "nodeSelector": {"pool": "default", "disk": "any"},
            "securityContext": {"runAsUser": null, "fsGroup": null},
            "containers": [{"name": "relay", "image": "common:1", "resources": {"limits": {"memory": "256Mi"}}}],
        },
    });
    let of = |spec: &Value| {
        let defaults = PodDefaults { template: Some(&common), ..DEFAULTS };
        json!(workload(&relay(spec), &file(spec), defaults).unwrap().deployment)["spec"]["template"].clone()
    };
    let least = of(&least());
    assert_eq!(least["metadata"]["annotations"]["team"], "platform");
    assert_eq!(least["spec"]["securityContext"].get("runAsUser"), None);
    let seen = |template: &Value| {
        let (pod, container) = (&template["spec"], &template["spec"]["containers"][0]);
        json!([
            pod["imagePullSecrets"][0]["name"],
            pod["priorityClassName"],
            pod["nodeSelector"],
            container["image"],
            container["resources"]["limits"]["memory"]
        ])
    };
    let selected = json!({"pool": "default", "disk": "any"});
    assert_eq!(seen(&least), json!(["registry", "low", selected, "common:1", "256Mi"]));
    let mut spec = self::least();
    spec["relay"] = json!({"imagePullSecrets": [{"name": "own"}], "priorityClassName": "high", "nodeSelector": {"disk": "fast"},
        "image": "own:2", "resources": {"limits": {"memory": "1Gi"}}, "podTemplate": {"metadata": {"annotations": {"team": "shop"}}}});
    let own = of(&spec);
    assert_eq!(own["metadata"]["annotations"]["team"], "shop");
    let selected = json!({"pool": "default", "disk": "fast"});
    assert_eq!(seen(&own), json!(["own", "high", selected, "own:2", "1Gi"]));
}

#[test]
fn a_template_for_all_relays_is_checked_at_the_start() {
    assert_eq!(check_common(&json!({"spec": {"nodeSelector": {"a": "b"}}})), Ok(()));
    let unknown = check_common(&json!({"spec": {"contaners": []}})).unwrap_err();
    assert!(unknown.contains("no field spec.contaners"), "{unknown}");
    let other = json!({"spec": {"containers": [{"name": "relay", "args": ["run"]}]}});
    assert!(check_common(&other).is_err());
}

#[test]
fn a_gap_is_refilled_if_the_resource_says_so() {
    let mut spec = everything();
    let on_gap = |spec: &Value| {
        let config = configuration(&relay(spec), "outbox_relay").unwrap();
        serde_json::to_value(config).unwrap().pointer("/source/onGap").cloned()
    };
    assert_eq!(on_gap(&spec), None, "a relay of an earlier version does not know the field");
    spec["source"]["onGap"] = json!("Refill");
    assert_eq!(on_gap(&spec), Some(json!("Refill")));
}
