//! A bad namespace, server or pod costs only the resources that depend on it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outbox_operator::desired::configuration::ADMIN_PORT;
use serde_json::json;
use testbed::guard::Folder;
use testbed::kubernetes::Cluster;
use testbed::{net, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::chart::{CHART, REGISTRY};
use crate::stage::{SOON, Stage, get, operator};

/// Installs the chart in `place`, with rights in the namespace `watched`; what the account of its operator connects with.
async fn account_of_a_release(cluster: &Cluster, place: &str, watched: &str) -> PathBuf {
    let watched = format!("watchNamespaces={{{watched}}}");
    let install = ["install", place, CHART, "--namespace", place, "--set", &watched];
    let values = ["--set", "crds.install=false", "--set", "rbac.aggregate=false", "--set", REGISTRY];
    cluster.helm(&[&install[..], &values].concat()).await.unwrap();
    cluster.kubeconfig_of(place, &format!("{place}-outbox-operator")).await.unwrap()
}

/// One of the namespaces does not exist, so the operator has no rights there.
#[tokio::test]
async fn a_namespace_that_cannot_be_watched_holds_up_no_other() {
    let mut stage = Stage::shared("watched").await;
    stage.operator.terminate().unwrap();
    stage.operator.wait(SOON).await.unwrap();
    let (cluster, namespace) = (stage.namespace.cluster().clone(), stage.namespace.name().to_owned());
    let kubeconfig = account_of_a_release(&cluster, &namespace, &namespace).await;
    let listen = format!("127.0.0.1:{}", net::free_port().unwrap());
    let both = format!("{namespace}-elsewhere,{namespace}");
    stage.operator = operator(&both, &kubeconfig).env("OUTBOX_OPERATOR_LISTEN", &listen).start().unwrap();
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    let metrics = get(listen.parse().unwrap(), "/metrics").await;
    for (place, synced) in [(&namespace, 1), (&format!("{namespace}-elsewhere"), 0)] {
        let line = format!("outbox_operator_watch_synced{{kind=\"Pod\",namespace=\"{place}\"}} {synced}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    stage.operator.terminate().unwrap();
    assert_eq!(stage.operator.wait(SOON).await.unwrap().code(), Some(0), "{}", stage.operator.log_tail());
}

/// Takes connections and never answers; counts them.
async fn silent_server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            open.push(stream);
        }
    });
    (address, count)
}

/// Thirty resources on a server that swallows what it is sent: a few ask it, and all know.
#[tokio::test]
async fn a_server_that_does_not_answer_is_asked_by_one_for_all() {
    const RESOURCES: usize = 30;
    let mut stage = Stage::shared("silent").await;
    stage.make_secret().await;
    let (address, connections) = silent_server().await;
    stage.spec["source"]["postgres"]["port"] = json!(address.port());
    for number in 0..RESOURCES {
        stage.spec["source"]["postgres"]["slot"]["name"] = json!(format!("slot_{number}"));
        stage.spec["topics"][0]["name"] = json!(format!("{}.{number}", stage.topic));
        stage.apply_as(&format!("silent-{number}")).await;
    }
    for number in 0..RESOURCES {
        let unreachable = [("DatabaseReachable", "False", "DatabaseUnreachable")];
        stage.until_of(&format!("silent-{number}"), &unreachable).await;
    }
    let connections = connections.load(Ordering::Relaxed);
    assert!(connections < RESOURCES, "{connections} connections for {RESOURCES} resources");
}

/// What answers in place of a relay gives another reason and another message each time: no loop, and no flood of Events.
#[tokio::test]
async fn a_pod_that_says_something_else_each_time() {
    let stage = Stage::shared("hostile").await;
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind((stage.pod_ip, ADMIN_PORT)).await.unwrap();
    let (counted, name) = (Arc::clone(&answered), format!("{}/shop", stage.namespace.name()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            let letters: String =
                number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'A')).collect();
            let problem = json!({"reason": format!("Made{letters}"), "message": letters, "remedy": ""});
            let body =
                json!({"name": name, "role": "none", "ready": false, "phase": "x", "problem": problem});
            let body = body.to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let mut request = [0; 1024];
            if stream.read(&mut request).await.is_ok() {
                drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
            }
        }
    });
    stage.say_that_pods_are_ready().await;
    let ready =
        ["get", "obr", "shop", "-o", "jsonpath={.status.conditions[?(@.type==\"Streaming\")].reason}"];
    wait::until("one of its reasons", SOON, async || match stage.namespace.kubectl(&ready).await {
        Ok(reason) if reason.starts_with("Made") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    let (since, before) = (Instant::now(), answered.load(Ordering::Relaxed));
    wait::until("three more answers", SOON, async || match answered.load(Ordering::Relaxed) - before {
        3.. => Ok(()),
        few => Err(few),
    })
    .await
    .unwrap();
    // Pauses of 8 s lie between them, if something else in the cluster has not made one shorter.
    assert!(since.elapsed() >= Duration::from_secs(7), "asked again within {:?}", since.elapsed());
    let events = ["get", "events", "-o", "jsonpath={range .items[*]}{.reason} {end}"];
    let events = stage.namespace.kubectl(&events).await.unwrap();
    let made_up = events.split_whitespace().filter(|reason| reason.starts_with("Made")).count();
    assert!(made_up <= answered.load(Ordering::Relaxed), "{events}");
}

/// The Role in a watched namespace goes with the namespace, before the resource does.
#[tokio::test]
async fn a_watched_namespace_can_be_deleted_and_leaves_no_slot() {
    let mut stage = Stage::shared("doomed").await;
    stage.operator.terminate().unwrap();
    stage.operator.wait(SOON).await.unwrap();
    let (cluster, namespace) = (stage.namespace.cluster().clone(), stage.namespace.name().to_owned());
    let release = cluster.namespace("operators").await.unwrap();
    let kubeconfig = account_of_a_release(&cluster, release.name(), &namespace).await;
    stage.operator = operator(&namespace, &kubeconfig).start().unwrap();
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    cluster.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await.unwrap();
    wait::until("the end of the Role", SOON, async || {
        let roles = cluster.kubectl(&["get", "role", "-n", &namespace, "-o", "name"]).await.unwrap();
        if roles.is_empty() { Ok(()) } else { Err(roles) }
    })
    .await
    .unwrap();
    relay.kill().await.unwrap();
    let gone = format!("--timeout={}s", SOON.as_secs());
    let gone = cluster.kubectl(&["wait", "--for=delete", &format!("namespace/{namespace}"), &gone]).await;
    assert!(gone.is_ok(), "{gone:?}\n{}", stage.operator.log_tail());
    let slots =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", stage.database.name());
    assert_eq!(stage.value(&slots).await.as_deref(), Some("0"));
}
