//! An API server that fails: what that says about the objects it was asked for, and what it does not say.

use std::path::PathBuf;

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::Cluster;
use testbed::process::{Launch, Program};
use testbed::{net, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::cluster::apply;
use crate::stage::{SOON, Stage, operator};

const RULES: &str = include_str!("../../../charts/outbox-operator/files/rules.yaml");

/// In front of an API server: answers requests for objects of one kind with 500 while it is told to.
struct Stumbling {
    /// Their plural, or nothing.
    stumbles_on: watch::Sender<&'static str>,
    kubeconfig: PathBuf,
    _behind: Program,
    _folder: Folder,
}

impl Stumbling {
    async fn start(cluster: &Cluster) -> Stumbling {
        let behind = net::free_port().unwrap();
        let kubectl = cluster.tools().unwrap()[0].join("kubectl");
        let proxy = Launch::new("kubectl-proxy", kubectl)
            .env("KUBECONFIG", cluster.kubeconfig())
            .arg("proxy")
            .arg(format!("--port={behind}"))
            .start()
            .unwrap();
        wait::until("kubectl proxy", SOON, async || {
            TcpStream::connect(("127.0.0.1", behind)).await.map(drop)
        })
        .await
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stumbles_on, kind) = watch::channel("");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let kind = *kind.borrow();
                tokio::spawn(pass_on(client, behind, kind));
            }
        });
        let folder = Folder::new("stumbling").unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let cluster = json!({"name": "c", "cluster": {"server": format!("http://{address}")}});
        let context = json!({"name": "c", "context": {"cluster": "c", "user": "u"}});
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster],
                          "contexts": [context], "users": [{"name": "u", "user": {}}]});
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        Stumbling { stumbles_on, kubeconfig, _behind: proxy, _folder: folder }
    }
}

/// One request, on a new connection.
async fn pass_on(mut client: TcpStream, behind: u16, kind: &str) {
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read_buf(&mut read).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let line = read.iter().position(|byte| *byte == b'\r').unwrap();
    let wants_one = String::from_utf8_lossy(&read[..line]).contains(&format!("/{kind}/"));
    if wants_one && !kind.is_empty() {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500,
                            "reason": "InternalError", "message": "etcdserver: request timed out"})
        .to_string();
        let head =
            "HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\nconnection: close";
        let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{status}", status.len());
        drop(client.write_all(answer.as_bytes()).await);
        return;
    }
    let mut server = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
    read.splice(line..line, *b"\r\nconnection: close");
    if server.write_all(&read).await.is_ok() {
        drop(copy_bidirectional(&mut client, &mut server).await);
    }
}

async fn status(stage: &Stage) -> Value {
    let stored = stage.namespace.kubectl(&["get", "obr", "shop", "-o", "json"]).await.unwrap();
    serde_json::from_str::<Value>(&stored).unwrap()["status"].clone()
}

/// It says nothing about the Secret: what was said before still counts, of the generation it was said of.
#[tokio::test]
async fn conditions_keep_their_state_while_secrets_cannot_be_read() {
    let mut stage = Stage::shared("stumbles").await;
    stage.operator.kill().await.unwrap();
    let server = Stumbling::start(stage.namespace.cluster()).await;
    stage.operator = operator(stage.namespace.name(), &server.kubeconfig).start().unwrap();
    stage.make_secret().await;
    stage.apply().await;
    stage
        .until(&[("TopicsReady", "True", "AsDeclared"), ("WorkloadAvailable", "False", "Unschedulable")])
        .await;
    server.stumbles_on.send_replace("secrets");
    // Passes that had read the Secrets before may still write.
    wait::until("a pass without Secrets", SOON, async || {
        let log = stage.operator.log();
        if log.contains("cannot read Secret credentials now") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    let before = status(&stage).await;
    stage.spec["topics"][0]["partitions"] = json!(4);
    stage.apply().await;
    let tries = |log: &str| log.matches("cannot read Secret credentials now").count();
    let so_far = tries(&stage.operator.log());
    wait::until("another two passes", SOON, async || {
        let log = stage.operator.log();
        if tries(&log) >= so_far + 2 { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    assert_eq!(status(&stage).await, before);
    let events = stage.namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).await;
    assert!(!events.unwrap().contains("SecretUnusable"));
    server.stumbles_on.send_replace("");
    wait::until("four partitions", SOON, async || match stage.observed().await {
        Some(topic) if topic.partitions == 4 => Ok(()),
        other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
    })
    .await
    .unwrap();
}

/// Nothing is wrong with the objects, and there is nothing to correct.
#[tokio::test]
async fn an_api_server_that_fails_while_objects_are_applied() {
    let mut stage = Stage::shared("fails").await;
    stage.operator.kill().await.unwrap();
    let server = Stumbling::start(stage.namespace.cluster()).await;
    server.stumbles_on.send_replace("configmaps");
    stage.operator = operator(stage.namespace.name(), &server.kubeconfig).start().unwrap();
    stage.make_secret().await;
    stage.apply().await;
    let unavailable = ("WorkloadAvailable", "Unknown", "KubernetesUnavailable");
    stage.until(&[unavailable, ("Reconciling", "True", "WaitingForRelay")]).await;
    let said = status(&stage).await.to_string();
    assert!(said.contains("etcdserver: request timed out"), "{said}");
    server.stumbles_on.send_replace("");
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
}

/// A right that is missing is named; given, it is used.
#[tokio::test]
async fn an_operator_that_may_not_read_secrets_says_what_to_bind() {
    let mut stage = Stage::shared("forbidden").await;
    stage.operator.kill().await.unwrap();
    let all: Vec<Value> = serde_saphyr::from_str(RULES).unwrap();
    let of_secrets = |rule: &Value| rule["resources"] == json!(["secrets"]);
    let rules: Vec<&Value> = all.iter().filter(|rule| !of_secrets(rule)).collect();
    assert_eq!(rules.len() + 1, all.len());
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "most"}, "rules": rules});
    apply(&stage.namespace, &role).await.unwrap();
    stage.namespace.kubectl(&["create", "serviceaccount", "limited"]).await.unwrap();
    let account = format!("--serviceaccount={}:limited", stage.namespace.name());
    stage.namespace.kubectl(&["create", "rolebinding", "most", "--role=most", &account]).await.unwrap();
    let kubeconfig =
        stage.namespace.cluster().kubeconfig_of(stage.namespace.name(), "limited").await.unwrap();
    stage.operator = operator(stage.namespace.name(), &kubeconfig).start().unwrap();
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "SecretUnusable")]).await;
    let said = status(&stage).await.to_string();
    assert!(
        said.contains("the operator may not read Secret credentials: bind its service account"),
        "{said}"
    );
    stage
        .namespace
        .kubectl(&["create", "role", "secrets", "--verb=get", "--resource=secrets"])
        .await
        .unwrap();
    stage.namespace.kubectl(&["create", "rolebinding", "secrets", "--role=secrets", &account]).await.unwrap();
    stage
        .until(&[("ReferencesResolved", "True", "Resolved"), ("DatabaseReachable", "True", "Connected")])
        .await;
}
