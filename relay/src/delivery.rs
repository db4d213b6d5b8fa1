//! From messages of the stream to records in Kafka and entries in the ledger: the path every event takes.
//!
//! Nothing here waits. A row that cannot go on yet (its topic is unknown, its partition is being searched) makes
//! [`Delivery::on_message`] answer [`Flow::Blocked`]; the caller keeps the message and offers it again.
//!
//! A row comes in through `messages`, leaves through `rows`, perhaps after a stay in `waiting`, and is done in `acknowledgements`, or Kafka refuses it, see
//! `refusals`. `topics` and `answers` take in what is found out about Kafka meanwhile; `replays` sends dead letters again.
//! `silent` and `another_outbox` notice what is wrong outside.

mod acks;
mod another_outbox;
mod dead_letters;
mod dispatch;
mod in_flight;
mod ingest;
mod lost_records;
#[cfg(test)]
mod model;
mod query_results;
mod refusals;
mod replays;
mod silent_partitions;
mod topic_counters;
mod topic_discovery;
mod waiting_rows;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pg_replication::{CommitLsn, EndLsn, PgTime};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;

use self::another_outbox::Strays;
use self::dead_letters::InFlightDeadLetters;
use self::in_flight::InFlight;
use self::ingest::Transaction;
pub use self::ingest::{OutboxTable, memory_limit};
pub use self::lost_records::LostRecords;
pub use self::refusals::Refusal;
use self::refusals::RefusalWatch;
use self::silent_partitions::{BlockedOn, Diagnoses};
use self::topic_counters::TopicCounters;
use self::topic_discovery::TopicDiscovery;
use self::waiting_rows::WaitingRows;
use crate::config::{Config, Sink};
use crate::dead_letters::replay::SendOutcome;
use crate::error::{ErrorKind, RelayError};
use crate::event::column_type::ColumnType;
use crate::event::dead_letter::DeadLetterEncoder;
use crate::event::record::{RecordEncoder, kafka_timestamp};
use crate::event::row::{Layout, RowError};
use crate::kafka::producers::{Ack, AckQueue, Producers};
use crate::kafka::queries::KafkaQueries;
use crate::kafka::watchdog::Watchdog;
use crate::progress::fingerprints::RecentRows;
use crate::progress::ledger::{Inconsistent, Ledger};
use crate::progress::lineage::Lineage;
use crate::progress::snapshot_cursor::SnapshotCursor;
use crate::routing::mapping::{RoutingHistory, RoutingTable};
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::partitions::Partitions;

/// Transactions read and not confirmed at most. An entry is small, but one partition that stands still must not
/// let the others fill the memory with what is behind it.
const MAX_UNCONFIRMED_TRANSACTIONS: usize = 65_536;

/// `refilled_rows_total`'s label for rows that were there before the first start.
pub const CAUSE_START: &str = "start";

/// Whether the stream can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The message is dealt with.
    Next,
    /// Offer it again when something has changed.
    Blocked,
}

/// In which form a stream has values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamForm {
    /// In binary form, where their types have one.
    Binary,
    /// In text form.
    Text {
        /// The largest value that a record may have.
        largest_value: usize,
    },
}

/// What a session starts with.
pub struct InitialState {
    /// Everything before it is in Kafka, or will be copied.
    pub confirmed: EndLsn,
    /// While rows are copied that were there before `confirmed`: up to which `seq` they are in Kafka.
    pub snapshot_cursor: Option<i64>,
    /// In which form the stream has values.
    pub form: StreamForm,
    /// The server's past. Nothing committed at or beyond its end can be in Kafka.
    pub lineage: Lineage,
    /// When the server was started, in milliseconds since 1970.
    pub server_started: i64,
    /// Where rows go.
    pub mappings: RoutingHistory,
    /// What the checkpoint knows of Kafka.
    pub partitions: Partitions,
    /// Whose rows are delivered.
    pub table: OutboxTable,
    /// What ended the session before.
    pub refusal: Option<Refusal>,
}

