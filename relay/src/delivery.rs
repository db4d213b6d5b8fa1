//! The path of every event: from stream messages to Kafka records and ledger entries.
//!
//! Nothing here blocks the event loop. If a row cannot be sent yet, because its topic is unknown or its partition is
//! being scanned, [`Delivery::on_message`] returns [`Flow::Blocked`]. [`StreamInput`] keeps the message and offers it again.
//!
//! A row passes the stages once, in this order. `ingest` decodes messages and gives a row its origin. `dispatch` decides
//! where the row goes, and makes its record. `in_flight` admits the row to its partition and sends it, perhaps after a
//! wait in its lane (`lanes`). `acks` takes the acknowledgement to the ledger (`source_progress`) and the partition, or
//! `refusals` takes Kafka's refusal. [`Delivery`] holds the stages, and calls one after the other.
//!
//! `topic_discovery` learns of topics, `query_results` passes on what queries to Kafka return, and `kafka_health` knows
//! whether Kafka responds; `checkpoint_schedule` says what to store, and when; `replays` sends dead letters again.
//! `silent_partitions` and `another_outbox` detect external faults.

mod acks;
mod another_outbox;
mod broker;
mod checkpoint_schedule;
mod dead_letter_log;
mod dispatch;
mod in_flight;
mod ingest;
mod kafka_health;
mod lanes;
mod lost_records;
#[cfg(test)]
mod model;
mod query_results;
mod refill;
mod refusals;
mod replays;
mod silent_partitions;
mod source_progress;
mod stream_input;
mod topic_counters;
mod topic_discovery;

use std::time::Instant;

use outbox::Position;
use pg_replication::EndLsn;
use pg_replication::pgoutput::{Begin, Column, Insert, Message};
use prometheus::IntCounter;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use self::acks::Acks;
use self::another_outbox::Strays;
pub use self::broker::{Broker, KafkaBroker, ProducerReports};
pub use self::checkpoint_schedule::CheckpointSchedule;
use self::dispatch::{Dispatch, Dispatched};
pub use self::in_flight::Counters;
use self::in_flight::InFlight;
use self::ingest::{Ingest, Inserted, Origin};
pub use self::ingest::{OutboxTable, StreamForm, memory_limit};
use self::kafka_health::KafkaHealth;
pub use self::lanes::Load;
pub use self::lost_records::LostRecords;
use self::refill::Refill;
pub use self::refusals::Refusal;
use self::refusals::RefusalWatch;
use self::replays::Replays;
use self::silent_partitions::Diagnoses;
use self::source_progress::SourceProgress;
pub use self::stream_input::{BURST, InputStop, StreamInput};
use self::topic_discovery::TopicDiscovery;
use crate::config::Config;
use crate::error::{ErrorKind, RefillCause, RelayError};
use crate::event::row::Layout;
use crate::failpoint::{self, Boundary};
use crate::kafka::producers::largest_batch;
use crate::kafka::query::Verification;
use crate::postgres::backfill::StoredRow;
use crate::postgres::checkpoint::RefillScope;
use crate::progress::ledger::{Inconsistent, Ledger};
use crate::progress::lineage::Lineage;
use crate::progress::snapshot_cursor::Seq;
use crate::replay::ReplayRequest;
use crate::routing::mapping::{Revision, RoutingHistory, RoutingTable};
use crate::status::metrics::Metrics;
use crate::status::{KafkaAnswers, Status};
use crate::topics::kafka_time::KafkaTime;
use crate::topics::registry::{NoPartition, TopicRegistry};

/// Whether the next message can be processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The message is processed.
    Next,
    /// The message is not processed: offer it again when something has changed.
    Blocked,
}

/// What a session starts with.
pub struct InitialState {
    /// Every row before this position is in Kafka, or belongs to the initial snapshot.
    pub confirmed: EndLsn,
    /// During the initial snapshot: all its rows up to this `seq` are in Kafka.
    pub snapshot_cursor: Option<Seq>,
    /// The refill, while one is in progress.
    pub refill: Option<RefillScope>,
    /// The format of values in the stream.
    pub form: StreamForm,
    /// The server's timelines. Nothing committed at or after their end can be in Kafka yet.
    pub lineage: Lineage,
    pub server_started: KafkaTime,
    /// How rows are routed, now and by earlier versions.
    pub mappings: RoutingHistory,
    /// The topics and partitions as the checkpoint knows them.
    pub topics: TopicRegistry,
    pub table: OutboxTable,
    /// The refusal that ended the previous session, if one did.
    pub refusal: Option<Refusal>,
}

