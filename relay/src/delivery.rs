//! From messages of the stream to records in Kafka and entries in the ledger: the path every event takes.
//!
//! Nothing here waits. A row that cannot go on yet (its topic is unknown, its partition is being searched) makes
//! [`Delivery::message`] answer [`Flow::Blocked`]; the caller keeps the message and offers it again.
//!
//! A row comes in through `messages`, leaves through `rows`, perhaps after a stay in `waiting`, and is done in `acknowledgements`, or Kafka refuses it, see
//! `refusals`. `topics` and `answers` take in what is found out about Kafka meanwhile; `replays` sends dead letters again.
//! `silent` and `another_outbox` notice what is wrong outside.

mod acknowledgements;
mod another_outbox;
mod answers;
mod in_flight;
mod lost;
mod messages;
mod refusals;
mod replays;
mod rows;
mod silent;
mod topics;
mod waiting;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pg_replication::{CommitLsn, EndLsn, PgTime};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;

use self::another_outbox::Strays;
use self::in_flight::InFlight;
pub use self::lost::LostRecords;
use self::messages::Transaction;
pub use self::messages::{OutboxTable, memory_limit};
pub use self::refusals::Refusal;
use self::refusals::RefusalWatch;
use self::silent::{Examinations, Held};
use self::topics::Inquiries;
use self::waiting::WaitingRows;
use crate::config::{Config, Sink};
use crate::dead_letter::replay::Outcome;
use crate::dead_letter::{DeadLetterStyle, Underway};
use crate::event::column_type::ColumnType;
use crate::event::record::{RecordStyle, kafka_timestamp};
use crate::event::row::{Layout, RowError};
use crate::kafka::jobs::Jobs;
use crate::kafka::sink::{Ack, AckQueue, Producers};
use crate::kafka::watchdog::Watchdog;
use crate::progress::cursor::Cursor;
use crate::progress::found::RecentRows;
use crate::progress::ledger::{Inconsistent, Ledger};
use crate::progress::lineage::Lineage;
use crate::routing::mapping::{Mapper, Mappings};
use crate::status::Status;
use crate::status::metrics::{Metrics, TopicCounters};
use crate::topics::partitions::Partitions;
use crate::trouble::{Reason, Trouble};

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
pub struct Start {
    /// Everything before it is in Kafka, or will be copied.
    pub confirmed: EndLsn,
    /// While rows are copied that were there before `confirmed`: up to which `seq` they are in Kafka.
    pub copied: Option<i64>,
    /// In which form the stream has values.
    pub form: StreamForm,
    /// The server's past. Nothing committed at or beyond its end can be in Kafka.
    pub lineage: Lineage,
    /// When the server was started, in milliseconds since 1970.
    pub server_started: i64,
    /// Where rows go.
    pub mappings: Mappings,
    /// What the checkpoint knows of Kafka.
    pub partitions: Partitions,
    /// Whose rows are delivered.
    pub table: OutboxTable,
    /// What ended the session before.
    pub refusal: Option<Refusal>,
}

/// Events of this session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
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
    mapper: Mapper,
    style: RecordStyle,
    dead_letter_style: DeadLetterStyle,
    dead_letters: Underway,
    /// Who waits for the outcome of the dead letter that is being sent again.
    replaying: Option<oneshot::Sender<Outcome>>,
    max_events: usize,
    max_bytes: usize,
    start: EndLsn,
    lineage: Lineage,
    /// While rows are copied.
    cursor: Option<Cursor>,
    /// By relation OID; `None` for a table that is not the outbox. One that cannot be read is no trouble until a row of it
    /// is to be delivered.
    layouts: HashMap<u32, Option<Result<Rc<Layout>, RowError>>>,
    /// Types that were announced, by OID.
    types: HashMap<u32, ColumnType>,
    form: StreamForm,
    /// What is being found out about topics.
    inquiries: Inquiries,
    /// The last commit that was begun.
    last_commit: CommitLsn,
    transaction: Option<Transaction>,
    ledger: Ledger,
    partitions: Partitions,
    producers: Producers,
    acks: Arc<AckQueue>,
    taken: Vec<Ack>,
    /// Taken, and not looked at because of a failure before them.
    unsettled: Vec<Ack>,
    refusals: RefusalWatch,
    lost: Option<LostRecords>,
    /// Why a broker cannot be used, until another answers.
    distrusted: Option<String>,
    /// When the log last said so.
    distrust_logged: Option<Instant>,
    watchdog: Watchdog,
    /// Acknowledged since the watchdog last looked.
    settled: usize,
    /// Whether Kafka answers; `None` until it was asked.
    kafka: Option<bool>,
    counts: Counts,
    counters: TopicCounters,
    /// The time of this turn, in Kafka's milliseconds.
    clock: i64,
    jobs: Jobs,
    /// A row went elsewhere than its mapping said when it was first read. Until that is in Kafka nothing follows: a later
    /// row in the partition it would have gone to would make a replay take it for delivered.
    settles_first: bool,
    in_flight: InFlight,
    waiting: WaitingRows,
    /// The partition that the next row waits for, where it cannot be set aside.
    held: Option<Held>,
    examinations: Examinations,
    recent: RecentRows,
    strays: Strays,
    status: Status,
    metrics: Metrics,
}