/// Events of this session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Rows read.
    pub received: u64,
    /// Records handed to a producer.
    pub sent: u64,
    /// Rows not sent, because Kafka had them.
    pub suppressed: u64,
    /// Records acknowledged by Kafka.
    pub acknowledged: u64,
}

/// See the module's text.
pub struct Delivery {
    table: OutboxTable,
    sink: Sink,
    routing: RoutingTable,
    encoder: RecordEncoder,
    dead_letter_encoder: DeadLetterEncoder,
    dead_letters: InFlightDeadLetters,
    /// Who waits for the outcome of the dead letter that is being sent again.
    replay: Option<oneshot::Sender<SendOutcome>>,
    max_events: usize,
    max_bytes: usize,
    start: EndLsn,
    lineage: Lineage,
    /// While rows are copied.
    snapshot: Option<SnapshotCursor>,
    /// By relation OID; `None` for a table that is not the outbox. One that cannot be read is no trouble until a row of it
    /// is to be delivered.
    layouts: HashMap<u32, Option<Result<Rc<Layout>, RowError>>>,
    /// Types that were announced, by OID.
    types: HashMap<u32, ColumnType>,
    form: StreamForm,
    /// What is being found out about topics.
    discovery: TopicDiscovery,
    /// The last commit that was begun.
    last_commit: CommitLsn,
    transaction: Option<Transaction>,
    ledger: Ledger,
    partitions: Partitions,
    producers: Producers,
    acks: Arc<AckQueue>,
    drained_acks: Vec<Ack>,
    /// Taken, and not looked at because of a failure before them.
    unprocessed_acks: Vec<Ack>,
    refusals: RefusalWatch,
    lost: Option<LostRecords>,
    /// Why a broker cannot be used, until another answers.
    auth_error: Option<String>,
    /// When the log last said so.
    auth_error_logged: Option<Instant>,
    watchdog: Watchdog,
    /// Acknowledged since the watchdog last looked.
    acked_since_tick: usize,
    /// Whether Kafka answers; `None` until it was asked.
    kafka_answers: Option<bool>,
    counts: Counters,
    counters: TopicCounters,
    /// The time of this turn, in Kafka's milliseconds.
    clock: i64,
    jobs: KafkaQueries,
    /// A row went elsewhere than its mapping said when it was first read. Until that is in Kafka nothing follows: a later
    /// row in the partition it would have gone to would make a replay take it for delivered.
    rerouted_row_in_flight: bool,
    in_flight: InFlight,
    waiting: WaitingRows,
    /// The partition that the next row waits for, where it cannot be set aside.
    blocked_on: Option<BlockedOn>,
    diagnoses: Diagnoses,
    recent: RecentRows,
    strays: Strays,
    status: Status,
    metrics: Metrics,
}

