//! What is repaired, what is stopped, and what goes with a resource.

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::kubernetes::Kubernetes;
use testbed::postgres::{Postgres, PostgresOptions, Shutdown};
use testbed::{net, wait};

use crate::cluster::{DEFINITION, apply, least, namespace, relay, with};
use crate::stage::{SOON, Stage, get, operator};

pub async fn until_gone(stage: &Stage) {
    wait::until("the end of the resource", SOON, async || {
        match stage.namespace.kubectl(&["get", "obr", "shop", "-o", "name"]).await {
            Err(error) if error.to_string().contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
        }
    })
    .await
    .unwrap();
}

/// The slot and what belongs to it by default, a topic where it is said; and not before the relay has released the slot.
#[tokio::test]
async fn deletion_does_what_the_policies_say_and_nothing_else() {
    let mut stage = Stage::shared("deletion").await;
    let doomed = format!("{}-doomed", stage.topic);
    stage.spec["topics"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": doomed, "partitions": 1, "replicationFactor": 1, "deletionPolicy": "Delete"}));
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    let registered = "SELECT count(*) FROM outbox_checkpoint";
    assert_eq!(stage.value(registered).await.as_deref(), Some("1"));
    let ready = format!(
        r#"outbox_operator_resource_condition{{name="shop",namespace="{}",status="True",type="Ready"}} 1"#,
        stage.namespace.name()
    );
    let metrics = stage.metrics().await;
    assert!(metrics.contains(&ready), "{metrics}");
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    stage.until(&[("Ready", "False", "Deleting")]).await;
    let said = ["get", "obr", "shop", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}"];
    let said = stage.namespace.kubectl(&said).await.unwrap();
    assert!(said.starts_with("waiting for the relay to release slot"), "{said}");
    relay.terminate().unwrap();
    relay.wait(SOON).await.unwrap();
    until_gone(&stage).await;
    wait::until("no metrics of it", SOON, async || {
        let metrics = stage.metrics().await;
        if metrics.contains(r#"name="shop""#) { Err(metrics) } else { Ok(()) }
    })
    .await
    .unwrap();
    let slots =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", stage.database.name());
    assert_eq!(stage.value(&slots).await.as_deref(), Some("0"));
    assert_eq!(stage.value(registered).await.as_deref(), Some("0"), "retention would wait for it forever");
    assert_eq!(stage.value("SELECT count(*) FROM pg_publication").await.as_deref(), Some("1"));
    assert!(stage.has_topic(&stage.topic).await);
    wait::until("the end of the topic", SOON, async || {
        if stage.has_topic(&doomed).await { Err("it is there") } else { Ok(()) }
    })
    .await
    .unwrap();
}

/// A slot of the same name that this resource's relay never had belongs to another client.
#[tokio::test]
async fn a_slot_that_was_never_its_own_stays() {
    let stage = Stage::shared("foreign").await;
    stage.make_secret().await;
    let slot = stage.database.name();
    let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    stage.database.execute(&make).await.unwrap();
    stage.apply().await;
    stage.until(&[("SlotReady", "True", "Present"), ("Streaming", "False", "NoPod")]).await;
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    until_gone(&stage).await;
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(stage.value(&slots).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_database_that_is_gone_holds_a_resource_only_until_it_is_forced() {
    let mut stage = Stage::shared("gone").await;
    stage.make_secret().await;
    stage.spec["source"]["postgres"]["port"] = json!(net::free_port().unwrap());
    stage.apply().await;
    stage.until(&[("DatabaseReachable", "False", "DatabaseUnreachable")]).await;
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    stage.until(&[("Ready", "False", "Deleting")]).await;
    stage.namespace.kubectl(&["annotate", "obr", "shop", "outbox.dev/force-delete=true"]).await.unwrap();
    until_gone(&stage).await;
}

/// The Secrets may go first, and what is outside still goes with the resource.
#[tokio::test]
async fn a_namespace_that_is_deleted_takes_what_was_made_with_it() {
    let mut stage = Stage::shared("namespace").await;
    stage.spec["topics"][0]["deletionPolicy"] = json!("Delete");
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    relay.terminate().unwrap();
    relay.wait(SOON).await.unwrap();
    let (namespace, cluster) = (stage.namespace.name(), stage.namespace.cluster());
    stage.namespace.kubectl(&["delete", "secret", "credentials"]).await.unwrap();
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await.unwrap();
    wait::until("the end of the namespace", SOON, async || {
        match cluster.kubectl(&["get", "namespace", namespace, "-o", "jsonpath={.status.conditions}"]).await {
            Err(error) if error.to_string().contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
        }
    })
    .await
    .unwrap();
    let slots =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", stage.database.name());
    assert_eq!(stage.value(&slots).await.as_deref(), Some("0"));
    wait::until("the end of the topic", SOON, async || {
        if stage.has_topic(&stage.topic).await { Err("it is there") } else { Ok(()) }
    })
    .await
    .unwrap();
}

/// As OPERATOR.md describes it, with an event that is committed while neither resource exists.
#[tokio::test]
async fn a_resource_with_another_name_continues_at_the_position_of_the_first() {
    let mut stage = Stage::shared("moved").await;
    stage.make_secret().await;
    stage.spec["source"]["postgres"]["slot"]["deletionPolicy"] = json!("Retain");
    stage.apply_as("store").await;
    stage.until_of("store", &[("SlotReady", "False", "WaitingForRelay")]).await;
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.start_relay_of("store", &folder).await;
    stage.insert(stage.database.name()).await;
    stage.until_records(1).await;

    stage.spec["suspend"] = json!(true);
    stage.apply_as("store").await;
    relay.terminate().unwrap();
    relay.wait(SOON).await.unwrap();
    stage.until_of("store", &[("Ready", "True", "Suspended")]).await;
    stage.namespace.kubectl(&["delete", "obr", "store", "--timeout=120s"]).await.unwrap();
    stage.insert(stage.database.name()).await;
    let namespace = stage.namespace.name();
    let rename =
        format!("UPDATE outbox_checkpoint SET relay = '{namespace}/shop' WHERE relay = '{namespace}/store'");
    stage.database.execute(&rename).await.unwrap();

    stage.spec["suspend"] = json!(false);
    stage.apply().await;
    stage.until(&[("SlotReady", "True", "Present"), ("WorkloadAvailable", "False", "Unschedulable")]).await;
    let _relay = stage.start_relay(&folder).await;
    stage.say_that_pods_are_ready().await;
    stage.until(&[("Ready", "True", "Streaming")]).await;
    stage.until_records(2).await;
    assert_eq!(stage.value("SELECT count(*) FROM outbox_checkpoint").await.as_deref(), Some("1"));
}

/// Reached by another name, it is the same database; and the older resource has its slot until it goes.
#[tokio::test]
async fn of_two_resources_for_one_slot_the_older_has_it() {
    let mut stage = Stage::shared("rivals").await;
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("PublicationReady", "True", "Present"), ("SlotReady", "False", "WaitingForRelay")]).await;
    stage.another_second().await;
    stage.spec["source"]["postgres"]["host"] = json!("localhost");
    stage.apply_as("rival").await;
    stage.until_of("rival", &[("SlotReady", "False", "ResourceConflict")]).await;
    let made = stage.namespace.kubectl(&["get", "deployments", "-o", "name"]).await.unwrap();
    assert_eq!(made.trim(), "deployment.apps/shop-relay");
    stage.namespace.kubectl(&["delete", "obr", "shop", "--timeout=120s"]).await.unwrap();
    stage.until_of("rival", &[("SlotReady", "False", "WaitingForRelay")]).await;
}

/// One that another version has written, beside a good one.
#[tokio::test]
async fn a_resource_that_cannot_be_read_holds_up_no_other() {
    let cluster = Kubernetes::start().await.unwrap();
    let newer = DEFINITION.replace("- Table\n", "- Table\n                    - Yesterday\n");
    cluster.apply(&newer).await.unwrap();
    cluster.until_established(&["outboxrelays.outbox.dev"]).await.unwrap();
    let mut unreadable = relay(&with(least(), "/source/start", json!("Yesterday")));
    unreadable["metadata"]["name"] = json!("newer");
    for object in [unreadable, relay(&least())] {
        cluster.apply(&object.to_string()).await.unwrap();
    }
    cluster
        .kubectl(&[
            "patch",
            "obr",
            "newer",
            "--type=merge",
            "-p",
            r#"{"metadata": {"finalizers": ["outbox.dev/cleanup"]}}"#,
        ])
        .await
        .unwrap();
    let listen = format!("127.0.0.1:{}", net::free_port().unwrap());
    let program =
        operator("default", cluster.kubeconfig()).env("OUTBOX_OPERATOR_LISTEN", &listen).start().unwrap();
    wait::until("the good one to be looked at", SOON, async || {
        let reasons = ["get", "obr", "shop", "-o", "jsonpath={.status.conditions[*].reason}"];
        let seen = cluster.kubectl(&reasons).await.map_err(|error| error.to_string())?;
        if seen.contains("SecretUnusable") && program.log().contains("cannot be read; correct it") {
            Ok(())
        } else {
            Err(format!("{seen}\n{}", program.log_tail()))
        }
    })
    .await
    .unwrap();
    let metrics = get(listen.parse().unwrap(), "/metrics").await;
    let unknown = r#"outbox_operator_resource_condition{name="newer",namespace="default",status="Unknown",type="Ready"} 1"#;
    assert!(metrics.contains(unknown), "{metrics}");
    cluster.kubectl(&["delete", "obr", "newer", "--wait=false"]).await.unwrap();
    cluster.kubectl(&["annotate", "obr", "newer", "outbox.dev/force-delete=true"]).await.unwrap();
    cluster.kubectl(&["wait", "--for=delete", "obr/newer", "--timeout=120s"]).await.unwrap();
    cluster.kill_api_server().await.unwrap();
}

/// An operator that may see nothing says so, and stops when it is told to.
#[tokio::test]
async fn an_operator_without_rights_says_what_it_needs() {
    let namespace = namespace("rights").await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "unprivileged"}});
    apply(&namespace, &account).await.unwrap();
    let kubeconfig = namespace.cluster().kubeconfig_of(namespace.name(), "unprivileged").await.unwrap();
    let mut program = operator(namespace.name(), &kubeconfig).start().unwrap();
    wait::until("a warning", SOON, async || {
        let log = program.log();
        if log.contains("may the operator read them?") && log.contains("forbidden") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await
    .unwrap();
    program.terminate().unwrap();
    assert_eq!(program.wait(SOON).await.unwrap().code(), Some(0), "{}", program.log());
}

/// Every edit makes a version that a write of the operator's may miss; the last one counts.
#[tokio::test]
async fn edits_in_quick_succession_end_as_the_last_one_says() {
    let mut stage = Stage::shared("edits").await;
    stage.make_secret().await;
    for partitions in 3..=9 {
        stage.spec["topics"][0]["partitions"] = json!(partitions);
        stage.apply().await;
        for number in 0..3 {
            let mark = format!("edited=at-{partitions}-{number}");
            stage.namespace.kubectl(&["annotate", "--overwrite", "obr", "shop", &mark]).await.unwrap();
        }
    }
    wait::until("nine partitions", SOON, async || match stage.observed().await {
        Some(topic) if topic.partitions == 9 => Ok(()),
        other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
    })
    .await
    .unwrap();
    stage
        .until(&[("TopicsReady", "True", "AsDeclared"), ("WorkloadAvailable", "False", "Unschedulable")])
        .await;
    let seen = ["get", "obr", "shop", "-o", "jsonpath={.metadata.generation} {.status.observedGeneration}"];
    assert_eq!(stage.namespace.kubectl(&seen).await.unwrap(), "7 7");
}

/// Each shows with its reason, and clears automatically; the pods keep running meanwhile.
#[tokio::test]
async fn outages_of_both_sides_show_and_clear() {
    let (mut postgres, mut kafka) =
        tokio::try_join!(Postgres::start(PostgresOptions::default()), Kafka::start(KafkaOptions::default()))
            .unwrap();
    let stage = Stage::on("outages", &postgres.url("postgres"), &kafka.bootstrap()).await;
    stage.make_secret().await;
    stage.apply().await;
    let well = [
        ("DatabaseReachable", "True", "Connected"),
        ("KafkaReachable", "True", "Connected"),
        ("TopicsReady", "True", "AsDeclared"),
    ];
    // The pods are made in the pass after the one in which the database became known.
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    stage.until(&well).await;
    postgres.stop(Shutdown::Fast).await.unwrap();
    stage
        .until(&[
            ("DatabaseReachable", "False", "DatabaseUnreachable"),
            ("PublicationReady", "Unknown", "NotReached"),
            ("KafkaReachable", "True", "Connected"),
        ])
        .await;
    let deployment =
        stage.namespace.kubectl(&["get", "deployment", "shop-relay", "-o", "json"]).await.unwrap();
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 1, "the pods run on");
    postgres.start_again().await.unwrap();
    stage.until(&well).await;
    kafka.stop().await.unwrap();
    stage
        .until(&[("KafkaReachable", "False", "KafkaUnreachable"), ("DatabaseReachable", "True", "Connected")])
        .await;
    kafka.start_again().await.unwrap();
    stage.until(&well).await;
    // Dropped behind the operator's back: made again, since the relay was not there to miss anything.
    stage.database.execute("DROP PUBLICATION outbox").await.unwrap();
    wait::until("the publication again", SOON, async || {
        match stage.value("SELECT count(*) FROM pg_publication").await.as_deref() {
            Some("1") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}
