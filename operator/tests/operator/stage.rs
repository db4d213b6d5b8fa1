//! An operator with its own resource: real control plane, PostgreSQL and Kafka. The cluster has no node, so the test
//! runs the relay itself, with exactly the configuration the operator has written, and says that its pod is ready.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use outbox_operator::desired::configuration::ADMIN_PORT;
use outbox_operator::desired::files::POD_ROOT;
use outbox_operator::topics::{Cluster, Observed};
use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::{self, Namespace};
use testbed::process::{Launch, Program};
use testbed::records::read_all;
use testbed::rust::cargo;
use testbed::{Database, net, shared, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::cluster::{apply, define, namespace, relay};

pub const SOON: Duration = Duration::from_secs(120);

/// See the module's text. The resource is not applied yet.
pub struct Stage {
    pub namespace: Namespace,
    pub database: Database,
    pub bootstrap: String,
    pub topic: String,
    pub operator: Program,
    admin_port: u16,
    pub spec: Value,
    /// What the relay's pod has in the cluster: a separate loopback address, so that the port can be that of a pod.
    pub pod_ip: Ipv4Addr,
}

impl Stage {
    /// On the shared servers.
    pub async fn shared(purpose: &str) -> Stage {
        let servers = shared().await.unwrap();
        let bootstrap = servers.kafka_bootstrap().to_owned();
        Stage::on(purpose, &servers.postgres_url("postgres"), &bootstrap).await
    }

    pub async fn on(purpose: &str, postgres_url: &str, bootstrap: &str) -> Stage {
        Stage::within(namespace(purpose).await, postgres_url, bootstrap).await
    }

    /// On the shared servers, with a separate control plane.
    pub async fn in_cluster(purpose: &str, cluster: &kubernetes::Cluster) -> Stage {
        define(cluster).await;
        let servers = shared().await.unwrap();
        let namespace = cluster.namespace(purpose).await.unwrap();
        Stage::within(namespace, &servers.postgres_url("postgres"), servers.kafka_bootstrap()).await
    }

    pub async fn within(namespace: Namespace, postgres_url: &str, bootstrap: &str) -> Stage {
        let database = Database::on(postgres_url, "operator").await.unwrap();
        let port = url::Url::parse(database.url()).unwrap().port().unwrap();
        let topic = format!("outbox.event.{}", database.name());
        let spec = json!({
            "source": {"postgres": {
                "host": "127.0.0.1", "port": port, "database": database.name(), "tls": {"mode": "disable"},
                "credentialsSecretRef": {"name": "credentials"},
                "publication": {"name": "outbox"}, "slot": {"name": database.name()},
            }},
            "sink": {"kafka": {"bootstrapServers": bootstrap, "tls": {"mode": "disable"}}},
            "topics": [{"name": topic, "partitions": 3, "replicationFactor": 1}],
        });
        let admin_port = net::free_port().unwrap();
        let launch = operator(namespace.name(), namespace.cluster().kubeconfig());
        let operator =
            launch.env("OUTBOX_OPERATOR_LISTEN", format!("127.0.0.1:{admin_port}")).start().unwrap();
        Stage {
            namespace,
            database,
            bootstrap: bootstrap.to_owned(),
            topic,
            operator,
            admin_port,
            spec,
            pod_ip: free_address(),
        }
    }

    pub async fn make_secret(&self) {
        self.secret("postgres", "unused").await;
    }

    /// The Secret with the relay's database credentials, with these values from now on.
    pub async fn secret(&self, user: &str, password: &str) {
        self.secret_named("credentials", user, password).await;
    }

    /// A Secret with credentials.
    pub async fn secret_named(&self, name: &str, user: &str, password: &str) {
        let values = json!({"username": user, "password": password});
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values});
        apply(&self.namespace, &secret).await.unwrap();
    }

    /// Applies the resource as it is in `spec`.
    pub async fn apply(&self) {
        self.apply_as("shop").await;
    }

    /// As [`Stage::apply`], under another name.
    pub async fn apply_as(&self, name: &str) {
        self.try_to_apply_as(name).await.unwrap();
    }

    /// As [`Stage::apply_as`], where it may be refused.
    pub async fn try_to_apply_as(&self, name: &str) -> Result<String, String> {
        let mut object = relay(&self.spec);
        object["metadata"]["name"] = json!(name);
        apply(&self.namespace, &object).await
    }

    /// The times of objects are whole seconds: of two that are made in the same one, neither is the older.
    pub async fn another_second(&self) {
        let made = ["get", "obr", "shop", "-o", "jsonpath={.metadata.creationTimestamp}"];
        let made: Timestamp = self.namespace.kubectl(&made).await.unwrap().parse().unwrap();
        wait::until("another second", SOON, async || {
            if Timestamp::now().as_second() > made.as_second() { Ok(()) } else { Err(made) }
        })
        .await
        .unwrap();
    }

    /// Commits an event of this aggregate type.
    pub async fn insert(&self, aggregate_type: &str) {
        let insert = format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), '{aggregate_type}', 'k', 't.v1', '1')"
        );
        self.database.execute(&insert).await.unwrap();
    }

    /// Waits until Kafka has so many records in the resource's topic.
    pub async fn until_records(&self, count: usize) {
        wait::until(format!("{count} records"), SOON, async || {
            match read_all(&self.bootstrap, &[&self.topic]).await {
                Ok(records) if records.len() == count => Ok(()),
                other => Err(format!("{other:?}\n{}", self.operator.log_tail())),
            }
        })
        .await
        .unwrap();
    }

    /// Makes the Secret and the resource, runs its relay, and waits until all is well.
    pub async fn until_streaming(&self, folder: &Folder) -> Program {
        self.make_secret().await;
        self.apply().await;
        self.until(&[("SlotReady", "False", "WaitingForRelay")]).await;
        self.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
        let relay = self.start_relay(folder).await;
        self.say_that_pods_are_ready().await;
        self.until(&[("Ready", "True", "Streaming")]).await;
        relay
    }

    /// What the operator that was started with the stage says under `/metrics`.
    pub async fn metrics(&self) -> String {
        get(SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin_port)), "/metrics").await
    }

    /// Where the operator that was started with the stage serves its status page.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.admin_port)
    }

    /// The value of a SQL expression, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let mut connection = self.database.connect().await.unwrap();
        let select = format!("SELECT ({sql})::text");
        sqlx::query_scalar(sqlx::AssertSqlSafe(select)).fetch_one(&mut connection).await.unwrap()
    }

    /// Whether a topic is there.
    pub async fn has_topic(&self, name: &str) -> bool {
        self.topics(name).await.contains_key(name)
    }

    /// The resource's topic as Kafka has it.
    pub async fn observed(&self) -> Option<Observed> {
        self.topics(&self.topic).await.remove(&self.topic)
    }

    /// A client of Kafka's.
    pub fn cluster(&self) -> Cluster {
        let sink = json!({"bootstrapServers": self.bootstrap, "tls": {"mode": "disable"}});
        Cluster::new(&serde_json::from_value(sink).unwrap()).unwrap()
    }

    async fn topics(&self, name: &str) -> BTreeMap<String, Observed> {
        self.cluster().observe(&[name.to_owned()]).await.unwrap()
    }
}

