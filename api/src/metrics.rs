//! The service's metrics. Names are API: docs/METRICS.md lists them.

use std::time::{Duration, Instant, SystemTime};

use basket::application::ports::BoxFuture;
use basket::application::{CommandEnvelope, CommandResult, CommandType, Dispatch, DispatchError};
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

const NAMESPACE: &str = "basket_api";

/// From a millisecond, a command on an idle machine, to five seconds, the longest a request may take.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Handles on every metric.
#[derive(Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    connections: IntGauge,
    connections_closed: IntCounterVec,
    token_key_reads: IntCounterVec,
    commands: IntCounterVec,
    command_seconds: HistogramVec,
    outbox_rows: IntCounterVec,
    replays: IntCounter,
    pool_connections: IntGaugeVec,
    housekeeping_runs: IntCounterVec,
    housekeeping_items: IntCounterVec,
    housekeeping_success: GaugeVec,
    baskets_failed: IntCounter,
}

/// Connections to the database at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open and free.
    pub idle: usize,
    /// Open and in use.
    pub used: usize,
}

/// How a run of a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// It did so much.
    Done(u64),
    /// Another replica does the job.
    Elsewhere,
    /// It was not completed.
    Failed,
}

impl Metrics {
    /// Registers every metric in a new registry, with the process's.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).namespace(NAMESPACE);
        let seconds = |name: &str, help: &str, label: &str| {
            let opts = HistogramOpts::new(name, help).namespace(NAMESPACE).buckets(BUCKETS.to_vec());
            HistogramVec::new(opts, &[label])
        };
        let metrics = Metrics {
            registry: Registry::new(),
            http_requests: IntCounterVec::new(
                opts("http_requests_total", "HTTP requests answered"),
                &["route", "method", "status"],
            )?,
            http_seconds: seconds("http_request_duration_seconds", "From request to answer", "route")?,
            connections: IntGauge::with_opts(opts("http_connections", "Open client connections"))?,
            connections_closed: IntCounterVec::new(
                opts("http_connections_closed_total", "Client connections that the service closed"),
                &["reason"],
            )?,
            token_key_reads: IntCounterVec::new(
                opts("token_key_reads_total", "Attempts to read the token issuer's keys"),
                &["outcome"],
            )?,
            commands: IntCounterVec::new(
                opts("commands_total", "Commands by how they ended"),
                &["type", "outcome"],
            )?,
            command_seconds: seconds("command_duration_seconds", "From dispatch to end", "type")?,
            outbox_rows: IntCounterVec::new(opts("outbox_rows_total", "Outbox rows committed"), &["type"])?,
            replays: IntCounter::with_opts(opts(
                "replays_total",
                "Commands answered with an earlier outcome",
            ))?,
            pool_connections: IntGaugeVec::new(
                opts("db_pool_connections", "Database connections"),
                &["state"],
            )?,
            housekeeping_runs: IntCounterVec::new(
                opts("housekeeping_runs_total", "Runs of the jobs of housekeeping by how they ended"),
                &["task", "outcome"],
            )?,
            housekeeping_items: IntCounterVec::new(
                opts(
                    "housekeeping_items_total",
                    "Baskets abandoned, keys forgotten, partitions and rows changed",
                ),
                &["task"],
            )?,
            housekeeping_success: GaugeVec::new(
                opts("housekeeping_last_success_timestamp_seconds", "When this process last completed a job"),
                &["task"],
            )?,
            baskets_failed: IntCounter::with_opts(opts(
                "baskets_not_abandoned_total",
                "Failed attempts to abandon an idle basket",
            ))?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(process::build_info(NAMESPACE)?))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        registry.register(Box::new(metrics.http_requests.clone()))?;
        registry.register(Box::new(metrics.http_seconds.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_closed.clone()))?;
        registry.register(Box::new(metrics.token_key_reads.clone()))?;
        registry.register(Box::new(metrics.commands.clone()))?;
        registry.register(Box::new(metrics.command_seconds.clone()))?;
        registry.register(Box::new(metrics.outbox_rows.clone()))?;
        registry.register(Box::new(metrics.replays.clone()))?;
        registry.register(Box::new(metrics.pool_connections.clone()))?;
        registry.register(Box::new(metrics.housekeeping_runs.clone()))?;
        registry.register(Box::new(metrics.housekeeping_items.clone()))?;
        registry.register(Box::new(metrics.housekeeping_success.clone()))?;
        registry.register(Box::new(metrics.baskets_failed.clone()))?;
        Ok(metrics)
    }

    /// A request to `route`, the template, never the path: a metric per basket would be one too many.
    pub fn request(&self, route: &str, method: &str, status: u16, took: Duration) {
        self.http_requests.with_label_values(&[route, method, &status.to_string()]).inc();
        self.http_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// A client connected; until the returned value is dropped.
    pub fn connection_opened(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// The service closed a client's connection: the client was too slow, or others needed the room.
    pub fn connection_closed(&self, reason: &str) {
        self.connections_closed.with_label_values(&[reason]).inc();
    }

    /// The token issuer's keys were read, or could not be.
    pub fn token_keys_read(&self, read: bool) {
        self.token_key_reads.with_label_values(&[if read { "read" } else { "failed" }]).inc();
    }

    /// A row of the outbox was committed.
    pub fn outbox_row(&self, event_type: &str) {
        self.outbox_rows.with_label_values(&[event_type]).inc();
    }

    fn command(
        &self,
        command_type: CommandType,
        result: &Result<CommandResult, DispatchError>,
        took: Duration,
    ) {
        let outcome = match result {
            Ok(result) if result.replayed => {
                self.replays.inc();
                "replayed"
            }
            Ok(result) => result.outcome.kind().into_str(),
            Err(DispatchError::InProgress | DispatchError::KeyReused) => "conflict",
            Err(DispatchError::Port(_) | DispatchError::SerializationFailed(_)) => "failed",
        };
        self.commands.with_label_values(&[command_type.into_str(), outcome]).inc();
        self.command_seconds.with_label_values(&[command_type.into_str()]).observe(took.as_secs_f64());
    }

    /// A job of housekeeping is up to date: it was completed, or waits for its first run.
    pub fn housekeeping_up_to_date(&self, task: &str) {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.housekeeping_success.with_label_values(&[task]).set(now.as_secs_f64());
    }

    /// A run of a job of housekeeping.
    pub fn housekeeping(&self, task: &str, outcome: RunOutcome) {
        let name = match outcome {
            RunOutcome::Done(_) => "done",
            RunOutcome::Elsewhere => "elsewhere",
            RunOutcome::Failed => "failed",
        };
        self.housekeeping_runs.with_label_values(&[task, name]).inc();
        if let RunOutcome::Done(items) = outcome {
            self.housekeeping_items.with_label_values(&[task]).inc_by(items);
            self.housekeeping_up_to_date(task);
        }
    }

    /// Idle baskets that a run could not abandon.
    pub fn baskets_not_abandoned(&self, failed: usize) {
        self.baskets_failed.inc_by(u64::try_from(failed).unwrap_or(u64::MAX));
    }

    /// The connections to the database as they are now.
    pub fn database_connections(&self, connections: Connections) {
        for (state, open) in [("idle", connections.idle), ("used", connections.used)] {
            let open = i64::try_from(open).unwrap_or(i64::MAX);
            self.pool_connections.with_label_values(&[state]).set(open);
        }
    }
}

/// One open connection of a client.
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts and times commands.
pub struct Metered<D> {
    inner: D,
    metrics: Metrics,
}

impl<D: Dispatch> Metered<D> {
    /// Around `inner`.
    pub fn new(inner: D, metrics: Metrics) -> Metered<D> {
        Metered { inner, metrics }
    }
}

impl<D: Dispatch> Dispatch for Metered<D> {
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
        Box::pin(async move {
            let started = Instant::now();
            let result = self.inner.dispatch(command).await;
            self.metrics.command(command.command.command_type(), &result, started.elapsed());
            result
        })
    }
}
