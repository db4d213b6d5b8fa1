//! A site whose relay connects to PostgreSQL and Kafka through fault proxies. The writers and the checker connect
//! directly, so that the faults do not affect them.

use testbed::kafka::{Kafka, KafkaOptions, create_topic};
use testbed::load::{Load, LoadOptions};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::proxy::{Fault, Proxy};
use testbed::{Database, wait};

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, assert_correct};

/// Short, so that timeouts occur soon.
const WAL_SENDER_TIMEOUT: &str = "3s";

/// See the module documentation.
pub struct Proxied {
    pub site: Site,
    pub to_postgres: Proxy,
    pub kafka: Kafka,
    pub postgres: Postgres,
}

impl Proxied {
    pub async fn start() -> Proxied {
        Proxied::on(PgVersion::V18, 1, WAL_SENDER_TIMEOUT).await
    }

    /// With three brokers, the topic has three replicas, of which two must be in sync.
    pub async fn on(version: PgVersion, brokers: usize, wal_sender_timeout: &str) -> Proxied {
        let settings = vec![("wal_sender_timeout".to_owned(), wal_sender_timeout.to_owned())];
        let postgres = PostgresOptions { version, settings, ..PostgresOptions::default() };
        let kafka = KafkaOptions { brokers, proxied: true, ..KafkaOptions::default() };
        let (postgres, kafka) = tokio::try_join!(Postgres::start(postgres), Kafka::start(kafka)).unwrap();
        let to_postgres = Proxy::before(postgres.port()).await.unwrap();
        let database = Database::on(&postgres.url("postgres"), "relay").await.unwrap();
        let site = Site::without_topic(database, &kafka.bootstrap());
        create_topic(&site.bootstrap, &site.topic(), PARTITIONS, brokers as i32, &[]).await.unwrap();
        Proxied { site, to_postgres, kafka, postgres }
    }

    pub fn launch(&self) -> Relay {
        self.site.launch(|text| {
            let direct = format!("port: {}", self.postgres.port());
            let text = text.replace(&direct, &format!("port: {}", self.to_postgres.port()));
            text.replace(&self.site.bootstrap, &self.kafka.proxied_bootstrap())
        })
    }

    pub async fn relay(&self) -> Relay {
        let relay = self.launch();
        relay.until_ready().await;
        relay
    }

    /// Applies the same fault to every broker.
    pub fn to_kafka(&self, fault: Fault) {
        self.kafka.proxies().iter().for_each(|proxy| proxy.set(fault));
    }

    /// Transactions of many rows, so that most bytes of the stream are between a Begin and its Commit.
    pub async fn start_load(&self, rate: f64) -> Load {
        let options = LoadOptions {
            aggregatetype: self.site.aggregate.clone(),
            topic: self.site.topic(),
            rate: Some(rate),
            rows: 1..=40,
            ..LoadOptions::default()
        };
        Load::start(self.site.database.url(), options).await.unwrap()
    }

    pub async fn judge(&self, load: Load, relay: &Relay) {
        assert_correct(&self.site.verdict(load, relay).await);
    }
}

/// Waits until Kafka has acknowledged this many more events, because readiness alone does not prove progress.
pub async fn until_more(relay: &Relay, events: f64) {
    let acknowledged = "outbox_relay_events_total";
    let before = relay.metric(acknowledged).await;
    wait::until(format!("{events} more events"), TIMEOUT, async || {
        let seen = relay.metric(acknowledged).await;
        if seen >= before + events { Ok(()) } else { Err(format!("{seen}\n{}", relay.status_text().await)) }
    })
    .await
    .unwrap();
}