pub struct Delivery<B = KafkaBroker> {
    ingest: Ingest,
    dispatch: Dispatch,
    refill: Option<Refill>,
    in_flight: InFlight<B>,
    acks: Acks,
    refusals: RefusalWatch,
    replays: Replays,
    discovery: TopicDiscovery,
    health: KafkaHealth,
    strays: Strays,
    diagnoses: Diagnoses,
    status: Status,
    metrics: Metrics,
}

impl<B: Broker> Delivery<B> {
    pub fn new(
        config: &Config,
        start: InitialState,
        broker: B,
        status: Status,
        metrics: Metrics,
    ) -> Result<Self, RelayError> {
        let largest_batch = largest_batch(start.mappings.smallest_limit());
        let mut topics = start.topics;
        let routing = RoutingTable::new(&start.mappings, &mut topics)
            .map_err(|error| RelayError::new(ErrorKind::PoisonRow, error.to_string()))?;
        let timestamps_refused = start.refusal.as_ref().and_then(Refusal::topic_of_timestamp);
        if let Some(topic) = timestamps_refused.and_then(|topic| topics.find(topic)) {
            topics.topic_mut(topic).timestamps_refused = true;
        }
        let progress = SourceProgress::new(start.confirmed, start.lineage, start.snapshot_cursor);
        let budget =
            Load { events: config.delivery.max_in_flight_events, bytes: config.delivery.max_in_flight_bytes };
        let source = config.source.event_source();
        let delivery = Delivery {
            ingest: Ingest::new(start.table, start.form),
            dispatch: Dispatch::new(routing, config),
            refill: start.refill.map(Refill::new),
            in_flight: InFlight::new(broker, topics, progress, source, budget, metrics.clone()),
            acks: Acks::new(status.clone(), metrics.clone()),
            refusals: RefusalWatch::new(start.refusal),
            replays: Replays::default(),
            discovery: TopicDiscovery::new(config.sink.max_message_bytes, largest_batch),
            health: KafkaHealth::default(),
            strays: Strays::default(),
            diagnoses: Diagnoses::default(),
            status,
            metrics,
        };
        for topic in delivery.dispatch.routing.topics() {
            delivery.in_flight.verify(topic, Verification::AtStart);
        }
        delivery.update_integrity();
        Ok(delivery)
    }

    fn update_integrity(&self) {
        if self.in_flight.topics.all_verified() {
            self.status.on_kafka_verified();
        }
    }

    /// Processes one pgoutput message. A row that cannot be delivered becomes a dead letter. If dead letters are
    /// disabled, the result is [`ErrorKind::PoisonRow`]: no state has changed, and delivery of earlier rows continues.
    /// `committed_revision` is the routing revision in the committed checkpoint.
    pub fn on_message(&mut self, data: &[u8], committed_revision: Revision) -> Result<Flow, RelayError> {
        match Message::parse(data).map_err(|error| violation(error.to_string()))? {
            Message::Begin(begin) => return self.on_begin(&begin),
            Message::Insert(insert) => return self.on_insert(&insert, committed_revision),
            Message::Commit(commit) => self.on_commit(commit.end_lsn)?,
            Message::Relation(relation) => {
                self.ingest.on_relation(&relation, self.dispatch.routing.by_field());
            }
            // The publication publishes inserts only. Anything else it may publish later is not an event.
            Message::Update(_) | Message::Delete(_) | Message::Truncate(_) => {}
            Message::Type(announced) => self.ingest.on_type(&announced),
            Message::Origin(_) => {}
            // Needs no ledger entry: the following keepalive, or the surrounding Commit, has one.
            Message::Logical(message) => self.status.on_stream_message(message.prefix, message.content),
        }
        Ok(Flow::Next)
    }

    /// A keepalive: the server has sent everything before `end`.
    pub fn on_keepalive(&mut self, end: EndLsn) {
        self.strays.on_passed(end);
        self.in_flight.progress.ledger.keepalive(end);
    }