impl Delivery {
    /// Delivery for one session.
    pub fn new(
        config: &Config,
        start: Start,
        producers: Producers,
        acks: Arc<AckQueue>,
        jobs: Jobs,
        status: Status,
        metrics: Metrics,
    ) -> Result<Delivery, Trouble> {
        let mapper = Mapper::new(start.mappings)
            .map_err(|error| Trouble::new(Reason::PoisonRow, error.to_string()))?;
        let delivery = Delivery {
            table: start.table,
            sink: config.sink.clone(),
            mapper,
            style: RecordStyle { source: config.source.event_source() },
            dead_letter_style: DeadLetterStyle::new(config),
            dead_letters: Underway::new(metrics.clone(), status.clone()),
            replaying: None,
            max_events: config.delivery.max_in_flight_events,
            max_bytes: config.delivery.max_in_flight_bytes,
            start: start.confirmed,
            lineage: start.lineage,
            cursor: start.copied.map(Cursor::new),
            layouts: HashMap::new(),
            types: HashMap::new(),
            form: start.form,
            inquiries: Inquiries::default(),
            last_commit: CommitLsn::default(),
            transaction: None,
            ledger: Ledger::new(start.confirmed),
            partitions: start.partitions,
            producers,
            acks,
            taken: Vec::new(),
            unsettled: Vec::new(),
            refusals: RefusalWatch::new(start.refusal),
            lost: None,
            distrusted: None,
            distrust_logged: None,
            watchdog: Watchdog::default(),
            settled: 0,
            kafka: None,
            counts: Counts::default(),
            counters: TopicCounters::default(),
            clock: kafka_timestamp(PgTime::now()),
            jobs,
            settles_first: false,
            in_flight: InFlight::default(),
            waiting: WaitingRows::default(),
            held: None,
            examinations: Examinations::default(),
            recent: RecentRows::default(),
            strays: Strays::default(),
            status,
            metrics,
        };
        for topic in delivery.mapper.topics() {
            delivery.jobs.inspect(topic, delivery.partitions.to_inspect(topic), true);
        }
        delivery.say_whether_kafka_is_whole();
        Ok(delivery)
    }

    fn say_whether_kafka_is_whole(&self) {
        if self.partitions.all_inspected() {
            self.status.kafka_is_whole();
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
    pub fn mapper(&mut self) -> &mut Mapper {
        self.mapper.confirm(self.ledger.confirmed());
        &mut self.mapper
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
        self.kafka
    }

    /// Events of this session.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Looks whether something has to be done that no message brings about; called at every tick. `stored` is the
    /// revision of the mapping in the committed checkpoint.
    pub fn watch(&mut self, stored: u64) -> Result<(), Trouble> {
        self.watch_topics();
        self.try_refused_again();
        if self.ledger.confirmed() >= self.lineage.end() {
            self.spread_over_grown()?;
        }
        let limit = self.mapper.smallest_limit().filter(|_| stored >= self.mapper.revision());
        if let Some(limit) = limit.filter(|limit| !self.producers.keep_to(*limit)) {
            let what = format!("a topic takes no more than {limit} bytes now");
            return Err(Trouble::new(Reason::TopicChanged, what));
        }
        self.judge_strays()?;
        self.watch_silent_partitions()?;
        self.watch_producers()
    }

    /// Sends nothing more; with `all`, nothing that was sent is sent again either.
    pub fn give_up(&self, all: bool) {
        if all { self.producers.give_up_all() } else { self.producers.give_up_unsent() }
    }

    /// What ended the session, if Kafka lost records.
    pub fn lost(&mut self) -> Option<LostRecords> {
        self.lost.take()
    }

    /// The producers, to be ended.
    pub fn into_producers(self) -> Producers {
        self.producers
    }
}

fn violation(what: String) -> Trouble {
    Trouble::new(Reason::ProtocolViolation, what)
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

impl From<Inconsistent> for Trouble {
    fn from(error: Inconsistent) -> Self {
        violation(error.to_string())
    }
}
