//! The relay's metrics. Names are API: docs/METRICS.md lists them, and once released they stay.

use std::time::Duration;

use prometheus::core::{AtomicF64, Collector, GenericGauge};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use rdkafka::error::RDKafkaErrorCode;

use crate::config::Config;
use crate::error::{ErrorKind, RefillCause};
use crate::event::poison::PoisonKind;
use crate::status::SlotState;

const NAMESPACE: &str = "outbox_relay";

/// From half a millisecond, the round trip to a broker in the same rack, to a minute, an outage.
const COMMIT_TO_ACK_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The values `slot_wal_status` can take.
const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// The metrics, and the registry they are in.
#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub lag_seconds: Gauge,
    unconfirmed_wal_bytes: IntGaugeVec,
    retained_wal_bytes: IntGaugeVec,
    /// No series where there is no limit.
    slot_safe_wal_bytes: IntGaugeVec,
    slot_active: IntGaugeVec,
    slot_wal_status: IntGaugeVec,
    /// No series while it is not known.
    failover_ready: IntGaugeVec,
    default_partition_rows: IntGaugeVec,
    oldest_partition_age_seconds: GaugeVec,
    pub connected: IntGaugeVec,
    pub streaming: IntGauge,
    pub events_total: IntCounterVec,
    pub transactions_total: IntCounter,
    pub bytes_total: IntCounter,
    pub commit_to_ack_seconds: Histogram,
    pub in_flight_events: IntGauge,
    pub in_flight_bytes: IntGauge,
    pub received_lsn: IntGauge,
    pub acknowledged_lsn: IntGauge,
    pub confirmed_lsn: IntGauge,
    pub produce_errors_total: IntCounterVec,
    pub reconnects_total: IntCounterVec,
    pub producer_rebuilds_total: IntCounterVec,
    pub duplicates_suppressed_total: IntCounter,
    pub duplicates_detected_total: IntCounter,
    pub offset_gaps_skipped_total: IntCounter,
    pub refilled_rows_total: IntCounterVec,
    pub refills_total: IntCounterVec,
    pub gap_total: IntCounterVec,
    pub phantom_events_total: IntCounter,
    /// No series while no heartbeat is expected.
    heartbeat_age_seconds: GaugeVec,
    slot_inactive_seconds: GaugeVec,
    pub timestamps_replaced_total: IntCounter,
    pub dead_letters_total: IntCounterVec,
    info: IntGaugeVec,
}