    fn on_begin(&mut self, begin: &Begin) -> Result<Flow, RelayError> {
        // Rows before the horizon may have been sent, so they are routed to the partitions they would have gone to
        // then.
        if !self.in_flight.progress.lineage.horizon().covers(begin.final_lsn) {
            self.apply_growth()?;
            if self.discovery.has_grown() {
                return Ok(Flow::Blocked);
            }
        }
        self.in_flight.progress.ledger.begin(begin.final_lsn, begin.commit_time)?;
        self.ingest.on_begin(begin, &self.in_flight.progress);
        Ok(Flow::Next)
    }

    fn on_commit(&mut self, end: EndLsn) -> Result<(), RelayError> {
        failpoint::pass(Boundary::AllSent);
        self.ingest.on_commit();
        self.strays.on_passed(end);
        let completed = self.in_flight.progress.ledger.commit(end)?;
        self.in_flight.on_completed(completed);
        Ok(())
    }

    fn on_insert(&mut self, insert: &Insert<'_>, committed_revision: Revision) -> Result<Flow, RelayError> {
        let (layout, origin) = match self.ingest.on_insert(insert, &self.in_flight.progress)? {
            Inserted::Elsewhere => return Ok(Flow::Next),
            Inserted::Delivered => {
                self.in_flight.counts.received += 1;
                self.in_flight.counts.suppressed += 1;
                return Ok(Flow::Next);
            }
            Inserted::Row(layout, origin) => (layout, origin),
        };
        let flow = self.deliver(&layout, insert.tuple.columns(), origin, committed_revision)?;
        if flow == Flow::Next {
            self.ingest.on_row_processed();
        }
        Ok(flow)
    }

    /// Processes a row of the initial snapshot or of a refill. An earlier process may have sent any of them.
    pub fn on_snapshot_row(
        &mut self,
        layout: &Layout,
        row: &StoredRow,
        committed_revision: Revision,
    ) -> Result<Flow, RelayError> {
        let origin = Origin::in_snapshot(row.seq()?, self.refill_cause(), &self.in_flight.progress);
        self.deliver(layout, row.values(), origin, committed_revision)
    }