fn free_address() -> Ipv4Addr {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    Ipv4Addr::new(127, a, b, c.clamp(2, 250))
}

/// The answer of an admin listener, with its head.
pub async fn get(listener: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(listener).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// An operator that looks at `namespace`, and at nothing else.
pub fn operator(namespace: &str, kubeconfig: &Path) -> Launch {
    let port = net::free_port().unwrap();
    program(kubeconfig)
        .arg("run")
        .arg(format!("--namespace={namespace}"))
        .arg("--relay-image=outbox-relay:test")
        .env("OUTBOX_OPERATOR_LISTEN", format!("127.0.0.1:{port}"))
}

/// The operator without any settings. `OUTBOX_TEST_OPERATOR` names another build of it.
pub fn program(kubeconfig: &Path) -> Launch {
    let program = std::env::var_os("OUTBOX_TEST_OPERATOR");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_outbox-operator").into());
    Launch::new("outbox-operator", program).env("KUBECONFIG", kubeconfig)
}

/// Beside the operator's.
pub fn relay_program() -> PathBuf {
    built("outbox-relay")
}

/// Another program of the workspace, built with the features that tests are built with.
pub fn built(program: &str) -> PathBuf {
    let built = cargo()
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", program])
        .status()
        .unwrap();
    assert!(built.success());
    Path::new(env!("CARGO_BIN_EXE_outbox-operator")).with_file_name(program)
}

impl Stage {
    /// Starts the relay as its pod would, with the folders of Secrets elsewhere.
    pub async fn start_relay(&self, folder: &Folder) -> Program {
        self.start_relay_of("shop", folder).await
    }

    /// As [`Stage::start_relay`], of a resource with another name.
    pub async fn start_relay_of(&self, name: &str, folder: &Folder) -> Program {
        let name = format!("{name}-relay");
        let stored = self.namespace.kubectl(&["get", "configmap", &name, "-o", "json"]).await.unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let root = folder.path().display().to_string();
        let yaml = stored["data"]["relay.yaml"].as_str().unwrap().replace(POD_ROOT, &root);
        fs::create_dir_all(folder.path().join("postgres")).unwrap();
        fs::write(folder.path().join("postgres/password"), "unused").unwrap();
        let file = folder.path().join("relay.yaml");
        fs::write(&file, yaml).unwrap();
        self.start_relay_from(&file)
    }

    /// A relay with this configuration, at the address of the resource's pod.
    pub fn start_relay_from(&self, file: &Path) -> Program {
        Launch::new("outbox-relay", relay_program())
            .arg("run")
            .arg("--config")
            .arg(file)
            .env("OUTBOX_RELAY__ADMIN__LISTEN", format!("{}:{ADMIN_PORT}", self.pod_ip))
            .start()
            .unwrap()
    }

    /// Says of the relay's pods what a node would say.
    pub async fn say_that_pods_are_ready(&self) {
        let list = ["get", "pods", "-l", "app.kubernetes.io/instance=shop", "-o", "name"];
        let pods = wait::until("a pod", SOON, async || match self.namespace.kubectl(&list).await {
            Ok(pods) if !pods.is_empty() => Ok(pods),
            other => Err(format!("{other:?}")),
        })
        .await
        .unwrap();
        let ip = self.pod_ip;
        let image = "jsonpath={.spec.containers[?(@.name==\"relay\")].image}";
        for pod in pods.lines() {
            // None of one that has been replaced since.
            let image =
                self.namespace.kubectl(&["get", pod, "--ignore-not-found", "-o", image]).await.unwrap();
            let container = json!({"name": "relay", "image": image, "imageID": "", "ready": true, "restartCount": 0,
                                   "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}});
            let status =
                json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
                    {"type": "Ready", "status": "True"},
                    {"type": "PodScheduled", "status": "True"},
                ], "containerStatuses": [container]}})
                .to_string();
            let patch = ["patch", pod, "--subresource=status", "--type=merge", "-p", &status];
            let said = self.namespace.kubectl(&patch).await;
            // One that has been replaced since is gone.
            let is_gone = |error: &dyn std::error::Error| error.to_string().contains("NotFound");
            assert!(said.as_ref().err().is_none_or(|error| is_gone(error)), "{said:?}");
        }
    }

    /// Condition -> (status, reason).
    async fn conditions(&self, name: &str) -> BTreeMap<String, (String, String)> {
        let stored = self.namespace.kubectl(&["get", "obr", name, "-o", "json"]).await.unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let conditions = stored["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |condition: &Value, name: &str| condition[name].as_str().unwrap_or_default().to_owned();
        conditions
            .iter()
            .map(|condition| {
                (text(condition, "type"), (text(condition, "status"), text(condition, "reason")))
            })
            .collect()
    }

    pub async fn until(&self, expected: &[(&str, &str, &str)]) {
        self.until_of("shop", expected).await;
    }

    pub async fn until_of(&self, name: &str, expected: &[(&str, &str, &str)]) {
        wait::until(format!("{expected:?}"), SOON, async || {
            let seen = self.conditions(name).await;
            let is = |(aspect, status, reason): &(&str, &str, &str)| {
                seen.get(*aspect).is_some_and(|seen| (seen.0.as_str(), seen.1.as_str()) == (*status, *reason))
            };
            if expected.iter().all(is) {
                Ok(())
            } else {
                Err(format!("{seen:?}\n{}", self.operator.log_tail()))
            }
        })
        .await
        .unwrap();
    }
}
