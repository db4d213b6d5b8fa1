//! A site whose relay reaches Postgres and Kafka by way of fault proxies. The writers and the checker do not, so that
//! what they know is not spoiled by what the relay suffers.

use testbed::kafka::{Kafka, KafkaOptions, create_topic};
use testbed::load::{Load, LoadOptions};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::proxy::{Fault, Proxy};
use testbed::{Database, wait};

use crate::fixture::{PARTITIONS, Relay, SOON, Site, right};

/// Short, so that what happens at a timeout happens soon.
const WAL_SENDER_TIMEOUT: &str = "3s";

/// See the module's text.
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

    /// With three brokers, the topic has three replicas, of which two must have a record.
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

    /// The same to every broker.
    pub fn to_kafka(&self, fault: Fault) {
        self.kafka.proxies().iter().for_each(|proxy| proxy.set(fault));
    }

    /// Transactions of many rows, so that most bytes of the stream lie between a Begin and its Commit.
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
        right(&self.site.verdict(load, relay).await);
    }
}

/// Waits until the relay has had so many more events acknowledged: it does not only say that it is well.
pub async fn until_more(relay: &Relay, events: f64) {
    let acknowledged = "outbox_relay_events_total";
    let before = relay.metric(acknowledged).await;
    wait::until(format!("{events} more events"), SOON, async || {
        let seen = relay.metric(acknowledged).await;
        if seen >= before + events { Ok(()) } else { Err(format!("{seen}\n{}", relay.status_text().await)) }
    })
    .await
    .unwrap();
}
