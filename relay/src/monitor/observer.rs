//! Observes the slot once per second over a dedicated connection, so that metrics and `/status` stay current while the
//! stream is down; and the partitions of the outbox, less often.
//!
//! During a session it observes the session's server and no other. A failure of this connection does not affect a
//! session that works: what is not known is shown as unknown.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use pg_replication::{EndLsn, Host};
use sqlx::postgres::PgConnection;
use sqlx::types::Text;
use sqlx::{AssertSqlSafe, Row};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::config::{Config, Source};
use crate::error::RelayError;
use crate::monitor::maintenance;
use crate::postgres::checkpoint;
use crate::postgres::connection;
use crate::postgres::failover;
use crate::postgres::heartbeat;
use crate::postgres::slot;
use crate::status::metrics::Metrics;
use crate::status::{ObservedCheckpoint, STANDBY_POLL_INTERVAL, Status};

/// One cheap query a second, so that a fault shows within 10 s.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);
/// Longer than any query of a server that responds. Connecting has separate limits.
const OBSERVE_WITHIN: Duration = Duration::from_secs(3);
/// A query that waits for a lock shows nothing; the next one may succeed.
const WAIT_FOR_LOCKS: &str = "SET lock_timeout = '1s'";
/// Less often than the slot, because it costs more (rows of the DEFAULT partition are counted); still within 10 s.
const OBSERVE_MORE_EVERY: Duration = Duration::from_secs(5);

pub async fn observe(config: Config, status: Status, metrics: Metrics) {
    let mut observer =
        Observer { config, status, metrics, link: Link::Down, more_observed: None, blind: false };
    loop {
        observer.on_tick().await;
        let pause = if observer.status.is_standby() { STANDBY_POLL_INTERVAL } else { OBSERVE_EVERY };
        tokio::time::sleep(pause).await;
    }
}

struct Observer {
    config: Config,
    status: Status,
    metrics: Metrics,
    link: Link,
    /// When the partitions, and what matters for a failover, were last observed.
    more_observed: Option<Instant>,
    /// The failure was logged.
    blind: bool,
}

type Connected = Result<(PgConnection, Host), RelayError>;

enum Link {
    Down,
    /// To the session's server, or to the first usable host. Kept across ticks: connecting to a host that drops packets
    /// takes longer than a tick.
    Connecting(Option<Host>, Pin<Box<dyn Future<Output = Connected> + Send>>),
    Up(PgConnection, Host),
}

impl Observer {
    async fn on_tick(&mut self) {
        let began = Instant::now();
        let observed = self.observe_slot().await;
        if let Err(why) = &observed {
            self.status.on_observer_failed(began, why.clone());
        }
        self.log_change(observed.err());
        self.show();
        self.status.record_problem();
        if self.link.sql().is_some() {
            self.send_heartbeat().await;
            if self.more_observed.is_none_or(|at| at.elapsed() >= OBSERVE_MORE_EVERY) {
                self.more_observed = Some(Instant::now());
                self.observe_partitions().await;
                self.observe_failover().await;
            }
        } else {
            self.metrics.set_partitions(None);
            self.status.set_primary(None);
        }
    }

    async fn observe_slot(&mut self) -> Result<(), String> {
        self.connect().await?;
        let Some(sql) = self.link.sql() else { return Err("not connected".to_owned()) };
        let asked = Instant::now();
        let querying = async {
            let slot = slot::state(sql, &self.config.source.slot.name).await?;
            Ok::<_, sqlx::Error>((slot, read_checkpoint(&self.config, sql).await?))
        };
        let why = match timeout(OBSERVE_WITHIN, querying).await {
            Ok(Ok((slot, checkpoint))) => {
                self.status.set_slot(asked, slot, checkpoint);
                return Ok(());
            }
            Ok(Err(error)) => RelayError::from(error).detail,
            Err(_) => format!("no answer within {OBSERVE_WITHIN:?}"),
        };
        self.link = Link::Down;
        Err(why)
    }

