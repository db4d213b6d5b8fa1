//! The servers, the relay, and what is done to them. The relay goes by way of proxies; writers and readers do not.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions, alter_topic};
use testbed::load::{Load, LoadOptions, Log};
use testbed::other_producer::{MARK, OtherProducer};
use testbed::postgres::{Postgres, PostgresOptions, Shutdown};
use testbed::process::{Launch, Program};
use testbed::proxy::{self, Proxy};
use testbed::records::{self, Record};
use testbed::{Database, net, wait};
use tokio::time::sleep;

use super::schedule::{Fault, Step};
use crate::Failure;
use crate::stack::relay_config;

/// Short, so that silence is often longer than the server's patience.
const WAL_SENDER_TIMEOUT: &str = "3s";
/// Everything has to be well again within this after a fault is over; recovery of servers is included.
const HEALS_WITHIN: Duration = Duration::from_secs(90);
/// A stop in order: the relay's own deadline and a little.
const ENDS_WITHIN: Duration = Duration::from_secs(40);
const PARTITIONS: i32 = 3;
const TOPIC: &str = "outbox.event.load";
/// A limit below every record of the load, and Kafka's own.
const TOO_SMALL: &str = "300";
const LIMIT: &str = "1048588";
/// As many as the load's own rows, so that nearly every batch has other records before it.
const OTHERS_PER_SECOND: u32 = 300;
/// Of two relays one streams. On a busy machine the first can lose its connection, and the second takes over.
const TWO_RELAYS: [&str; 2] = ["standby", "streaming"];
const EVENTS: &str = "outbox_relay_events_total";
const DETECTED: &str = "outbox_relay_duplicates_detected_total";

/// See the module's text.
pub struct Arena {
    relay: Relay,
    to_postgres: Proxy,
    database: Database,
    kafka: Kafka,
    postgres: Postgres,
    programs: PathBuf,
    folder: Folder,
}

struct Relay {
    program: Program,
    admin: u16,
}

