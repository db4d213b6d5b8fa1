//! What the conditions say is so: of this specification, of these pods, and now.

use serde_json::json;
use testbed::guard::Folder;
use testbed::postgres::{Postgres, PostgresOptions, Shutdown};
use testbed::{shared, wait};

use crate::lifecycle::until_gone;
use crate::stage::{SOON, Stage};

async fn value(stage: &Stage, kind: &str, name: &str, path: &str) -> String {
    stage.namespace.kubectl(&["get", kind, name, "-o", &format!("jsonpath={path}")]).await.unwrap()
}

/// Waits until the status has this image as the one that the pods run.
async fn until_image(stage: &Stage, expected: &str) {
    wait::until(format!("image {expected}"), SOON, async || {
        let image = value(stage, "obr", "shop", "{.status.image}").await;
        if image == expected { Ok(()) } else { Err(image) }
    })
    .await
    .unwrap();
}

/// Two pods, of which one is to be replaced and its successor does not run: not ready, for as long as it lasts.
#[tokio::test]
async fn ready_means_that_all_pods_run_what_is_specified_now() {
    let mut stage = Stage::shared("rollout").await;
    stage.spec["relay"] = json!({"replicas": 2});
    let folder = Folder::new("relay").unwrap();
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let _relay = stage.start_relay(&folder).await;
    wait::until("two pods", SOON, async || {
        let pods = value(&stage, "deployment", "shop-relay", "{.status.replicas}").await;
        if pods == "2" { Ok(()) } else { Err(pods) }
    })
    .await
    .unwrap();
    stage.say_that_pods_are_ready().await;
    stage.until(&[("Ready", "True", "Streaming")]).await;
    until_image(&stage, "outbox-relay:test").await;
    stage.spec["relay"] = json!({"replicas": 2, "image": "registry.invalid/x:1"});
    stage.apply().await;
    stage.until(&[("Ready", "False", "RollingOut"), ("Streaming", "True", "Streaming")]).await;
    assert_eq!(value(&stage, "obr", "shop", "{.status.image}").await, "outbox-relay:test");
    let generation = value(&stage, "obr", "shop", "{.metadata.generation}").await;
    for _ in 0..5 {
        let seen = "{.status.observedGeneration} {.status.conditions[?(@.type==\"Ready\")].status}";
        assert_eq!(value(&stage, "obr", "shop", seen).await, format!("{generation} False"));
    }
    stage.say_that_pods_are_ready().await;
    stage.until(&[("Ready", "False", "RollingOut")]).await;
    wait::until("all pods to be new and ready", SOON, async || {
        stage.say_that_pods_are_ready().await;
        let seen = value(&stage, "obr", "shop", "{.status.conditions[?(@.type==\"Ready\")].reason}").await;
        if seen == "Streaming" { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
    until_image(&stage, "registry.invalid/x:1").await;
}

/// Nothing changes until the quota does: no pod is on its way.
#[tokio::test]
async fn pods_that_a_quota_refuses_are_said_to_be_refused() {
    let stage = Stage::shared("quota").await;
    stage.namespace.kubectl(&["create", "quota", "none", "--hard=pods=0"]).await.unwrap();
    wait::until("the quota", SOON, async || {
        let hard = value(&stage, "quota", "none", "{.status.hard.pods}").await;
        if hard == "0" { Ok(()) } else { Err(hard) }
    })
    .await
    .unwrap();
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "PodsRefused"), ("Ready", "False", "PodsRefused")]).await;
    let said = value(&stage, "obr", "shop", "{.status.conditions[?(@.type==\"Ready\")].message}").await;
    assert!(said.contains("exceeded quota: none"), "{said}");
}

/// Suspension stops pods while the database is down, and reports when none is left.
#[tokio::test]
async fn suspension_needs_nothing_outside_kubernetes() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let bootstrap = shared().await.unwrap().kafka_bootstrap().to_owned();
    let mut stage = Stage::on("suspend", &postgres.url("postgres"), &bootstrap).await;
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    stage.namespace.kubectl(&["delete", "secret", "credentials"]).await.unwrap();
    postgres.stop(Shutdown::Fast).await.unwrap();
    stage.spec["suspend"] = json!(true);
    stage.apply().await;
    stage.until(&[("Suspended", "True", "Suspended"), ("Ready", "True", "Suspended")]).await;
    assert_eq!(value(&stage, "deployment", "shop-relay", "{.spec.replicas}").await, "0");
    assert_eq!(value(&stage, "deployment", "shop-relay", "{.status.replicas}").await, "");
    postgres.start_again().await.unwrap();
}