    /// Makes progress on the connection, for at most one tick.
    async fn connect(&mut self) -> Result<(), String> {
        let wanted = self.status.server();
        let keep = match &self.link {
            Link::Down => false,
            Link::Connecting(to, _) => *to == wanted,
            Link::Up(_, to) => wanted.as_ref().is_none_or(|wanted| wanted == to),
        };
        if !keep {
            let connecting = connect(self.config.source.clone(), wanted.clone());
            self.link = Link::Connecting(wanted, Box::pin(connecting));
        }
        let Link::Connecting(to, connecting) = &mut self.link else { return Ok(()) };
        let connected = match timeout(OBSERVE_EVERY, connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                let place = to.as_ref().map_or_else(|| self.config.source.host.clone(), Host::to_string);
                return Err(format!("still connecting to {place}"));
            }
        };
        self.link = Link::Down;
        let (sql, host) = connected.map_err(|error| error.detail)?;
        self.link = Link::Up(sql, host);
        Ok(())
    }

    /// Logs that the session continues without the observer, and when the observer is back.
    fn log_change(&mut self, why: Option<String>) {
        let blind = why.is_some() && self.status.is_connected() && self.status.server().is_some();
        let was = std::mem::replace(&mut self.blind, blind);
        match why {
            Some(why) if blind && !was => {
                tracing::warn!(
                    "cannot observe the slot over a separate connection; delivery continues: {why}"
                );
            }
            None if was => tracing::info!("the slot is observed again"),
            _ => {}
        }
    }

    fn show(&self) {
        let (status, metrics) = (&self.status, &self.metrics);
        metrics.connected.with_label_values(&["postgres"]).set(i64::from(status.is_connected()));
        match status.slot() {
            Some(slot) => metrics.set_slot(&slot, status.slot_inactive_for()),
            None => metrics.clear_slot(),
        }
        metrics.lag_seconds.set(status.lag_seconds());
        metrics.set_heartbeat(status.heartbeat_age());
        metrics.set_failover_ready(status.failover_readiness().reason.is_ready());
    }

    async fn send_heartbeat(&mut self) {
        let Some(sql) = self.link.sql() else { return };
        match timeout(OBSERVE_WITHIN, heartbeat::send_if_due(sql, &self.status)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.link = Link::Down,
            Err(_) => {
                self.status.on_heartbeat_not_sent();
                self.link = Link::Down;
            }
        }
    }

    async fn observe_partitions(&mut self) {
        let Some(sql) = self.link.sql() else { return };
        let answer = timeout(OBSERVE_WITHIN, maintenance::partition_state(&self.config, sql)).await;
        let state = self.answered(answer);
        self.metrics.set_partitions(state);
    }

    /// The active relay does it for a standby relay, too.
    async fn observe_failover(&mut self) {
        let Some(sql) = self.link.sql().filter(|_| !self.status.is_standby()) else {
            return self.status.set_primary(None);
        };
        let answer = timeout(OBSERVE_WITHIN, failover::primary(sql, &self.config.source.slot.name)).await;
        let primary = self.answered(answer);
        self.status.set_primary(primary);
    }

    /// What a query found. Nothing if the server refuses it: some providers refuse functions that PostgreSQL allows to
    /// everyone. A connection without an answer is closed.
    fn answered<T>(&mut self, answer: Result<Result<Option<T>, sqlx::Error>, Elapsed>) -> Option<T> {
        match answer {
            Ok(Ok(found)) => found,
            Ok(Err(sqlx::Error::Database(_))) => None,
            Ok(Err(_)) | Err(_) => {
                self.link = Link::Down;
                None
            }
        }
    }
}

impl Link {
    fn sql(&mut self) -> Option<&mut PgConnection> {
        match self {
            Link::Up(sql, _) => Some(sql),
            _ => None,
        }
    }
}

async fn connect(source: Source, server: Option<Host>) -> Connected {
    let (mut sql, host) = match server {
        Some(server) => {
            let access = connection::access(&source)?;
            (connection::connect_to(&source, &access, &server, "observer").await?, server)
        }
        None => connection::connect_first(&source, "observer", None).await?,
    };
    sqlx::raw_sql(WAIT_FOR_LOCKS).execute(&mut sql).await?;
    Ok((sql, host))
}

/// The relay's row, if there is one. A missing, locked or unreadable table is reported by the session, not here.
async fn read_checkpoint(
    config: &Config,
    sql: &mut PgConnection,
) -> Result<Option<ObservedCheckpoint>, sqlx::Error> {
    let table = config.source.table.sibling(checkpoint::TABLE);
    let select = format!(
        "SELECT confirmed_lsn::text AS confirmed, extract(epoch FROM clock_timestamp() - updated_at)::float8 AS age
         FROM {table} WHERE relay = $1"
    );
    let row = match sqlx::query(AssertSqlSafe(select)).bind(&config.name).fetch_optional(sql).await {
        Ok(Some(row)) => row,
        Ok(None) | Err(sqlx::Error::Database(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let confirmed: Option<Text<EndLsn>> = row.try_get("confirmed")?;
    let age: f64 = row.try_get("age")?;
    Ok(Some(ObservedCheckpoint {
        confirmed: confirmed.map(|Text(lsn)| lsn),
        age: Duration::try_from_secs_f64(age.max(0.0)).unwrap_or_default(),
    }))
}