impl Arena {
    /// Servers, proxies, schema, topic and a relay that streams.
    pub async fn start(programs: PathBuf) -> Result<Arena, Failure> {
        let settings = vec![("wal_sender_timeout".to_owned(), WAL_SENDER_TIMEOUT.to_owned())];
        let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() });
        let kafka = Kafka::start(KafkaOptions { proxied: true, ..KafkaOptions::default() });
        let (postgres, kafka) = tokio::try_join!(postgres, kafka)?;
        let to_postgres = Proxy::before(postgres.port()).await?;
        let database = Database::on(&postgres.url("postgres"), "soak").await?;
        kafka.create_topic(TOPIC, PARTITIONS, 1, &[]).await?;
        let folder = Folder::new("soak")?;
        let relay = launch(&programs, &folder, to_postgres.port(), &database, &kafka)?;
        let mut arena = Arena { relay, to_postgres, database, kafka, postgres, programs, folder };
        until_ready(&mut arena.relay, &["streaming"]).await?;
        Ok(arena)
    }

    /// Writers that never rest.
    pub async fn load(&self, rate: f64, seed: u64) -> Result<Load, Failure> {
        let options = LoadOptions { rate: Some(rate), seed, rows: 1..=20, ..LoadOptions::default() };
        Ok(Load::start(self.database.url(), options).await?)
    }

    /// Does it, takes it back, and waits until the relay streams and events arrive again.
    pub async fn inject(&mut self, step: Step) -> Result<(), Failure> {
        let Step { fault, hold, .. } = step;
        match fault {
            Fault::RelayKilled => {
                self.relay.program.kill().await?;
                sleep(hold).await;
                self.relay = self.launch()?;
            }
            Fault::RelayTerminated => {
                self.relay.program.terminate()?;
                let status = self.relay.program.wait(ENDS_WITHIN).await?;
                if !status.success() {
                    let log = self.relay.program.log_tail();
                    return Err(format!("the relay ended with {status}: {log}").into());
                }
                sleep(hold).await;
                self.relay = self.launch()?;
            }
            Fault::RelayPaused => {
                self.relay.program.pause()?;
                sleep(hold).await;
                self.relay.program.resume()?;
            }
            Fault::RelaySucceeded => {
                let mut dead = self.replace().await?;
                sleep(hold).await;
                dead.program.kill().await?;
            }
            Fault::RelayZombie => {
                let mut zombie = self.replace().await?;
                zombie.program.pause()?;
                self.healed().await?;
                sleep(hold).await;
                zombie.program.resume()?;
                until_ready(&mut zombie, &TWO_RELAYS).await?;
                zombie.program.kill().await?;
            }
            Fault::PostgresKilled => {
                self.postgres.kill().await?;
                sleep(hold).await;
                self.postgres.start_again().await?;
            }
            Fault::PostgresRestarted | Fault::PostgresCrashed => {
                let immediate = fault == Fault::PostgresCrashed;
                self.postgres.stop(if immediate { Shutdown::Immediate } else { Shutdown::Fast }).await?;
                sleep(hold).await;
                self.postgres.start_again().await?;
            }
            Fault::WalsenderTerminated => {
                self.database
                    .execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
                    .await?;
            }
            Fault::KafkaStopped => {
                self.kafka.stop().await?;
                sleep(hold).await;
                self.kafka.start_again().await?;
            }
            Fault::KafkaKilled => {
                self.kafka.kill().await?;
                sleep(hold).await;
                self.kafka.start_again().await?;
            }
            Fault::KafkaPaused => {
                self.kafka.brokers().iter().try_for_each(testbed::kafka::Broker::pause)?;
                sleep(hold).await;
                self.kafka.brokers().iter().try_for_each(testbed::kafka::Broker::resume)?;
            }
            Fault::SlotDropped => self.lose_slot("pg_drop_replication_slot('outbox')").await?,
            Fault::SlotAdvanced => {
                self.lose_slot("pg_replication_slot_advance('outbox', pg_current_wal_lsn())").await?;
            }
            Fault::PostgresReset | Fault::PostgresSilent | Fault::PostgresSlow => {
                self.to_postgres.set(weather(fault));
                sleep(hold).await;
                self.to_postgres.set(proxy::Fault::None);
            }
            Fault::KafkaReset | Fault::KafkaSilent | Fault::KafkaSlow => {
                self.kafka.proxies().iter().for_each(|proxy| proxy.set(weather(fault)));
                sleep(hold).await;
                self.kafka.proxies().iter().for_each(|proxy| proxy.set(proxy::Fault::None));
            }
            Fault::KafkaRefuses => {
                self.limit_records(TOO_SMALL).await?;
                sleep(hold).await;
                self.limit_records(LIMIT).await?;
            }
            Fault::OtherProducer => {
                let other = OtherProducer::start(&self.kafka.bootstrap(), TOPIC, OTHERS_PER_SECOND)?;
                // More than its own records have to come through meanwhile.
                self.healed().await?;
                sleep(hold).await;
                other.stop()?;
            }
        }
        self.healed().await
    }

    /// Does this to the slot between two sessions of the relay, which knows by then which rows it has delivered, and
    /// waits until it replaces the slot. More losses than it accepts within an hour.
    async fn lose_slot(&self, how: &str) -> Result<(), Failure> {
        self.until_checkpoint("delivered_snapshot::text <> '1:1:' AND start_phase IS NULL").await?;
        self.database
            .execute(&format!(
                "DO $$ BEGIN
                     UPDATE outbox_checkpoint SET slot_replaced_at = '{{}}';
                     LOOP
                         PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots
                         WHERE slot_name = 'outbox' AND active_pid IS NOT NULL;
                         BEGIN
                             PERFORM {how};
                             EXIT;
                         EXCEPTION WHEN object_in_use THEN
                             NULL;
                         END;
                     END LOOP;
                 END $$"
            ))
            .await?;
        self.until_checkpoint("slot_replaced_at <> '{}'").await
    }

    async fn until_checkpoint(&self, condition: &str) -> Result<(), Failure> {
        let mut sql = self.database.connect().await?;
        let query = format!("SELECT {condition} FROM outbox_checkpoint");
        let waited =
            wait::until(
                format!("a checkpoint with {condition}"),
                HEALS_WITHIN,
                async || match value::<bool>(&mut sql, &query).await {
                    Ok(true) => Ok(()),
                    seen => Err(format!("{seen:?}\n{}", self.relay.status().await)),
                },
            );
        Ok(waited.await?)
    }

    async fn limit_records(&self, bytes: &str) -> Result<(), Failure> {
        Ok(alter_topic(&self.kafka.bootstrap(), TOPIC, &[("max.message.bytes", bytes)]).await?)
    }

    /// Duplicates that the relay has noticed since it started.
    pub async fn detected(&self) -> f64 {
        self.relay.metric(DETECTED).await.unwrap_or_default()
    }

    /// Waits until the slot has confirmed everything there is, and reads the topic.
    pub async fn delivered(&mut self) -> Result<Vec<Record>, Failure> {
        let mut sql = self.database.connect().await?;
        let now: String = value(&mut sql, "SELECT pg_current_wal_insert_lsn()::text").await?;
        let confirmed = format!(
            "SELECT confirmed_flush_lsn >= '{now}' FROM pg_replication_slots WHERE slot_name = 'outbox'"
        );
        wait::until(format!("everything up to {now} confirmed"), HEALS_WITHIN, async || match value::<bool>(
            &mut sql, &confirmed,
        )
        .await
        {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.relay.status().await),
            Err(error) => Err(error.to_string()),
        })
        .await?;
        let mut records = records::read_all(&self.kafka.bootstrap(), &[TOPIC]).await?;
        records.retain(|record| record.header(MARK).is_none());
        Ok(records)
    }

    /// Records as they arrive.
    pub async fn tail(&self) -> Result<records::Tail, Failure> {
        Ok(records::Tail::start(&self.kafka.bootstrap(), &[TOPIC]).await?)
    }

    /// Decides the rows whose COMMIT was not answered.
    pub async fn settle(&self, log: &mut Log) -> Result<(), Failure> {
        Ok(log.settle(self.database.url(), "outbox").await?)
    }

    fn launch(&self) -> Result<Relay, Failure> {
        launch(&self.programs, &self.folder, self.to_postgres.port(), &self.database, &self.kafka)
    }

    /// Puts a second relay, which usually stands by, in the place of the first; returns that.
    async fn replace(&mut self) -> Result<Relay, Failure> {
        let mut second = self.launch()?;
        until_ready(&mut second, &TWO_RELAYS).await?;
        Ok(std::mem::replace(&mut self.relay, second))
    }

    /// The relay says that it streams, and more events are acknowledged than before.
    async fn healed(&mut self) -> Result<(), Failure> {
        until_ready(&mut self.relay, &["streaming"]).await?;
        let before = self.relay.metric(EVENTS).await.unwrap_or_default();
        until("more events", &mut self.relay, async |relay: &Relay| {
            let now = relay.metric(EVENTS).await.unwrap_or_default();
            if now > before { Ok(()) } else { Err(relay.status().await) }
        })
        .await
    }
}

