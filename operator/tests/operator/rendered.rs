//! What becomes of the samples: their objects, as they were last reviewed. `OUTBOX_TEST_WRITE=1` writes them again, to
//! be reviewed with `git diff`.

use std::fs;
use std::path::Path;

use outbox_operator::desired::configuration::configuration;
use outbox_operator::desired::configuration_file::ConfigurationFile;
use outbox_operator::desired::pod::{PodDefaults, UserIds};
use outbox_operator::desired::workload::workload;
use outbox_operator::references::{cloudnative_pg, strimzi};
use outbox_operator::resource::OutboxRelay;
use serde_json::{Value, json};

/// The objects of a sample's resource in the namespace `team`.
pub fn objects(sample: &str) -> Vec<Value> {
    let relay = sample.split("---\n").find(|document| document.contains("kind: OutboxRelay")).unwrap();
    let mut relay: OutboxRelay = serde_saphyr::from_str(relay).unwrap();
    relay.metadata.namespace = Some("team".into());
    relay.metadata.uid = Some("00000000-0000-0000-0000-000000000000".into());
    replace_references(&mut relay);
    let config = configuration(&relay, "outbox_relay").unwrap();
    config.check().unwrap_or_else(|error| assert!(error.to_string().contains("File"), "{error}"));
    let file = ConfigurationFile::of(&config).unwrap();
    let defaults = PodDefaults { image: "outbox-relay:0.1.0", user_ids: UserIds::Fixed, template: None };
    let made = workload(&relay, &file, defaults).unwrap();
    [
        Some(json!(made.service_account)),
        Some(json!(made.config_map)),
        Some(json!(made.service)),
        Some(json!(made.disruption_budget)),
        made.network_policy.map(|policy| json!(policy)),
        Some(json!(made.deployment)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// With what CloudNativePG and Strimzi would have made.
fn replace_references(relay: &mut OutboxRelay) {
    let postgres = &mut relay.spec.source.postgres;
    if let Some(reference) = postgres.cluster_ref.take() {
        let role = json!({"name": "outbox_relay", "passwordSecret": {"name": "outbox-relay-password"}});
        let cluster = json!({"spec": {"managed": {"roles": [role]}}, "status": {"readyInstances": 3}});
        let cluster = serde_json::from_value(cluster).unwrap();
        cloudnative_pg::fill_in(postgres, &reference, &cluster, "team").unwrap();
    }
    let kafka = &mut relay.spec.sink.kafka;
    if let Some(reference) = kafka.cluster_ref.take() {
        let status = json!({"name": "tls", "bootstrapServers": "events-kafka-bootstrap.team.svc:9093"});
        let listeners = json!([{"name": "tls", "tls": true}]);
        let cluster = json!({"spec": {"kafka": {"listeners": listeners}}, "status": {"listeners": [status]}});
        strimzi::fill_in_cluster(kafka, &reference, &serde_json::from_value(cluster).unwrap()).unwrap();
    }
    if let Some(reference) = kafka.user_ref.take() {
        let type_ = if kafka.admin_certificate_secret_ref.is_some() { "tls" } else { "scram-sha-512" };
        let status = json!({"username": reference.name, "secret": reference.name});
        let user = json!({"spec": {"authentication": {"type": type_}}, "status": status});
        strimzi::fill_in_user(kafka, &reference, &serde_json::from_value(user).unwrap()).unwrap();
    }
}

#[test]
fn samples_become_what_they_did() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in fs::read_dir(tests.join("../docs/samples")).unwrap() {
        let sample = file.unwrap().path();
        let text = fs::read_to_string(&sample).unwrap();
        if !text.contains("kind: OutboxRelay") {
            continue;
        }
        let expected = tests.join("tests/rendered").join(sample.file_name().unwrap());
        let written: Vec<String> =
            objects(&text).iter().map(|object| serde_saphyr::to_string(object).unwrap()).collect();
        // As one file that could be applied.
        let now = written.join("---\n");
        if std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
            fs::create_dir_all(expected.parent().unwrap()).unwrap();
            fs::write(&expected, &now).unwrap();
        }
        let then = fs::read_to_string(&expected).unwrap_or_default();
        assert!(now == then, "{} has changed; OUTBOX_TEST_WRITE=1 writes it again", expected.display());
    }
}
