//! The service's metrics. Names are API: docs/METRICS.md lists them.

use std::time::{Duration, Instant};

use basket::application::ports::BoxFuture;
use basket::application::{CommandEnvelope, CommandResult, CommandType, Dispatch, DispatchError};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use sqlx::PgPool;

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
}

impl Metrics {
    /// Registers every metric in a registry of their own, with the process's.
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
        };
        let registry = &metrics.registry;
        registry.register(Box::new(admin::build_info(NAMESPACE)?))?;
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

    /// The pool as it is now.
    pub fn pool(&self, pool: &PgPool) {
        let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
        self.pool_connections.with_label_values(&["idle"]).set(idle);
        self.pool_connections.with_label_values(&["used"]).set(i64::from(pool.size()) - idle);
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
