//! Hundreds of resources with one operator, one PostgreSQL and one Kafka, on a simulated node; what that costs is printed.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use outbox_operator::desired::configuration::ADMIN_PORT;
use serde_json::{Value, json};
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::kubernetes::{Cluster, Kubernetes};
use testbed::postgres::{Postgres, PostgresOptions};
use testbed::{Database, net, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cluster::{define, relay};
use crate::stage::{get, operator};

/// The number of resources, unless this variable has another: 1,000 are measured by hand.
const VARIABLE: &str = "OUTBOX_TEST_RESOURCES";
const RESOURCES: usize = 300;
/// For each resource, on a busy machine.
const AT_LAST: Duration = Duration::from_secs(2);
/// Loopback addresses, so that the test can answer for pods.
const PODS: &str = "127.200.0.1/16";
/// How long the operator is watched when all is well.
const IDLE: Duration = Duration::from_secs(120);
/// For 300 resources. Twice the goal, which is for the program as it is shipped: this one is built for tests.
const MOST_MEMORY: u64 = 128 * 1024 * 1024;

#[tokio::test]
async fn three_hundred_resources() {
    if !testbed::long_matrix() {
        return;
    }
    let resources = std::env::var(VARIABLE).map_or(RESOURCES, |number| number.parse().unwrap());
    let mut cluster = Kubernetes::start().await.unwrap();
    cluster.simulate_node(PODS).await.unwrap();
    define(&cluster).await;
    let setting = |name: &str| (name.to_owned(), (resources + 10).to_string());
    let settings = vec![setting("max_replication_slots"), setting("max_wal_senders")];
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() });
    let (postgres, kafka) = tokio::try_join!(postgres, Kafka::start(KafkaOptions::default())).unwrap();
    let database = Database::on(&postgres.url("postgres"), "scale").await.unwrap();
    let slots = format!(
        "SELECT count(pg_create_logical_replication_slot('s' || n, 'pgoutput')) FROM generate_series(1, {resources}) n"
    );
    database.execute(&slots).await.unwrap();

    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, net::free_port().unwrap()));
    let program = operator("default", cluster.kubeconfig())
        .env("OUTBOX_OPERATOR_LISTEN", listen.to_string())
        .start()
        .unwrap();
    let begun = Instant::now();
    cluster.apply(&objects(resources, &database, postgres.port(), &kafka.bootstrap())).await.unwrap();
    let mut answering = JoinSet::new();
    let mut known = HashSet::new();
    wait::until("all of them Ready", AT_LAST * u32::try_from(resources).unwrap(), async || {
        answer_for_new_pods(&cluster, &mut known, &mut answering).await?;
        let ready = count_ready(&cluster).await?;
        if ready == resources { Ok(()) } else { Err(format!("{ready} are\n{}", program.log_tail())) }
    })
    .await
    .unwrap();
    let (ready, busy) = (begun.elapsed(), program.cpu_seconds());
    let (before, counted) = (program.cpu_seconds(), Counted::now(listen).await);
    tokio::time::sleep(IDLE).await;
    let idle = (program.cpu_seconds() - before) / IDLE.as_secs_f64();
    let while_idle = Counted::now(listen).await.since(&counted);
    let (resident, most) = program.memory().unwrap();
    println!(
        "{resources} resources: all Ready after {:.0} s, {busy:.1} s of CPU, {:.1} requests to the API server for each; then {:.2} % of \
         a core, {:.2} passes a second, {:.3} requests to the API server for each; {} MiB resident, {} at most",
        ready.as_secs_f64(),
        counted.requests / resources as f64,
        idle * 100.0,
        while_idle.passes / IDLE.as_secs_f64(),
        while_idle.requests / while_idle.passes,
        resident >> 20,
        most >> 20,
    );
    assert_eq!(count_ready(&cluster).await.unwrap(), resources);
    if resources == RESOURCES {
        assert!(most < MOST_MEMORY, "{most} bytes");
    }
}

fn objects(resources: usize, database: &Database, port: u16, bootstrap: &str) -> String {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "credentials"},
                        "stringData": {"username": "postgres", "password": "unused"}});
    let resources = (1..=resources).map(|number| {
        let mut object = relay(&json!({
            "source": {"postgres": {
                "host": "127.0.0.1", "port": port, "database": database.name(), "tls": {"mode": "disable"},
                "credentialsSecretRef": {"name": "credentials"},
                "publication": {"name": "outbox"}, "slot": {"name": format!("s{number}")},
            }},
            "sink": {"kafka": {"bootstrapServers": bootstrap, "tls": {"mode": "disable"}}},
            "topics": [{"name": format!("t{number}"), "partitions": 1, "replicationFactor": 1}],
        }));
        object["metadata"] = json!({"name": format!("shop-{number}"), "namespace": "default"});
        object
    });
    let items: Vec<Value> = std::iter::once(secret).chain(resources).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

async fn count_ready(cluster: &Cluster) -> Result<usize, String> {
    let ready = ["get", "obr", "-o", "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}"];
    let ready = cluster.kubectl(&ready).await.map_err(|error| error.to_string())?;
    Ok(ready.split(' ').filter(|status| *status == "True").count())
}

/// A relay's answer at the address of each pod.
async fn answer_for_new_pods(
    cluster: &Cluster,
    known: &mut HashSet<Ipv4Addr>,
    answering: &mut JoinSet<()>,
) -> Result<(), String> {
    let pods = r#"jsonpath={range .items[*]}{.status.podIP} {.metadata.labels.app\.kubernetes\.io/instance}{"\n"}{end}"#;
    let pods = cluster.kubectl(&["get", "pods", "-o", pods]).await.map_err(|error| error.to_string())?;
    for (address, resource) in pods.lines().filter_map(|pod| pod.split_once(' ')) {
        let Ok(address) = address.parse() else { continue };
        if known.insert(address) {
            let listener =
                TcpListener::bind((address, ADMIN_PORT)).await.map_err(|error| error.to_string())?;
            answering.spawn(answer(listener, format!("default/{resource}")));
        }
    }
    Ok(())
}

async fn answer(listener: TcpListener, name: String) {
    let status =
        json!({"name": name, "role": "active", "ready": true, "phase": "streaming", "problem": null})
            .to_string();
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{status}", status.len());
    while let Ok((mut stream, _)) = listener.accept().await {
        let text = text.clone();
        tokio::spawn(async move {
            let mut request = [0; 512];
            // A request is one small packet.
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
    }
}

/// What the operator has counted.
struct Counted {
    passes: f64,
    requests: f64,
}

impl Counted {
    async fn now(listen: SocketAddr) -> Counted {
        let metrics = get(listen, "/metrics").await;
        let sum = |name: &str, label: &str| {
            let of_name = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
            of_name.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        Counted {
            passes: sum("outbox_operator_reconciliations_total", ""),
            requests: sum("outbox_operator_external_request_duration_seconds_count", "kubernetes"),
        }
    }

    fn since(&self, before: &Counted) -> Counted {
        Counted { passes: self.passes - before.passes, requests: self.requests - before.requests }
    }
}
