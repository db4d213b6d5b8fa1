//! The path of every event: from stream messages to Kafka records and ledger entries.
//!
//! Nothing here blocks the event loop. If a row cannot be sent yet, because its topic is unknown or its partition is
//! being scanned, [`Delivery::on_message`] returns [`Flow::Blocked`]. [`StreamInput`] keeps the message and offers it again.
//!
//! A row enters through `ingest` and leaves through `dispatch`, perhaps after a stay in `waiting_rows`. It is done in
//! `acks`, or refused by Kafka, see `refusals`. `topic_discovery` and `query_results` process what queries to Kafka
//! return; `checkpoint_schedule` says what to store, and when; `replays` sends dead letters again. `silent_partitions` and `another_outbox` detect external faults.

mod acks;
mod another_outbox;
mod broker;
mod checkpoint_schedule;
mod dead_letters;
mod dispatch;
mod ingest;
mod lanes;
mod lost_records;
#[cfg(test)]
mod model;
mod query_results;
mod refusals;
mod replays;
mod silent_partitions;
mod stream_input;
mod topic_counters;
mod topic_discovery;
mod waiting_rows;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use pg_replication::{CommitLsn, EndLsn, PgTime};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;

use self::another_outbox::Strays;
pub use self::broker::{Broker, KafkaBroker, ProducerReports};
pub use self::checkpoint_schedule::CheckpointSchedule;
use self::dead_letters::DeadLetterLog;
use self::dispatch::NextRow;
use self::ingest::Transaction;
pub use self::ingest::{OutboxTable, memory_limit};
use self::lanes::Lanes;
pub use self::lost_records::LostRecords;
pub use self::refusals::Refusal;
use self::refusals::RefusalWatch;
use self::silent_partitions::{BlockedOn, Diagnoses};
pub use self::stream_input::{BURST, InputStop, StreamInput};
use self::topic_counters::TopicCounters;
use self::topic_discovery::TopicDiscovery;
use crate::config::{Config, Sink};
use crate::dead_letters::replay::SendOutcome;
use crate::error::{ErrorKind, RelayError};
use crate::event::column_type::ColumnType;
use crate::event::dead_letter::DeadLetterEncoder;
use crate::event::record::{RecordEncoder, kafka_timestamp};
use crate::event::row::{Layout, RowError};
use crate::kafka::producers::{Ack, largest_batch};
use crate::kafka::watchdog::Watchdog;
use crate::progress::fingerprints::RecentRows;
use crate::progress::ledger::{Inconsistent, Ledger};
use crate::progress::lineage::Lineage;
use crate::progress::snapshot_cursor::SnapshotCursor;
use crate::routing::mapping::{RoutingHistory, RoutingTable};
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::registry::{NoPartition, TopicRegistry};

/// Maximum number of transactions that are read but not confirmed. An entry is small, but while one partition makes no
/// progress, the transactions after it must not fill the memory.
const MAX_UNCONFIRMED_TRANSACTIONS: usize = 65_536;

/// Label value of `refilled_rows_total` for the rows of the initial snapshot.
pub const CAUSE_START: &str = "start";

/// Whether the next message can be processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The message is processed.
    Next,
    /// The message is not processed: offer it again when something has changed.
    Blocked,
}

/// The format of values in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamForm {
    /// Binary, for the types that have a binary format.
    Binary,
    /// Text.
    Text {
        /// The largest value that a record may have.
        largest_value: usize,
    },
}

/// What a session starts with.
pub struct InitialState {
    /// Every row before this position is in Kafka, or belongs to the initial snapshot.
    pub confirmed: EndLsn,
    /// During the initial snapshot: all its rows up to this `seq` are in Kafka.
    pub snapshot_cursor: Option<i64>,
    /// The format of values in the stream.
    pub form: StreamForm,
    /// The server's timelines. Nothing committed at or after their end can be in Kafka yet.
    pub lineage: Lineage,
    /// When the server was started, in milliseconds since 1970.
    pub server_started: i64,
    /// How rows are routed, now and by earlier versions.
    pub mappings: RoutingHistory,
    /// The topics and partitions as the checkpoint knows them.
    pub topics: TopicRegistry,
    /// The table whose rows are delivered.
    pub table: OutboxTable,
    /// The refusal that ended the previous session, if one did.
    pub refusal: Option<Refusal>,
}