/// Pods that need more memory in an outage get it, and a Deployment that was deleted in one is made again.
#[tokio::test]
async fn what_runs_is_changed_and_repaired_while_a_server_is_down() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let bootstrap = shared().await.unwrap().kafka_bootstrap().to_owned();
    let mut stage = Stage::on("repair", &postgres.url("postgres"), &bootstrap).await;
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    postgres.stop(Shutdown::Fast).await.unwrap();
    stage.spec["relay"] = json!({"resources": {"requests": {"memory": "77Mi"}}});
    stage.apply().await;
    until_memory(&stage, "77Mi").await;
    stage.namespace.kubectl(&["delete", "deployment", "shop-relay"]).await.unwrap();
    until_memory(&stage, "77Mi").await;
    stage.until(&[("DatabaseReachable", "False", "DatabaseUnreachable")]).await;

    // Nothing is known of another database, which may not exist: the pods stay with the one that they have.
    let port = &mut stage.spec["source"]["postgres"]["port"];
    *port = json!(testbed::net::free_port().unwrap());
    stage.spec["relay"]["resources"]["requests"]["memory"] = json!("88Mi");
    stage.apply().await;
    let note = "{.status.conditions[?(@.type==\"WorkloadAvailable\")].message}";
    wait::until("the change to wait", SOON, async || {
        let said = value(&stage, "obr", "shop", note).await;
        if said.contains("spec.source differs from what the pods have") { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
    until_memory(&stage, "77Mi").await;
    let port = url::Url::parse(stage.database.url()).unwrap().port();
    stage.spec["source"]["postgres"]["port"] = json!(port);
    stage.apply().await;
    until_memory(&stage, "88Mi").await;
    postgres.start_again().await.unwrap();
}

/// Waits until the Deployment requests so much memory for its pods.
async fn until_memory(stage: &Stage, expected: &str) {
    let requested = "{.spec.template.spec.containers[0].resources.requests.memory}";
    wait::until(format!("{expected} requested"), SOON, async || {
        let query = ["get", "deployment", "shop-relay", "-o", &format!("jsonpath={requested}")];
        match stage.namespace.kubectl(&query).await {
            Ok(memory) if memory == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}

/// Neither server says that it can be used, so nothing runs that was not there before; the Kafka cluster alone keeps nothing else back.
#[tokio::test]
async fn nothing_is_made_for_a_cluster_that_was_never_usable() {
    let mut stage = Stage::shared("never").await;
    let (usable, port) = (stage.bootstrap.clone(), testbed::net::free_port().unwrap());
    let unusable = format!("127.0.0.1:{port}");
    stage.spec["sink"]["kafka"]["bootstrapServers"] = json!(unusable);
    stage.make_secret().await;
    stage.apply().await;
    stage
        .until(&[("KafkaReachable", "False", "KafkaUnreachable"), ("WorkloadAvailable", "False", "NotYet")])
        .await;
    let objects = stage.namespace.kubectl(&["get", "deployment,configmap/shop-relay", "-o", "name"]).await;
    assert!(objects.is_err() || objects.as_ref().is_ok_and(String::is_empty), "{objects:?}");

    stage.spec["sink"]["kafka"]["bootstrapServers"] = json!(usable);
    stage.spec["relay"] = json!({"resources": {"requests": {"memory": "66Mi"}}});
    stage.apply().await;
    until_memory(&stage, "66Mi").await;
    stage.spec["sink"]["kafka"]["bootstrapServers"] = json!(unusable);
    stage.apply().await;
    stage.until(&[("KafkaReachable", "False", "KafkaUnreachable")]).await;
    let configuration = value(&stage, "configmap", "shop-relay", "{.data.relay\\.yaml}").await;
    assert!(configuration.contains(&usable) && !configuration.contains(&unusable), "{configuration}");
}

/// Another session keeps a lock that the deletion of the resource needs.
#[tokio::test]
async fn a_lock_does_not_keep_a_resource_that_is_deleted_by_force() {
    let stage = Stage::shared("lock").await;
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    relay.terminate().unwrap();
    relay.wait(SOON).await.unwrap();
    let mut holder = stage.database.connect().await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK outbox_checkpoint").execute(&mut holder).await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    stage.until(&[("Ready", "False", "Deleting")]).await;
    stage.namespace.kubectl(&["annotate", "obr", "shop", "outbox.dev/force-delete=true"]).await.unwrap();
    until_gone(&stage).await;
    assert!(stage.metrics().await.contains("outbox_operator_deletions_given_up_total 1"));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay operator'
        AND datname = current_database() AND wait_event_type = 'Lock'";
    wait::until("no session that waits for the lock", SOON, async || {
        let waiting = stage.value(waiting).await.unwrap();
        if waiting == "0" { Ok(()) } else { Err(waiting) }
    })
    .await
    .unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    let slot = stage.database.name();
    stage.database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
}

/// Nothing is changed, not even what others change; then everything is as declared again.
#[tokio::test]
async fn a_paused_resource_is_left_alone() {
    let mut stage = Stage::shared("paused").await;
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    let pause = ["annotate", "obr", "shop", "outbox.dev/pause-reconciliation=true"];
    stage.namespace.kubectl(&pause).await.unwrap();
    stage.until(&[("ReconciliationPaused", "True", "Annotation"), ("Ready", "True", "Streaming")]).await;
    stage.spec["topics"][0]["partitions"] = json!(7);
    stage.apply().await;
    let scale = ["scale", "deployment", "shop-relay", "--replicas=0"];
    stage.namespace.kubectl(&scale).await.unwrap();
    wait::until("the Deployment without pods", SOON, async || {
        let pods = value(&stage, "deployment", "shop-relay", "{.status.replicas}").await;
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await
    .unwrap();
    assert_eq!(value(&stage, "deployment", "shop-relay", "{.spec.replicas}").await, "0");
    assert_eq!(stage.observed().await.unwrap().partitions, 3);
    stage.namespace.kubectl(&["annotate", "obr", "shop", "outbox.dev/pause-reconciliation-"]).await.unwrap();
    wait::until("all as declared", SOON, async || {
        let replicas = value(&stage, "deployment", "shop-relay", "{.spec.replicas}").await;
        let partitions = stage.observed().await.unwrap().partitions;
        let types = value(&stage, "obr", "shop", "{.status.conditions[*].type}").await;
        let is_so = replicas == "1" && partitions == 7 && !types.contains("Paused");
        if is_so { Ok(()) } else { Err(format!("{replicas} {partitions} {types}")) }
    })
    .await
    .unwrap();
}