fn weather(fault: Fault) -> proxy::Fault {
    match fault {
        Fault::PostgresReset | Fault::KafkaReset => proxy::Fault::Reset,
        Fault::PostgresSilent | Fault::KafkaSilent => proxy::Fault::Silence,
        _ => proxy::Fault::Delay { by: Duration::from_millis(30), jitter: Duration::from_millis(100) },
    }
}

fn launch(
    programs: &std::path::Path,
    folder: &Folder,
    postgres: u16,
    database: &Database,
    kafka: &Kafka,
) -> Result<Relay, Failure> {
    let admin = net::free_port()?;
    let path = folder.path().join(format!("relay-{admin}.yaml"));
    let config = relay_config(postgres, database.name(), &kafka.proxied_bootstrap(), admin);
    std::fs::write(&path, config.replace("source:\n", "source:\n  onGap: Refill\n"))?;
    let program = Launch::new("outbox-relay", programs.join("outbox-relay"))
        .arg("run")
        .arg("--config")
        .arg(&path)
        .start()?;
    Ok(Relay { program, admin })
}

/// Waits until the relay is ready, in one of these roles.
async fn until_ready(relay: &mut Relay, roles: &[&str]) -> Result<(), Failure> {
    let what = format!("a relay that is ready: {}", roles.join(" or "));
    until(&what, relay, async |relay: &Relay| relay.is_ready(roles).await).await
}

/// Checks repeatedly; a relay that has ended unexpectedly will not recover.
async fn until(
    what: &str,
    relay: &mut Relay,
    mut look: impl AsyncFnMut(&Relay) -> Result<(), String>,
) -> Result<(), Failure> {
    let waited = wait::until(what.to_owned(), HEALS_WITHIN, async || {
        if let Some(status) = relay.program.exit_status() {
            return Ok(Err(format!("the relay ended with {status}")));
        }
        look(relay).await.map(Ok)
    })
    .await;
    let failed = match waited {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(ended)) => ended,
        Err(error) => error.to_string(),
    };
    Err(format!("{failed}\n{}", relay.program.log_tail()).into())
}

impl Relay {
    async fn ask(&self, path: &str) -> Result<(u16, String), reqwest::Error> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.admin)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    async fn status(&self) -> String {
        self.ask("/status").await.map_or_else(|error| error.to_string(), |(_, text)| text)
    }

    /// Whether `/readyz` answers that it is, in one of these roles.
    async fn is_ready(&self, roles: &[&str]) -> Result<(), String> {
        match self.ask("/readyz").await {
            Ok((200, body)) if roles.iter().any(|role| body.contains(role)) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    }

    /// A metric's value, summed over its labels.
    async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.ask("/metrics").await.ok()?;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let ours = series == name || series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
            if ours { value.parse::<f64>().ok() } else { None }
        });
        Some(values.sum())
    }
}

async fn value<T>(sql: &mut PgConnection, query: &str) -> Result<T, sqlx::Error>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(sql).await
}