/// Event counts of this session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Rows read.
    pub received: u64,
    /// Records handed to a producer.
    pub sent: u64,
    /// Rows that were not sent because Kafka has them.
    pub suppressed: u64,
    /// Records acknowledged by Kafka.
    pub acknowledged: u64,
}

/// See the module documentation.
pub struct Delivery<B = KafkaBroker> {
    table: OutboxTable,
    sink: Sink,
    routing: RoutingTable,
    encoder: RecordEncoder,
    dead_letter_encoder: DeadLetterEncoder,
    dead_letters: DeadLetterLog,
    /// Receives the outcome of the replay in flight.
    replay: Option<oneshot::Sender<SendOutcome>>,
    max_events: usize,
    max_bytes: usize,
    start: EndLsn,
    lineage: Lineage,
    /// Set during the initial snapshot.
    snapshot: Option<SnapshotCursor>,
    /// By relation OID; `None` for a table that is not the outbox. A layout error is reported only when a row of that
    /// relation has to be delivered.
    layouts: HashMap<u32, Option<Result<Rc<Layout>, RowError>>>,
    /// Types announced in the stream, by OID.
    types: HashMap<u32, ColumnType>,
    form: StreamForm,
    discovery: TopicDiscovery,
    /// The commit LSN of the last transaction that began in the stream.
    last_commit: CommitLsn,
    transaction: Option<Transaction>,
    ledger: Ledger,
    topics: TopicRegistry,
    broker: B,
    drained_acks: Vec<Ack>,
    /// Acknowledgements that were drained but not processed, because one before them was a failure.
    unprocessed_acks: Vec<Ack>,
    refusals: RefusalWatch,
    lost: Option<LostRecords>,
    /// Why authentication with a broker failed, until another broker responds.
    auth_error: Option<String>,
    /// When this was last logged.
    auth_error_logged: Option<Instant>,
    watchdog: Watchdog,
    /// Acknowledgements since the last tick of the watchdog.
    acked_since_tick: usize,
    /// Whether all brokers seemed to be down since the last tick.
    brokers_down: bool,
    /// Whether Kafka responds; `None` before the first query.
    kafka_answers: Option<bool>,
    counts: Counters,
    counters: TopicCounters,
    /// The time of this turn of the event loop, in milliseconds since 1970.
    now_millis: i64,
    next_row: NextRow,
    lanes: Lanes,
    /// The partition that the next row waits for, if the row cannot be queued.
    blocked_on: Option<BlockedOn>,
    diagnoses: Diagnoses,
    recent: RecentRows,
    strays: Strays,
    status: Status,
    metrics: Metrics,
}

