//! A Kafka consumer whose events take effect once, although Kafka may deliver a record several times.
//!
//! - [`event`]: decodes a record; [`trace`]: continues the trace of its writer.
//! - [`inbox`]: the effect and the event id, in one transaction.
//! - Here: the loop. An offset is committed only after the transaction of its record.

mod event;
mod inbox;
mod trace;

use std::error::Error;
use std::time::Duration;

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message};
use sqlx::PgPool;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::event::Event;
use crate::inbox::{ApplyError, Outcome};

/// Pause before an event is tried again while the database fails.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let consumer = subscribe()?;
    let mut stop = signal(SignalKind::terminate())?;
    loop {
        let message = tokio::select! {
            _ = stop.recv() => break,
            message = consumer.recv() => message,
        };
        let message = match message {
            Ok(message) => message,
            Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(error.into()),
            // librdkafka reconnects and rejoins the group.
            Err(error) => {
                warn!(%error, "cannot receive");
                continue;
            }
        };
        // A cancelled transaction is rolled back and its offset is not stored: the record is delivered again.
        tokio::select! {
            _ = stop.recv() => break,
            () = process(&pool, &message) => {}
        }
        // Refused after a rebalance took the partition away. The new owner gets the record again and finds it in the inbox.
        if let Err(error) = consumer.store_offset_from_message(&message) {
            warn!(%error, "cannot store the offset");
        }
    }
    info!("stopping: committing offsets and leaving the group");
    drop(consumer);
    Ok(())
}

fn subscribe() -> Result<StreamConsumer, Box<dyn Error>> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", std::env::var("KAFKA_BOOTSTRAP_SERVERS")?)
        .set("group.id", std::env::var("KAFKA_GROUP")?)
        // A new group starts with the oldest record, not after the newest one.
        .set("auto.offset.reset", "earliest")
        // Partitions of a consumer that was killed are free after 10 s instead of 45.
        .set("session.timeout.ms", "10000")
        // Only stored offsets are committed: every 5 s, at a rebalance, and at the end.
        .set("enable.auto.offset.store", "false")
        .create()?;
    consumer.subscribe(&[&std::env::var("KAFKA_TOPIC")?])?;
    Ok(consumer)
}

/// Applies or rejects the record. Tries until the database has done it.
async fn process(pool: &PgPool, message: &impl Message) {
    while let Err(error) = try_process(pool, message).await {
        error!(%error, offset = message.offset(), "the database failed; trying again");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn try_process(pool: &PgPool, message: &impl Message) -> Result<(), sqlx::Error> {
    let applied = match Event::decode(message) {
        Ok(event) => log(&event, inbox::apply(pool, &event).await),
        Err(poison) => Err(ApplyError::Poison(poison)),
    };
    match applied {
        Ok(()) => Ok(()),
        Err(ApplyError::Database(error)) => Err(error),
        Err(ApplyError::Poison(reason)) => {
            error!(%reason, partition = message.partition(), offset = message.offset(), "rejected");
            inbox::reject(pool, message, &reason).await
        }
    }
}

fn log(event: &Event, applied: Result<Outcome, ApplyError>) -> Result<(), ApplyError> {
    let (id, account, version) = (event.id, &event.account_id, event.version);
    let (trace_id, span_id) = (&event.trace.trace_id, &event.trace.span_id);
    match applied? {
        Outcome::Duplicate => info!(%id, account, version, "skipped: applied before"),
        Outcome::Applied { missing } if missing == "{}" => {
            info!(%id, account, version, trace_id, span_id, "applied");
        }
        Outcome::Applied { missing } => {
            warn!(%id, account, version, trace_id, span_id, missing, "applied, but earlier versions are missing");
        }
    }
    Ok(())
}
