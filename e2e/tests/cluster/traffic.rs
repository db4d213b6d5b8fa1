//! A separate relay under load, and what became of every row.

use lab::cluster::Site;
use serde_json::{Value, json};
use testbed::checker;
use testbed::load::{Load, LoadOptions};
use testbed::records::{Record, read_all};
use testbed::{Database, wait};

use crate::{SOON, until};

/// Rows that have to be committed before a fault, and again after it.
const ROWS: u64 = 500;
/// Of the relay's role, until a test sets another.
pub const PASSWORD: &str = "first-password";

/// An OutboxRelay in a separate namespace, with writers that never rest.
pub struct Traffic<'a> {
    pub site: &'a Site,
    /// Of the namespace, and of the resource in it.
    pub name: &'static str,
    pub database: Database,
    load: Load,
}

impl<'a> Traffic<'a> {
    /// Returns when rows are being committed and the relay streams.
    pub async fn start(site: &'a Site, name: &'static str) -> Traffic<'a> {
        Traffic::start_with(site, name, json!({})).await
    }

    /// As [`Traffic::start`], with this `spec.relay`.
    pub async fn start_with(site: &'a Site, name: &'static str, relay: Value) -> Traffic<'a> {
        let database = Database::on(&site.servers.postgres_url("postgres"), name).await.unwrap();
        let role = database.name();
        for statement in [
            format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'"),
            format!("ALTER DATABASE {role} OWNER TO {role}"),
            format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"),
            format!("ALTER TABLE outbox OWNER TO {role}"),
            format!("GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO {role}"),
        ] {
            database.execute(&statement).await.unwrap();
        }
        let topic = topic(name);
        let options =
            LoadOptions { aggregatetype: name.to_owned(), topic: topic.clone(), ..LoadOptions::default() };
        let load = Load::start(database.url(), options).await.unwrap();
        let traffic = Traffic { site, name, database, load };
        let cluster = &site.cluster;
        cluster.kubectl(&["create", "namespace", name]).await.unwrap();
        cluster.restrict(name).await.unwrap();
        traffic.password(PASSWORD).await;
        let resource = json!({
            "apiVersion": "outbox.dev/v1beta1", "kind": "OutboxRelay", "metadata": {"name": name, "namespace": name},
            "spec": {
                "source": {"postgres": {
                    "host": site.servers.postgres_host(), "database": traffic.database.name(), "tls": {"mode": "disable"},
                    "credentialsSecretRef": {"name": "credentials"},
                    "publication": {"name": "outbox"}, "slot": {"name": traffic.database.name()},
                }},
                "sink": {"kafka": {"bootstrapServers": site.servers.kafka_bootstrap(), "tls": {"mode": "disable"}}},
                "topics": [{"name": topic, "partitions": 3, "replicationFactor": 1}],
                "relay": relay,
            },
        });
        cluster.apply(&resource.to_string()).await.unwrap();
        traffic.until_ready().await;
        traffic.goes_on().await;
        traffic
    }

    /// The password in the Secret from now on. The Secret is as CloudNativePG makes it, with more than a relay needs.
    pub async fn password(&self, password: &str) {
        let (name, host) = (self.database.name(), self.site.servers.postgres_host());
        let uri = format!("postgresql://{name}:{password}@{host}:5432/{name}");
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
            "metadata": {"name": "credentials", "namespace": self.name, "labels": {"cnpg.io/reload": "true"}},
            "stringData": {
                "username": name, "user": name, "password": password, "dbname": name, "host": host, "port": "5432",
                "uri": uri, "jdbc-uri": format!("jdbc:{uri}"), "pgpass": format!("{host}:5432:{name}:{name}:{password}\n"),
            },
        });
        self.site.cluster.apply(&secret.to_string()).await.unwrap();
    }

    /// The password in the database from now on.
    pub async fn password_in_the_database(&self, password: &str) {
        let alter = format!("ALTER ROLE {} PASSWORD '{password}'", self.database.name());
        self.database.execute(&alter).await.unwrap();
    }

    pub async fn disconnect_the_relay(&self) {
        let ours = "datname = current_database() AND application_name LIKE 'outbox-relay%'";
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}");
        self.database.execute(&end).await.unwrap();
    }

    pub async fn until_ready(&self) {
        // All conditions, so that a test that gives up says why.
        let conditions =
            "jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{'\\n'}{end}";
        let question = ["get", "obr", self.name, "--namespace", self.name, "-o", conditions];
        until(&self.site.cluster, &question, |all| all.lines().any(|line| line.starts_with("Ready=True ")))
            .await;
    }

    /// A field of the relay's only pod.
    pub async fn pod(&self, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        let question = ["get", "pods", "--namespace", self.name, "-o", &path];
        self.site.cluster.kubectl(&question).await.unwrap()
    }

    /// Waits until more rows have been committed.
    pub async fn goes_on(&self) {
        let before = self.load.committed();
        wait::until("more rows", SOON, async || {
            let now = self.load.committed();
            if now >= before + ROWS { Ok(()) } else { Err(now) }
        })
        .await
        .unwrap();
    }

    /// Waits until Kafka has a record for each row that there is now.
    pub async fn until_delivered(&self) {
        let mut connection = self.database.connect().await.unwrap();
        let rows: i64 =
            sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut connection).await.unwrap();
        wait::until(format!("{rows} records"), SOON, async || {
            let records = records(&self.site.servers.kafka_bootstrap(), self.name).await?.len();
            if i64::try_from(records).unwrap() >= rows { Ok(()) } else { Err(format!("{records} records")) }
        })
        .await
        .unwrap();
    }

    /// Evicts a pod as a drain does: again while a disruption budget refuses.
    pub async fn evict(&self, pod: &str) {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.name},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", self.name);
        let (cluster, eviction) = (&self.site.cluster, eviction.to_string());
        wait::until(format!("the eviction of {pod}"), SOON, async || {
            cluster
                .kubectl_with(&["create", "--raw", &path, "-f", "-"], &eviction)
                .await
                .map_err(|error| error.to_string())
        })
        .await
        .unwrap();
    }

    /// The namespace with all that is in it, at once. Nothing of the relay is left in the database.
    pub async fn delete_namespace(self) {
        self.load.stop().await.unwrap();
        self.site.cluster.kubectl(&["delete", "namespace", self.name, "--timeout=180s"]).await.unwrap();
        let mut connection = self.database.connect().await.unwrap();
        let left = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&mut connection).await.unwrap();
        assert_eq!(left, 0, "a slot is left that keeps WAL");
    }

    /// More rows after the fault, then no more, and the judgement: none lost, none twice, none out of order.
    pub async fn end(self) {
        self.until_ready().await;
        self.goes_on().await;
        let (name, cluster) = (self.name, &self.site.cluster);
        let mut log = self.load.stop().await.unwrap();
        log.settle(self.database.url(), "outbox").await.unwrap();
        let bootstrap = self.site.servers.kafka_bootstrap();
        let verdict = wait::until("every row in Kafka, once", SOON, async || {
            let records = records(&bootstrap, name).await?;
            let verdict = checker::check(&log, &records);
            if verdict.is_right() { Ok(verdict) } else { Err(verdict.to_string()) }
        });
        println!("{name}: {}", verdict.await.unwrap());
        cluster.kubectl(&["delete", "obr", name, "--namespace", name, "--timeout=120s"]).await.unwrap();
        cluster.kubectl(&["delete", "namespace", name, "--wait=false"]).await.unwrap();
    }
}

fn topic(name: &str) -> String {
    format!("outbox.event.{name}")
}

async fn records(bootstrap: &str, name: &str) -> Result<Vec<Record>, String> {
    read_all(bootstrap, &[&topic(name)]).await.map_err(|error| error.to_string())
}