    fn deliver<'a>(
        &mut self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
        committed_revision: Revision,
    ) -> Result<Flow, RelayError> {
        let Delivery { dispatch, in_flight, discovery, refusals, refill, .. } = self;
        let delivered = match refill {
            None => None,
            Some(refill) => match refill.delivered(in_flight) {
                Some(delivered) => Some(delivered),
                None => return Ok(Flow::Blocked),
            },
        };
        let mut stages = dispatch::Stages { in_flight, discovery, refusals, delivered, committed_revision };
        match dispatch.deliver(layout, values, origin, &mut stages)? {
            Dispatched::Blocked => Ok(Flow::Blocked),
            Dispatched::Done { fingerprint } => {
                self.strays.on_row(origin.position, fingerprint);
                self.in_flight.counts.received += 1;
                Ok(Flow::Next)
            }
        }
    }

    /// Replays a dead letter with the current routing. Returns the request if it must be offered again later.
    pub fn on_replay_request(
        &mut self,
        request: ReplayRequest,
        committed_revision: Revision,
    ) -> Result<Option<ReplayRequest>, RelayError> {
        let Delivery { replays, dispatch, discovery, in_flight, .. } = self;
        replays.on_request(request, committed_revision, dispatch, discovery, in_flight)
    }

    /// Processes the acknowledgements that have arrived. A failed delivery ends the session.
    pub fn process_acks(&mut self, now: Instant) -> Result<(), RelayError> {
        let (reports, outcomes) = self.acks.take_reports(&self.in_flight.broker);
        self.health.on_reports(&reports, outcomes);
        self.in_flight.on_turn(now);
        self.acks.process(now, &mut self.in_flight, &mut self.replays, &mut self.refusals)?;
        if let Some(why) = reports.auth_error {
            self.health.on_auth_error(why, now, &self.in_flight.broker);
        }
        if reports.failed {
            self.metrics.count_produce_error(RDKafkaErrorCode::Fatal);
            return Err(RelayError::new(ErrorKind::DeliveryFailed, "a producer has failed permanently"));
        }
        Ok(())
    }

    /// Called at every tick for the work that no message triggers.
    pub fn on_tick(&mut self, committed_revision: Revision, now: Instant) -> Result<(), RelayError> {
        self.discovery.on_tick(now, &self.dispatch.routing, &self.in_flight);
        self.refusals.on_tick(&mut self.dispatch.routing, &self.in_flight.topics);
        if self.ledger().acknowledged() >= self.in_flight.progress.lineage.horizon() {
            self.apply_growth()?;
        }
        self.discovery.check_batches(&self.dispatch.routing, committed_revision)?;
        self.check_strays()?;
        self.in_flight.lanes.on_turn(now);
        let silent = self.diagnoses.on_tick(now, self.dispatch.blocked_on(), &self.in_flight)?;
        self.status.set_silent_partitions(silent);
        self.health.on_tick(now, self.in_flight.lanes.sent.events, &self.in_flight.broker)
    }

    fn apply_growth(&mut self) -> Result<(), RelayError> {
        let InFlight { progress, topics, .. } = &self.in_flight;
        self.discovery.apply_growth(progress, &mut self.dispatch.routing, topics)
    }

    fn check_strays(&mut self) -> Result<(), RelayError> {
        let InFlight { topics, source, .. } = &self.in_flight;
        let duplicates = self.strays.check(&self.status, topics, source)?;
        self.in_flight.count_duplicates(duplicates);
        Ok(())
    }

    /// Why the missing rows of a refill are being delivered, while they are.
    pub fn refill_cause(&self) -> Option<RefillCause> {
        self.refill.as_ref().map(Refill::cause)
    }

    /// Counts the rows from before the slot of this session.
    pub fn snapshot_rows(&self) -> IntCounter {
        acks::snapshot_rows(&self.metrics, self.refill_cause())
    }

    /// All rows from before the slot are in Kafka: the stream can be read.
    pub fn finish_snapshot(&mut self) {
        self.refill = None;
        self.in_flight.progress.finish_snapshot();
    }

    /// Adds to the error the row that must be delivered before the error counts as resolved: the row that was blocked
    /// when the session ended, or the oldest one that Kafka has not acknowledged.
    pub fn locate_error(&self, error: RelayError, blocked: bool) -> RelayError {
        if error.at.is_some() || !(blocked || error.kind.side() == "kafka") {
            return error;
        }
        let blocked_in = blocked.then(|| self.ingest.last_commit());
        RelayError { at: self.in_flight.progress.first_unfinished(blocked_in), ..error }
    }

    /// Whether an earlier session's error is resolved: the row at `at` is in Kafka. If no row is known, or the server
    /// no longer has it, one acknowledgement is enough, or that everything is sent and Kafka responds.
    pub fn is_past(&self, at: Option<Position>) -> bool {
        let progress = &self.in_flight.progress;
        match at.filter(|position| progress.lineage.is_on_line(*position)) {
            Some(position) => progress.has_delivered(position),
            None => self.in_flight.counts.acknowledged > 0 || self.is_caught_up(),
        }
    }

    fn is_caught_up(&self) -> bool {
        let kafka_is_well =
            self.health.answers() == KafkaAnswers::Yes && self.in_flight.topics.all_verified();
        kafka_is_well && self.in_flight.progress.is_caught_up()
    }
}

/// What the event loop asks.
impl<B: Broker> Delivery<B> {
    /// Whether the budget allows another message. A single record may always be in flight, however large.
    pub fn has_room(&self) -> bool {
        self.in_flight.has_room()
    }

    /// Whether a transaction has been read only in part.
    pub fn in_transaction(&self) -> bool {
        self.ingest.in_transaction()
    }

    /// Whether a row waits for a topic that does not exist or is not known yet.
    pub fn waits_for_topic(&self) -> bool {
        self.discovery.is_waiting()
    }

    /// Whether a row that must not wait in its lane waits for its partition.
    pub fn waits_for_partition(&self) -> bool {
        self.dispatch.blocked_on().is_some()
    }

    pub fn ledger(&self) -> &Ledger {
        &self.in_flight.progress.ledger
    }

    /// Events and bytes that Kafka has not acknowledged: sent, or waiting for their partition.
    pub fn load(&self) -> Load {
        self.in_flight.lanes.load()
    }

    /// Whether Kafka responds.
    pub fn kafka_answers(&self) -> KafkaAnswers {
        self.health.answers()
    }

    /// Event counts of this session.
    pub fn counts(&self) -> Counters {
        self.in_flight.counts
    }

    /// The refusal that ended this session, for the next one.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.take()
    }

    /// The records that Kafka lost, if that ended the session.
    pub fn take_lost_records(&mut self) -> Option<LostRecords> {
        self.acks.take_lost_records()
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
