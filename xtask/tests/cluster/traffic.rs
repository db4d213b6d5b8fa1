//! A relay of its own under load, and what became of every row.

use serde_json::json;
use sqlx::AssertSqlSafe;
use testbed::checker::{self, Verdict};
use testbed::load::{Load, LoadOptions};
use testbed::records::read_all;
use testbed::{Database, wait};
use xtask::cluster::Site;

use crate::{SOON, until};

/// Rows that have to be committed before a fault, and again after it.
const ROWS: u64 = 500;
const PASSWORD: &str = "first-password";

/// An OutboxRelay in a namespace of its own, with writers that never rest.
pub struct Traffic<'a> {
    pub site: &'a Site,
    /// Of the namespace, and of the resource in it.
    pub name: &'static str,
    pub database: Database,
    load: Load,
}

impl<'a> Traffic<'a> {
    /// Under way when this returns: rows are committed, and the relay streams.
    pub async fn start(site: &'a Site, name: &'static str) -> Traffic<'a> {
        let database = Database::on(&site.servers.postgres_url("postgres"), name).await.unwrap();
        let login = database.name();
        for statement in [
            format!("CREATE ROLE {login} LOGIN REPLICATION PASSWORD '{PASSWORD}'"),
            format!("ALTER DATABASE {login} OWNER TO {login}"),
            format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {login}"),
            format!("ALTER TABLE outbox OWNER TO {login}"),
            format!("GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO {login}"),
        ] {
            database.execute(&statement).await.unwrap();
        }
        let topic = format!("outbox.event.{name}");
        let options =
            LoadOptions { aggregatetype: name.to_owned(), topic: topic.clone(), ..LoadOptions::default() };
        let load = Load::start(database.url(), options).await.unwrap();
        let traffic = Traffic { site, name, database, load };
        let cluster = &site.cluster;
        cluster.kubectl(&["create", "namespace", name]).await.unwrap();
        let restricted = ["label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"];
        cluster.kubectl(&restricted).await.unwrap();
        traffic.password(PASSWORD).await;
        let resource = json!({
            "apiVersion": "outbox.dev/v1alpha1", "kind": "OutboxRelay", "metadata": {"name": name, "namespace": name},
            "spec": {
                "source": {"postgres": {
                    "host": site.servers.postgres_host(), "database": traffic.database.name(), "tls": {"mode": "disable"},
                    "credentialsSecretRef": {"name": "login"},
                    "publication": {"name": "outbox"}, "slot": {"name": traffic.database.name()},
                }},
                "sink": {"kafka": {"bootstrapServers": site.servers.kafka_bootstrap(), "tls": {"mode": "disable"}}},
                "topics": [{"name": topic, "partitions": 3, "replicationFactor": 1}],
            },
        });
        cluster.apply(&resource.to_string()).await.unwrap();
        traffic.until_ready().await;
        traffic.goes_on().await;
        traffic
    }

    /// The password in the Secret from now on.
    pub async fn password(&self, password: &str) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": self.name},
            "stringData": {"username": self.database.name(), "password": password},
        });
        self.site.cluster.apply(&secret.to_string()).await.unwrap();
    }

    /// The password in the database from now on.
    pub async fn password_in_the_database(&self, password: &str) {
        let alter = format!("ALTER ROLE {} PASSWORD '{password}'", self.database.name());
        self.database.execute(&alter).await.unwrap();
    }

    pub async fn until_ready(&self) {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        let question = ["get", "obr", self.name, "--namespace", self.name, "-o", ready];
        until(&self.site.cluster, &question, |status| status == "True").await;
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

    /// Rows that Kafka has no record of yet, by what the relay has confirmed.
    pub async fn until_delivered(&self, until: i64) {
        wait::until("the checkpoint", SOON, async || {
            let records = self.records().await?;
            if records >= until { Ok(()) } else { Err(format!("{records} of {until} records")) }
        })
        .await
        .unwrap();
    }

    async fn records(&self) -> Result<i64, String> {
        let topic = format!("outbox.event.{}", self.name);
        let records = read_all(&self.site.servers.kafka_bootstrap(), &[&topic]).await;
        records.map(|records| i64::try_from(records.len()).unwrap()).map_err(|error| error.to_string())
    }

    /// How many rows there are.
    pub async fn rows(&self) -> i64 {
        let mut connection = self.database.connect().await.unwrap();
        let count = "SELECT count(*) FROM outbox".to_owned();
        sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut connection).await.unwrap()
    }

    /// More rows after the fault, then no more, and the judgement: none lost, none twice, none out of order.
    pub async fn end(self) {
        self.until_ready().await;
        self.goes_on().await;
        let mut log = self.load.stop().await.unwrap();
        log.settle(self.database.url(), "outbox").await.unwrap();
        let (bootstrap, topic) = (self.site.servers.kafka_bootstrap(), format!("outbox.event.{}", self.name));
        let verdict: Result<Verdict, _> = wait::until("every row in Kafka, once", SOON, async || {
            let records = read_all(&bootstrap, &[&topic]).await.map_err(|error| error.to_string())?;
            let verdict = checker::check(&log, &records);
            if verdict.is_right() { Ok(verdict) } else { Err(verdict.to_string()) }
        })
        .await;
        println!("{}: {}", self.name, verdict.unwrap());
        let cluster = &self.site.cluster;
        cluster
            .kubectl(&["delete", "obr", self.name, "--namespace", self.name, "--timeout=120s"])
            .await
            .unwrap();
        cluster.kubectl(&["delete", "namespace", self.name, "--wait=false"]).await.unwrap();
    }
}
