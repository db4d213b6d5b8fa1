//! PostgreSQL and Kafka as pods.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::Cluster;
use crate::postgres::PASSWORD;
use crate::{Error, blocking, images, wait};

/// Generous: images are unpacked on a machine that is busy with tests.
const READY_WITHIN: Duration = Duration::from_secs(180);
const MANIFEST: &str = include_str!("../../images/servers.yaml");

/// Where the servers are, for this machine and for pods.
#[derive(Clone, Debug)]
pub struct Servers {
    postgres: String,
    kafka: String,
}

impl Servers {
    /// A database, as superuser.
    pub fn postgres_url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@{}:5432/{database}", self.postgres)
    }

    /// Host of PostgreSQL, for pods.
    pub fn postgres_host(&self) -> &str {
        "postgres.servers.svc.cluster.local"
    }

    /// Host of Kafka, for pods.
    pub fn kafka_host(&self) -> &str {
        "kafka.servers.svc.cluster.local"
    }

    /// The broker, for this machine and for pods: clients are led to the address that the broker says.
    pub fn kafka_bootstrap(&self) -> String {
        format!("{}:9092", self.kafka)
    }
}

/// Where the servers keep their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// On a node of one's own: they outlive the pods.
    OnTheNode,
    /// With the pods: nothing of them stays on an existing node.
    InPods,
}

impl Data {
    fn volume(self, server: &str) -> String {
        match self {
            Data::OnTheNode => format!("hostPath: {{path: /var/lib/{server}, type: DirectoryOrCreate}}"),
            Data::InPods => "emptyDir: {}".to_owned(),
        }
    }
}

impl Cluster {
    /// Starts PostgreSQL and Kafka as pods in the namespace `servers`.
    ///
    /// # Errors
    /// There is no node that takes images, they do not become ready, or this machine does not reach Services.
    pub async fn servers(&self, data: Data) -> Result<Servers, Error> {
        // What prepares the volumes is in it. On a node of one's own it is there, because pods' sandboxes are made of it.
        if data == Data::InPods {
            self.import_pause().await?;
        }
        for archive in blocking(images::servers::servers).await? {
            self.import(&archive).await?;
        }
        let manifest = ["postgres", "kafka"].iter().fold(MANIFEST.to_owned(), |manifest, server| {
            manifest.replace(&format!("$data-{server}"), &data.volume(server))
        });
        self.apply(&manifest.replace("$superuser", PASSWORD)).await?;
        let address = async |service: &str| {
            let question =
                ["get", "service", service, "--namespace=servers", "-o", "jsonpath={.spec.clusterIP}"];
            self.kubectl(&question).await
        };
        let servers = Servers { postgres: address("postgres").await?, kafka: address("kafka").await? };
        for server in ["postgres", "kafka"] {
            self.until_served(server).await?;
        }
        let url = servers.postgres_url("postgres");
        wait::until(
            "PostgreSQL by its Service, which this machine has to reach,",
            READY_WITHIN,
            async || PgConnection::connect(&url).await,
        )
        .await?;
        Ok(servers)
    }

    /// Waits for a server's pod; an error says what keeps it.
    async fn until_served(&self, server: &str) -> Result<(), Error> {
        let pod = format!("pod/{server}-0");
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        wait::until(format!("{server}'s pod"), READY_WITHIN, async || {
            let status = self.kubectl(&["get", &pod, "--namespace=servers", "-o", ready]).await;
            if status.as_ref().is_ok_and(|status| status == "True") {
                return Ok(());
            }
            let events = self.kubectl(&["describe", &pod, "--namespace=servers"]).await;
            let log = self.kubectl(&["logs", &pod, "--namespace=servers", "--tail=20"]).await;
            Err(format!("{status:?} {events:?} {log:?}"))
        })
        .await
    }
}