impl Metrics {
    /// Registers every metric in a new registry, together with the process's own metrics.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Metrics::in_registry(registry.clone(), &|metric| registry.register(metric))
    }

    fn in_registry(registry: Registry, register: Register<'_>) -> Result<Metrics, prometheus::Error> {
        registered(register, process::build_info(NAMESPACE)?)?;
        let histogram = HistogramOpts::new(
            "commit_to_ack_duration_seconds",
            "From commit to Kafka's acknowledgement of the transaction's last row",
        )
        .namespace(NAMESPACE)
        .buckets(COMMIT_TO_ACK_BUCKETS.to_vec());
        let gauge = |name, help| registered(register, int_gauge(name, help)?);
        // No series while the value is not known.
        let known = |name, help| registered(register, int_gauge_vec(name, help, &[])?);
        let known_seconds = |name, help| registered(register, GaugeVec::new(opts(name, help), &[])?);
        let seconds =
            |name, help| registered(register, GenericGauge::<AtomicF64>::with_opts(opts(name, help))?);
        let counter = |name, help| registered(register, IntCounter::with_opts(opts(name, help))?);
        let counters =
            |name, help, labels| registered(register, IntCounterVec::new(opts(name, help), labels)?);
        Ok(Metrics {
            lag_seconds: seconds(
                "lag_seconds",
                "Age of the oldest committed row that Kafka has not acknowledged",
            )?,
            unconfirmed_wal_bytes: known(
                "unconfirmed_wal_bytes",
                "Server's LSN minus the slot's confirmed LSN",
            )?,
            retained_wal_bytes: known(
                "retained_wal_bytes",
                "Server's LSN minus the slot's restart LSN: the disk at risk",
            )?,
            slot_safe_wal_bytes: known(
                "slot_safe_wal_bytes",
                "WAL that may still be written before the slot is at risk",
            )?,
            slot_active: known("slot_active", "1 while a connection holds the slot")?,
            slot_wal_status: registered(
                register,
                int_gauge_vec("slot_wal_status", "1 for the status the slot has", &["status"])?,
            )?,
            failover_ready: known(
                "failover_ready",
                "1 while delivery would continue from a promoted standby, 0 while it would not",
            )?,
            default_partition_rows: known(
                "default_partition_rows",
                "Rows in the DEFAULT partition, counted up to 10,000",
            )?,
            oldest_partition_age_seconds: known_seconds(
                "oldest_partition_age_seconds",
                "Time since the range of the oldest partition ended",
            )?,
            connected: registered(register, int_gauge_vec("connected", "1 while connected", &["side"])?)?,
            streaming: gauge("streaming", "1 while the stream is open")?,
            events_total: counters("events_total", "Events acknowledged by Kafka", &["topic"])?,
            transactions_total: counter(
                "transactions_total",
                "Transactions with events, acknowledged by Kafka",
            )?,
            bytes_total: counter("bytes_total", "Bytes of the records acknowledged by Kafka")?,
            commit_to_ack_seconds: registered(register, Histogram::with_opts(histogram)?)?,
            in_flight_events: gauge(
                "in_flight_events",
                "Events that Kafka has to acknowledge: sent, or waiting for their partition",
            )?,
            in_flight_bytes: gauge(
                "in_flight_bytes",
                "Bytes of these events, counted as delivery.maxInFlightBytes counts them",
            )?,
            received_lsn: gauge("received_lsn", "Last LSN read from the stream")?,
            acknowledged_lsn: gauge("acknowledged_lsn", "End of the contiguous acknowledged prefix")?,
            confirmed_lsn: gauge("confirmed_lsn", "LSN that was confirmed to PostgreSQL")?,
            produce_errors_total: counters("produce_errors_total", "Deliveries that failed", &["reason"])?,
            reconnects_total: counters(
                "reconnects_total",
                "Interruptions of delivery, and changes of the error that interrupts it",
                &["side", "reason"],
            )?,
            producer_rebuilds_total: counters(
                "producer_rebuilds_total",
                "Producers closed and recreated",
                &["reason"],
            )?,
            duplicates_suppressed_total: counter(
                "duplicates_suppressed_total",
                "Replayed rows that were already in Kafka and were not sent again",
            )?,
            duplicates_detected_total: counter(
                "duplicates_detected_total",
                "Events found twice in a partition",
            )?,
            offset_gaps_skipped_total: counter(
                "offset_gaps_skipped_total",
                "Ranges of offsets between the relay's records that other producers filled faster than the relay reads \
                 them, so that they were not searched for duplicates",
            )?,
            refilled_rows_total: with_causes(counters(
                "refilled_rows_total",
                "Rows delivered from the table",
                &["cause"],
            )?),
            refills_total: from_zero(
                counters("refills_total", "Refills that were begun", &["cause"])?,
                RefillCause::ALL.into_iter().map(RefillCause::name),
            ),
            gap_total: with_causes(counters(
                "gap_total",
                "Gaps found between checkpoint and stream, or in Kafka",
                &["cause"],
            )?),
            phantom_events_total: counter(
                "phantom_events_total",
                "Events found in Kafka at positions outside the history of the server's WAL",
            )?,
            heartbeat_age_seconds: known_seconds(
                "heartbeat_age_seconds",
                "Time since the newest heartbeat that came back through the stream was sent",
            )?,
            slot_inactive_seconds: known_seconds(
                "slot_inactive_seconds",
                "Time for which no connection has held the slot",
            )?,
            timestamps_replaced_total: counter(
                "timestamps_replaced_total",
                "Records sent with the current time as their Kafka timestamp, because their own does not fit the topic",
            )?,
            dead_letters_total: from_zero(
                counters(
                    "dead_letters_total",
                    "Rows that became dead letters, acknowledged by Kafka",
                    &["reason"],
                )?,
                PoisonKind::ALL.map(PoisonKind::name),
            ),
            info: registered(
                register,
                int_gauge_vec("info", "Whose metrics these are", &["relay", "slot", "database", "table"])?,
            )?,
            registry,
        })
    }

    /// Labels that identify the relay: a rule can join them to any other metric, without relabelling.
    pub fn set_relay_info(&self, config: &Config) {
        let source = &config.source;
        let table = source.table.to_string();
        self.info.with_label_values(&[&config.name, &source.slot.name, &source.database, &table]).set(1);
    }

    pub fn count_produce_error(&self, code: RDKafkaErrorCode) {
        self.produce_errors_total.with_label_values(&[&format!("{code:?}")]).inc();
    }

    /// Shows the slot as it was observed.
    pub fn set_slot(&self, slot: &SlotState, inactive: Duration) {
        let bytes = |bytes: Option<u64>| i64::try_from(bytes.unwrap_or(0)).unwrap_or(i64::MAX);
        only(&self.unconfirmed_wal_bytes).set(bytes(slot.behind(slot.confirmed)));
        only(&self.retained_wal_bytes).set(bytes(slot.behind(slot.restart)));
        match slot.safe_wal_bytes {
            Some(bytes) => only(&self.slot_safe_wal_bytes).set(bytes),
            None => self.slot_safe_wal_bytes.reset(),
        }
        only(&self.slot_active).set(i64::from(slot.active_pid.is_some()));
        self.slot_inactive_seconds.with_label_values::<&str>(&[]).set(inactive.as_secs_f64());
        for known in WAL_STATUSES {
            let is_it = slot.wal_status.as_deref() == Some(known);
            self.slot_wal_status.with_label_values(&[known]).set(i64::from(is_it));
        }
    }

    /// Removes the slot's series: the last observation may no longer be true.
    pub fn clear_slot(&self) {
        self.unconfirmed_wal_bytes.reset();
        self.retained_wal_bytes.reset();
        self.slot_safe_wal_bytes.reset();
        self.slot_active.reset();
        self.slot_inactive_seconds.reset();
        self.slot_wal_status.reset();
    }

    /// Shows whether delivery would continue after a failover; `None` while that is not known.
    pub fn set_failover_ready(&self, is_ready: Option<bool>) {
        match is_ready {
            Some(is_ready) => only(&self.failover_ready).set(i64::from(is_ready)),
            None => self.failover_ready.reset(),
        }
    }

    /// Shows the age of the newest heartbeat that came back; `None` while none is expected.
    pub fn set_heartbeat(&self, age: Option<Duration>) {
        match age {
            Some(age) => self.heartbeat_age_seconds.with_label_values::<&str>(&[]).set(age.as_secs_f64()),
            None => self.heartbeat_age_seconds.reset(),
        }
    }

    /// Shows the state of the partitions; `None` while it is not known.
    pub fn set_partitions(&self, state: Option<(i64, f64)>) {
        let Some((default_rows, oldest_age)) = state else {
            self.default_partition_rows.reset();
            self.oldest_partition_age_seconds.reset();
            return;
        };
        only(&self.default_partition_rows).set(default_rows);
        self.oldest_partition_age_seconds.with_label_values::<&str>(&[]).set(oldest_age);
    }
}