impl Delivery {
    /// Delivery for one session.
    pub fn new(
        config: &Config,
        start: InitialState,
        producers: Producers,
        acks: Arc<AckQueue>,
        jobs: KafkaQueries,
        status: Status,
        metrics: Metrics,
    ) -> Result<Delivery, RelayError> {
        let mapper = RoutingTable::new(start.mappings)
            .map_err(|error| RelayError::new(ErrorKind::PoisonRow, error.to_string()))?;
        let delivery = Delivery {
            table: start.table,
            sink: config.sink.clone(),
            routing: mapper,
            encoder: RecordEncoder { source: config.source.event_source() },
            dead_letter_encoder: DeadLetterEncoder::new(
                config.source.table.to_string(),
                config.source.event_source(),
            ),
            dead_letters: InFlightDeadLetters::new(metrics.clone(), status.clone()),
            replay: None,
            max_events: config.delivery.max_in_flight_events,
            max_bytes: config.delivery.max_in_flight_bytes,
            start: start.confirmed,
            lineage: start.lineage,
            snapshot: start.snapshot_cursor.map(SnapshotCursor::new),
            layouts: HashMap::new(),
            types: HashMap::new(),
            form: start.form,
            discovery: TopicDiscovery::default(),
            last_commit: CommitLsn::default(),
            transaction: None,
            ledger: Ledger::new(start.confirmed),
            partitions: start.partitions,
            producers,
            acks,
            drained_acks: Vec::new(),
            unprocessed_acks: Vec::new(),
            refusals: RefusalWatch::new(start.refusal),
            lost: None,
            auth_error: None,
            auth_error_logged: None,
            watchdog: Watchdog::default(),
            acked_since_tick: 0,
            kafka_answers: None,
            counts: Counters::default(),
            counters: TopicCounters::default(),
            clock: kafka_timestamp(PgTime::now()),
            jobs,
            rerouted_row_in_flight: false,
            in_flight: InFlight::default(),
            waiting: WaitingRows::default(),
            blocked_on: None,
            diagnoses: Diagnoses::default(),
            recent: RecentRows::default(),
            strays: Strays::default(),
            status,
            metrics,
        };
        for topic in delivery.routing.topics() {
            delivery.jobs.verify(topic, delivery.partitions.to_verify(topic), true);
        }
        delivery.update_integrity();
        Ok(delivery)
    }

    fn update_integrity(&self) {
        if self.partitions.all_verified() {
            self.status.on_kafka_verified();
        }
    }

    /// Whether the budget lets another message in. One record may always be under way, however large.
    pub fn has_room(&self) -> bool {
        let (events, bytes) = self.in_flight();
        let within = events < self.max_events && bytes < self.max_bytes;
        (within || events == 0) && self.ledger.len() < MAX_UNCONFIRMED_TRANSACTIONS
    }

    /// Whether a transaction has been read in part.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where rows go, to be stored; without what only concerns rows that are confirmed.
    pub fn mapper(&mut self) -> &mut RoutingTable {
        self.routing.on_confirmed(self.ledger.confirmed());
        &mut self.routing
    }

    /// Topics and partitions.
    pub fn partitions(&mut self) -> &mut Partitions {
        &mut self.partitions
    }

    /// Events and bytes that are to be acknowledged by Kafka: sent, or waiting for their partition.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.in_flight.events + self.waiting.events, self.in_flight.bytes + self.waiting.bytes)
    }

    /// Whether Kafka answers; `None` until it was asked.
    pub fn kafka_answers(&self) -> Option<bool> {
        self.kafka_answers
    }

    /// Events of this session.
    pub fn counts(&self) -> Counters {
        self.counts
    }

    /// Looks whether something has to be done that no message brings about; called at every tick. `stored` is the
    /// revision of the mapping in the committed checkpoint.
    pub fn on_tick(&mut self, stored: u64) -> Result<(), RelayError> {
        self.watch_topics();
        self.try_refused_again();
        if self.ledger.confirmed() >= self.lineage.end() {
            self.apply_growth()?;
        }
        let limit = self.routing.smallest_limit().filter(|_| stored >= self.routing.revision());
        if let Some(limit) = limit.filter(|limit| !self.producers.keep_to(*limit)) {
            let what = format!("a topic takes no more than {limit} bytes now");
            return Err(RelayError::new(ErrorKind::TopicChanged, what));
        }
        self.judge_strays()?;
        self.watch_silent_partitions()?;
        self.watch_producers()
    }

    /// Sends nothing more; with `all`, nothing that was sent is sent again either.
    pub fn purge(&self, all: bool) {
        if all { self.producers.purge_all() } else { self.producers.purge_queued() }
    }

    /// What ended the session, if Kafka lost records.
    pub fn take_lost(&mut self) -> Option<LostRecords> {
        self.lost.take()
    }

    /// The producers, to be ended.
    pub fn into_producers(self) -> Producers {
        self.producers
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
