//! The relay's metrics. Names are API: docs/METRICS.md lists them, and once released they stay.

use prometheus::core::{AtomicF64, Collector, GenericGauge};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Prefix of every name.
const NAMESPACE: &str = "outbox_relay";

/// From half a millisecond, what a broker in the same rack needs, to a minute, an outage.
const COMMIT_TO_ACK_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The values `slot_wal_status` can take.
const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// Handles on every metric.
#[derive(Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Age of the oldest committed row not acknowledged by Kafka, in seconds.
    pub lag_seconds: Gauge,
    /// Server's LSN minus the slot's confirmed LSN.
    pub unconfirmed_wal_bytes: IntGauge,
    /// Server's LSN minus the slot's restart LSN: the disk at risk.
    pub retained_wal_bytes: IntGauge,
    /// Bytes until the slot is in danger; -1 without a limit.
    pub slot_safe_wal_bytes: IntGauge,
    /// 1 while a connection holds the slot.
    pub slot_active: IntGauge,
    slot_wal_status: IntGaugeVec,
    /// 1 per connected side.
    pub connected: IntGaugeVec,
    /// 1 while the stream is open and delivery goes on.
    pub streaming: IntGauge,
    /// Events acknowledged, by topic.
    pub events_total: IntCounterVec,
    /// Transactions acknowledged that had events.
    pub transactions_total: IntCounter,
    /// Key and value bytes acknowledged.
    pub bytes_total: IntCounter,
    /// From commit to Kafka's acknowledgement of a transaction's last row.
    pub commit_to_ack_seconds: Histogram,
    /// Events sent and not acknowledged.
    pub in_flight_events: IntGauge,
    /// Their bytes.
    pub in_flight_bytes: IntGauge,
    /// Last LSN read from the stream.
    pub received_lsn: IntGauge,
    /// End of the contiguous acknowledged prefix.
    pub acknowledged_lsn: IntGauge,
    /// What the server was told.
    pub confirmed_lsn: IntGauge,
    /// Deliveries that failed.
    pub produce_errors_total: IntCounterVec,
    /// Sessions ended by a trouble.
    pub reconnects_total: IntCounterVec,
    /// Producers thrown away and made anew.
    pub producer_rebuilds_total: IntCounterVec,
    /// Replayed rows that were found in Kafka and dropped.
    pub duplicates_suppressed_total: IntCounter,
    /// Events found in a partition twice.
    pub duplicates_detected_total: IntCounter,
}

impl Metrics {
    /// Registers every metric in a registry of their own, with the process's.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let build_info =
            counted(&registry, int_gauge_vec("build_info", "Version of the program", &["version"])?)?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let histogram = HistogramOpts::new("commit_to_ack_seconds", "From commit to Kafka's acknowledgement")
            .namespace(NAMESPACE)
            .buckets(COMMIT_TO_ACK_BUCKETS.to_vec());
        let gauge = |name, help| counted(&registry, int_gauge(name, help)?);
        let counter = |name, help| counted(&registry, IntCounter::with_opts(opts(name, help))?);
        let counters = |name, help, labels| counted(&registry, IntCounterVec::new(opts(name, help), labels)?);
        Ok(Metrics {
            lag_seconds: counted(
                &registry,
                GenericGauge::<AtomicF64>::with_opts(opts(
                    "lag_seconds",
                    "Age of the oldest committed row not acknowledged by Kafka",
                ))?,
            )?,
            unconfirmed_wal_bytes: gauge(
                "unconfirmed_wal_bytes",
                "Server's LSN minus the slot's confirmed LSN",
            )?,
            retained_wal_bytes: gauge("retained_wal_bytes", "WAL the slot keeps on the server's disk")?,
            slot_safe_wal_bytes: gauge(
                "slot_safe_wal_bytes",
                "WAL until the slot is in danger; -1 without a limit",
            )?,
            slot_active: gauge("slot_active", "1 while a connection holds the slot")?,
            slot_wal_status: counted(
                &registry,
                int_gauge_vec("slot_wal_status", "1 for the status the slot has", &["status"])?,
            )?,
            connected: counted(&registry, int_gauge_vec("connected", "1 per connected side", &["side"])?)?,
            streaming: gauge("streaming", "1 while the stream is open and delivery goes on")?,
            events_total: counters("events_total", "Events acknowledged by Kafka", &["topic"])?,
            transactions_total: counter(
                "transactions_total",
                "Transactions with events, acknowledged by Kafka",
            )?,
            bytes_total: counter("bytes_total", "Key and value bytes acknowledged by Kafka")?,
            commit_to_ack_seconds: counted(&registry, Histogram::with_opts(histogram)?)?,
            in_flight_events: gauge("in_flight_events", "Events sent and not acknowledged")?,
            in_flight_bytes: gauge("in_flight_bytes", "Key and value bytes sent and not acknowledged")?,
            received_lsn: gauge("received_lsn", "Last LSN read from the stream")?,
            acknowledged_lsn: gauge("acknowledged_lsn", "End of the contiguous acknowledged prefix")?,
            confirmed_lsn: gauge("confirmed_lsn", "LSN the server was told to be confirmed")?,
            produce_errors_total: counters("produce_errors_total", "Deliveries that failed", &["reason"])?,
            reconnects_total: counters(
                "reconnects_total",
                "Sessions ended by a trouble",
                &["side", "reason"],
            )?,
            producer_rebuilds_total: counters("producer_rebuilds_total", "Producers made anew", &["reason"])?,
            duplicates_suppressed_total: counter(
                "duplicates_suppressed_total",
                "Replayed rows found in Kafka and dropped",
            )?,
            duplicates_detected_total: counter(
                "duplicates_detected_total",
                "Events found in a partition twice",
            )?,
            registry,
        })
    }

    /// Shows `status` as the slot's WAL status.
    pub fn set_wal_status(&self, status: Option<&str>) {
        for known in WAL_STATUSES {
            self.slot_wal_status.with_label_values(&[known]).set(i64::from(status == Some(known)));
        }
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}

fn int_gauge(name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    IntGauge::with_opts(opts(name, help))
}

fn int_gauge_vec(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(opts(name, help), labels)
}

fn counted<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