impl<B: Broker> Delivery<B> {
    /// The delivery of one session.
    pub fn new(
        config: &Config,
        start: InitialState,
        broker: B,
        status: Status,
        metrics: Metrics,
    ) -> Result<Self, RelayError> {
        let largest_batch = largest_batch(start.mappings.smallest_limit());
        let mut topics = start.topics;
        let routing = RoutingTable::new(start.mappings, &mut topics)
            .map_err(|error| RelayError::new(ErrorKind::PoisonRow, error.to_string()))?;
        let timestamps_refused = start.refusal.as_ref().and_then(Refusal::topic_of_timestamp);
        if let Some(topic) = timestamps_refused.and_then(|topic| topics.find(topic)) {
            topics.topic_mut(topic).timestamps_refused = true;
        }
        let delivery = Delivery {
            table: start.table,
            sink: config.sink.clone(),
            routing,
            encoder: RecordEncoder { source: config.source.event_source() },
            dead_letter_encoder: DeadLetterEncoder::new(
                config.source.table.to_string(),
                config.source.event_source(),
            ),
            dead_letters: DeadLetterLog::default(),
            replay: None,
            max_events: config.delivery.max_in_flight_events,
            max_bytes: config.delivery.max_in_flight_bytes,
            start: start.confirmed,
            lineage: start.lineage,
            snapshot: start.snapshot_cursor.map(SnapshotCursor::new),
            layouts: HashMap::new(),
            types: HashMap::new(),
            form: start.form,
            discovery: TopicDiscovery::new(largest_batch),
            last_commit: CommitLsn::default(),
            transaction: None,
            ledger: Ledger::new(start.confirmed),
            topics,
            broker,
            drained_acks: Vec::new(),
            unprocessed_acks: Vec::new(),
            refusals: RefusalWatch::new(start.refusal),
            lost: None,
            auth_error: None,
            auth_error_logged: None,
            watchdog: Watchdog::default(),
            acked_since_tick: 0,
            brokers_down: false,
            kafka_answers: None,
            counts: Counters::default(),
            counters: TopicCounters::default(),
            now_millis: kafka_timestamp(PgTime::now()),
            next_row: NextRow::Anytime,
            lanes: Lanes::default(),
            blocked_on: None,
            diagnoses: Diagnoses::default(),
            recent: RecentRows::default(),
            strays: Strays::default(),
            status,
            metrics,
        };
        for topic in delivery.routing.topics() {
            delivery.verify(topic, true);
        }
        delivery.update_integrity();
        Ok(delivery)
    }

    fn update_integrity(&self) {
        if self.topics.all_verified() {
            self.status.on_kafka_verified();
        }
    }

    /// Whether the budget allows another message. A single record may always be in flight, however large.
    pub fn has_room(&self) -> bool {
        let (events, bytes) = self.in_flight();
        let within = events < self.max_events && bytes < self.max_bytes;
        (within || events == 0) && self.ledger.len() < MAX_UNCONFIRMED_TRANSACTIONS
    }

    /// Whether a transaction has been read only in part.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Events and bytes that Kafka has not acknowledged: sent, or waiting for their partition.
    pub fn in_flight(&self) -> (usize, usize) {
        let load = self.lanes.load();
        (load.events, load.bytes)
    }

    /// Whether Kafka responds; `None` before the first query.
    pub fn kafka_answers(&self) -> Option<bool> {
        self.kafka_answers
    }

    /// Event counts of this session.
    pub fn counts(&self) -> Counters {
        self.counts
    }

    /// Called at every tick for the work that no message triggers.
    pub fn on_tick(&mut self, committed_revision: u64, now: Instant) -> Result<(), RelayError> {
        self.watch_topics();
        self.retry_refused_row();
        if self.ledger.confirmed() >= self.lineage.end() {
            self.apply_growth()?;
        }
        let limit = self.routing.smallest_limit().filter(|_| committed_revision >= self.routing.revision());
        if let Some(limit) = limit.filter(|limit| *limit < self.discovery.largest_batch) {
            let what = format!(
                "a topic now limits messages to {limit} bytes (max.message.bytes), less than the producers' batches"
            );
            return Err(RelayError::new(ErrorKind::TopicChanged, what));
        }
        self.check_strays()?;
        self.watch_silent_partitions(now)?;
        self.watch_producers(now)
    }

    /// The records that Kafka lost, if that ended the session.
    pub fn take_lost(&mut self) -> Option<LostRecords> {
        self.lost.take()
    }
}

fn violation(what: String) -> RelayError {
    RelayError::new(ErrorKind::ProtocolViolation, what)
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

impl From<Inconsistent> for RelayError {
    fn from(error: Inconsistent) -> Self {
        violation(error.to_string())
    }
}

impl From<NoPartition> for RelayError {
    fn from(error: NoPartition) -> Self {
        violation(error.to_string())
    }
}