/// The one series of a metric without labels.
fn only(metric: &IntGaugeVec) -> IntGauge {
    metric.with_label_values::<&str>(&[])
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

/// Receives each metric; a test collects them all, those without a series too.
type Register<'a> = &'a dyn Fn(Box<dyn Collector>) -> Result<(), prometheus::Error>;

fn registered<M: Collector + Clone + 'static>(
    register: Register<'_>,
    metric: M,
) -> Result<M, prometheus::Error> {
    register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn with_causes(counters: IntCounterVec) -> IntCounterVec {
    from_zero(counters, ErrorKind::gaps().map(ErrorKind::name))
}

/// Counters that are exported as 0 from the start: the first event of a process must show as an increase.
fn from_zero(counters: IntCounterVec, labels: impl IntoIterator<Item = &'static str>) -> IntCounterVec {
    for label in labels {
        drop(counters.with_label_values(&[label]));
    }
    counters
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing;

    #[test]
    fn info_metrics_identify_the_relay_and_its_build() {
        let metrics = Metrics::new().unwrap();
        metrics.set_relay_info(&testing::config());
        let labels = |name: &str| -> Vec<String> {
            let families = metrics.registry.gather();
            let family = families.iter().find(|family| family.name() == name).unwrap();
            let labels = family.get_metric()[0].get_label().iter();
            labels.map(|label| format!("{}={}", label.name(), label.value())).collect()
        };
        assert_eq!(
            labels("outbox_relay_info"),
            ["database=shop", "relay=orders", "slot=s", "table=public.outbox"]
        );
        assert!(
            labels("outbox_relay_build_info").contains(&format!("version={}", env!("CARGO_PKG_VERSION")))
        );
        assert_eq!(labels("outbox_relay_build_info").len(), 2, "and the revision");
    }

    #[test]
    fn without_a_value_there_is_no_series() {
        let metrics = Metrics::new().unwrap();
        let shown = |name: &str| metrics.registry.gather().iter().any(|family| family.name() == name);
        let optional = [
            "outbox_relay_heartbeat_age_seconds",
            "outbox_relay_default_partition_rows",
            "outbox_relay_oldest_partition_age_seconds",
            "outbox_relay_failover_ready",
            "outbox_relay_slot_safe_wal_bytes",
        ];
        assert!(optional.iter().all(|name| !shown(name)), "before any observation");
        metrics.set_heartbeat(Some(Duration::ZERO));
        metrics.set_partitions(Some((0, 0.0)));
        metrics.set_failover_ready(Some(false));
        assert!(optional[..4].iter().all(|name| shown(name)), "zero is a value, too");
        metrics.set_heartbeat(None);
        metrics.set_partitions(None);
        metrics.set_failover_ready(None);
        assert!(optional.iter().all(|name| !shown(name)));
    }

    /// The text in the document begins with the metric's HELP.
    #[test]
    fn the_document_lists_every_metric_with_its_help_and_no_other() {
        let exported = RefCell::new(BTreeMap::new());
        let seen = |metric: Box<dyn Collector>| {
            let described = metric.desc().into_iter().map(|desc| (desc.fq_name.clone(), desc.help.clone()));
            exported.borrow_mut().extend(described);
            Ok(())
        };
        Metrics::in_registry(Registry::new(), &seen).unwrap();
        let mut exported = exported.into_inner();
        let document = include_str!("../../../docs/METRICS.md");
        let (table, _) = document.split_once("### What to alert on").unwrap();
        for row in table.lines().filter(|line| line.starts_with("| `outbox_relay_")) {
            let cells: Vec<String> = row.splitn(5, '|').map(|cell| cell.trim().replace('`', "")).collect();
            let (name, kind, meaning) = (&cells[1], &cells[2], &cells[4]);
            let help =
                exported.remove(name).unwrap_or_else(|| panic!("{name} is listed twice, or not exported"));
            assert!(
                meaning.to_lowercase().starts_with(&help.to_lowercase()),
                "{name}: '{help}', '{meaning}'"
            );
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        }
        assert_eq!(exported, BTreeMap::new(), "not documented");
    }
}
