//! The servers come up, can be hurt, and come back with what they held.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::{Connection, PgConnection};
use testbed::kafka::{Batches, Kafka, KafkaOptions};
use testbed::postgres::{Auth, PgVersion, Postgres, PostgresOptions, Shutdown};
use testbed::{Error, wait};

const SOON: Duration = Duration::from_secs(60);

async fn number(url: &str, sql: &'static str) -> Result<i64, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query_scalar(sql).fetch_one(&mut connection).await
}

async fn survives(version: PgVersion, major: i64) -> Result<(), Error> {
    let mut postgres = Postgres::start(PostgresOptions { version, ..PostgresOptions::default() }).await?;
    let url = postgres.url("postgres");
    let found = number(&url, "SELECT current_setting('server_version_num')::bigint / 10000").await.unwrap();
    assert_eq!(found, major);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept AS SELECT 7::bigint AS n").execute(&mut connection).await.unwrap();
    postgres.kill().await?;
    assert!(PgConnection::connect(&url).await.is_err(), "a killed server accepts no connections");
    postgres.start_again().await?;
    assert_eq!(number(&url, "SELECT n FROM kept").await.unwrap(), 7);
    postgres.stop(Shutdown::Fast).await?;
    postgres.start_again().await?;
    assert_eq!(number(&url, "SELECT n FROM kept").await.unwrap(), 7);
    Ok(())
}

#[tokio::test]
async fn postgres_15_survives_kill_and_restart() -> Result<(), Error> {
    survives(PgVersion::V15, 15).await
}

#[tokio::test]
async fn postgres_17_survives_kill_and_restart() -> Result<(), Error> {
    survives(PgVersion::V17, 17).await
}

#[tokio::test]
async fn postgres_18_survives_kill_and_restart() -> Result<(), Error> {
    survives(PgVersion::V18, 18).await
}

#[tokio::test]
async fn a_paused_postgres_answers_after_it_is_resumed() -> Result<(), Error> {
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let url = postgres.url("postgres");
    postgres.pause()?;
    let asked = tokio::spawn(async move { number(&url, "SELECT 1::bigint").await });
    postgres.resume()?;
    assert_eq!(asked.await.unwrap().unwrap(), 1);
    Ok(())
}

#[tokio::test]
async fn scram_refuses_a_wrong_password() -> Result<(), Error> {
    let postgres =
        Postgres::start(PostgresOptions { auth: Auth::Scram, ..PostgresOptions::default() }).await?;
    assert_eq!(number(&postgres.url("postgres"), "SELECT 1::bigint").await.unwrap(), 1);
    let wrong = format!("postgres://postgres:wrong@127.0.0.1:{}/postgres", postgres.port());
    let refused = number(&wrong, "SELECT 1::bigint").await.unwrap_err();
    assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("28P01"));
    Ok(())
}

#[tokio::test]
async fn a_killed_broker_comes_back_with_its_topics() -> Result<(), Error> {
    let mut kafka = Kafka::start(KafkaOptions::default()).await?;
    kafka.create_topic("kept", 2, 1, &[]).await?;
    kafka.kill().await?;
    kafka.start_again().await?;
    let again = kafka.create_topic("kept", 2, 1, &[]).await;
    assert!(again.is_err_and(|error| error.to_string().contains("exists")), "the topic was forgotten");
    Ok(())
}

#[tokio::test]
async fn three_brokers_live_without_one() -> Result<(), Error> {
    let mut kafka = Kafka::start(KafkaOptions { brokers: 3, ..KafkaOptions::default() }).await?;
    kafka.create_topic("before", 3, 3, &[]).await?;
    kafka.brokers()[2].kill().await?;
    wait::until("a topic made by two of three brokers", SOON, async || {
        kafka.create_topic(&testbed::unique("without"), 2, 2, &[]).await
    })
    .await?;
    kafka.start_again().await
}

#[tokio::test]
async fn batches_are_counted_with_their_records_while_a_broker_runs() -> Result<(), Error> {
    let kafka = Kafka::start(KafkaOptions::default()).await?;
    let [counted, counted_too, other] = ["counted", "counted-too", "counted-not"].map(str::to_owned);
    for topic in [&counted, &counted_too, &other] {
        kafka.create_topic(topic, 2, 1, &[]).await?;
    }
    let topics = [counted.clone(), counted_too.clone()];
    assert_eq!(kafka.batches(&topics)?, Batches::default());
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let sent = tokio::task::spawn_blocking(move || {
        for (topic, records) in [(counted, 3), (counted_too, 2), (other, 4_u8)] {
            for number in 0..records {
                producer
                    .send(BaseRecord::to(&topic).key(&[number][..]).payload("event"))
                    .map_err(|(error, _)| error)?;
                // The next record comes after this one is stored, so in another batch.
                producer.flush(SOON)?;
            }
        }
        Ok::<_, KafkaError>(())
    });
    sent.await.unwrap().unwrap();
    let found = kafka.batches(&topics)?;
    assert_eq!((found.batches, found.records), (5, 5));
    assert!(found.bytes > 5 * 61, "{found:?}");
    Ok(())
}
