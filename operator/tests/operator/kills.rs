//! An operator that dies between any two things it does: the next one continues, and nothing is left over or lost. It is
//! killed after the first, the fifth, the ninth … line that a pass writes to a log with a line for each request.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::process::Program;
use testbed::wait;

use crate::stage::{SOON, Stage, operator};

/// A slot of the server for each.
const RESOURCES: usize = 8;
const LINES_APART: usize = 4;

#[tokio::test]
async fn one_that_dies_anywhere_is_followed_by_one_that_continues() {
    let mut stage = Stage::shared("kills").await;
    stage.operator.kill().await.unwrap();
    stage.make_secret().await;
    let template = stage.spec.clone();
    let database = stage.database.name().to_owned();
    let before = stage.value("SELECT count(*) FROM pg_publication").await;
    for number in 0..RESOURCES {
        stage.spec = numbered(&template, &database, number);
        stage.apply_as(&format!("shop-{number}")).await;
        kill_after(&stage, 1 + number * LINES_APART).await;
    }
    stage.operator = talkative(&stage);
    for number in 0..RESOURCES {
        let well = [("TopicsReady", "True", "AsDeclared"), ("WorkloadAvailable", "False", "Unschedulable")];
        stage.until_of(&format!("shop-{number}"), &well).await;
        assert!(stage.has_topic(&format!("{database}-{number}")).await);
        pretend_to_have_run(&stage, number).await;
    }
    stage.operator.kill().await.unwrap();

    for number in 0..RESOURCES {
        let name = format!("shop-{number}");
        stage.namespace.kubectl(&["delete", "obr", &name, "--wait=false"]).await.unwrap();
        kill_after(&stage, 1 + number * LINES_APART).await;
    }
    stage.operator = talkative(&stage);
    wait::until("the end of all resources", SOON, async || {
        let left = stage.namespace.kubectl(&["get", "obr", "-o", "name"]).await;
        if left.as_ref().is_ok_and(String::is_empty) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
    .unwrap();
    for number in 0..RESOURCES {
        assert!(!stage.has_topic(&format!("{database}-{number}")).await);
    }
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{database}'");
    assert_eq!(stage.value(&slots).await.as_deref(), Some("0"));
    assert_eq!(stage.value("SELECT count(*) FROM outbox_checkpoint").await.as_deref(), Some("0"));
    assert_eq!(stage.value("SELECT count(*) FROM pg_publication").await, before);
}

/// Everything outside Kubernetes goes with the resource.
fn numbered(template: &Value, database: &str, number: usize) -> Value {
    let mut spec = template.clone();
    let postgres = &mut spec["source"]["postgres"];
    postgres["publication"] = json!({"name": format!("outbox_{number}"), "deletionPolicy": "Delete"});
    postgres["slot"] = json!({"name": format!("{database}_{number}")});
    let topic = format!("{database}-{number}");
    spec["topics"] =
        json!([{"name": topic, "partitions": 1, "replicationFactor": 1, "deletionPolicy": "Delete"}]);
    spec
}

/// What a relay leaves in the database.
async fn pretend_to_have_run(stage: &Stage, number: usize) {
    let (namespace, database) = (stage.namespace.name(), stage.database.name());
    let slot = format!("{database}_{number}");
    for sql in [
        format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
        format!(
            "INSERT INTO outbox_checkpoint (relay, slot, system_identifier, timeline)
             VALUES ('{namespace}/shop-{number}', '{slot}', 1, 1)"
        ),
    ] {
        stage.database.execute(&sql).await.unwrap();
    }
}

fn talkative(stage: &Stage) -> Program {
    let launch = operator(stage.namespace.name(), stage.namespace.cluster().kubeconfig());
    launch.env("RUST_LOG", "info,outbox_operator=debug,kube=debug,kube_client=debug").start().unwrap()
}

async fn kill_after(stage: &Stage, lines: usize) {
    let mut operator = talkative(stage);
    let enough = tokio::time::timeout(SOON, async {
        while operator.log().lines().filter(|line| line.contains("reconciling object")).count() < lines {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    enough.await.unwrap();
    operator.kill().await.unwrap();
}
