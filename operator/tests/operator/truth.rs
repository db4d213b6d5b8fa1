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
