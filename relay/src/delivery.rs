//! From messages of the stream to records in Kafka and entries in the ledger: the path every event takes.
//!
//! Nothing here waits. A row that cannot go on yet (its topic is unknown, its partition is being searched) makes
//! [`Delivery::message`] answer [`Flow::Blocked`]; the caller keeps the message and offers it again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use outbox::Position;
use pg_replication::pgoutput::{Insert, Message, Relation};
use pg_replication::{CommitLsn, EndLsn, PgTime};
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;

use crate::config::Config;
use crate::high_mark::{Admission, Searched};
use crate::jobs::{Answer, Jobs};
use crate::ledger::{Completed, Inconsistent, Ledger};
use crate::metrics::Metrics;
use crate::partitions::{PartitionId, Partitions, TopicId};
use crate::record::{RecordStyle, kafka_timestamp};
use crate::routing::Router;
use crate::row::{Layout, OutboxRow, RowError};
use crate::search::SearchError;
use crate::sink::{Ack, AckQueue, Outgoing, Producers, Tag};
use crate::trouble::{Reason, Trouble};
use crate::watchdog::{Suspicion, Watchdog};

/// Transactions read and not confirmed at most. An entry is small, but one partition that stands still must not
/// let the others fill the memory with what is behind it.
const MAX_UNCONFIRMED_TRANSACTIONS: usize = 65_536;

/// Whether the stream can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The message is dealt with.
    Next,
    /// Offer it again when something has changed.
    Blocked,
}

/// What a session starts with.
pub struct Start {
    /// Everything before it is in Kafka.
    pub confirmed: EndLsn,
    /// Nothing committed at or beyond it can be in Kafka.
    pub horizon: EndLsn,
    /// Timeline of the stream.
    pub timeline: u32,
    /// What the checkpoint knows of Kafka.
    pub partitions: Partitions,
}

struct Transaction {
    commit: CommitLsn,
    commit_time: PgTime,
    /// Inserts of the outbox table seen so far: the index of the next row's position.
    index: u64,
    /// It lies before the confirmed LSN: Kafka has it.
    delivered: bool,
}

/// See the module's text.
pub struct Delivery {
    table: crate::config::TableName,
    route_by: String,
    router: Router,
    style: RecordStyle,
    max_events: usize,
    max_bytes: usize,
    start: EndLsn,
    horizon: EndLsn,
    timeline: u32,
    /// By relation OID; `None` for a table that is not the outbox.
    layouts: HashMap<u32, Option<Layout>>,
    /// Value of the routing column -> topic name.
    routes: HashMap<String, String>,
    /// Topics being looked for.
    wanted: Vec<String>,
    transaction: Option<Transaction>,
    ledger: Ledger,
    partitions: Partitions,
    producers: Producers,
    acks: Arc<AckQueue>,
    taken: Vec<Ack>,
    watchdog: Watchdog,
    /// Acknowledged since the watchdog last looked.
    settled: usize,
    jobs: Jobs,
    in_flight_events: usize,
    in_flight_bytes: usize,
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
        metrics: Metrics,
    ) -> Result<Delivery, Trouble> {
        let router = Router::new(&config.routing)
            .map_err(|error| Trouble::new(Reason::PoisonRow, error.to_string()))?;
        Ok(Delivery {
            table: config.source.table.clone(),
            route_by: config.routing.by_field.clone(),
            router,
            style: RecordStyle {
                source: config.source.event_source(),
                max_bytes: config.sink.max_message_bytes,
            },
            max_events: config.delivery.max_in_flight_events,
            max_bytes: config.delivery.max_in_flight_bytes,
            start: start.confirmed,
            horizon: start.horizon,
            timeline: start.timeline,
            layouts: HashMap::new(),
            routes: HashMap::new(),
            wanted: Vec::new(),
            transaction: None,
            ledger: Ledger::new(start.confirmed),
            partitions: start.partitions,
            producers,
            acks,
            taken: Vec::new(),
            watchdog: Watchdog::new(Instant::now()),
            settled: 0,
            jobs,
            in_flight_events: 0,
            in_flight_bytes: 0,
            metrics,
        })
    }

    /// Whether the budget lets another message in. One record may always be under way, however large.
    pub fn has_room(&self) -> bool {
        let within = self.in_flight_events < self.max_events && self.in_flight_bytes < self.max_bytes;
        (within || self.in_flight_events == 0) && self.ledger.len() < MAX_UNCONFIRMED_TRANSACTIONS
    }

    /// Whether a transaction has been read in part.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether a row waits for a topic that somebody has to make.
    pub fn waits_for_topic(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Topics and partitions.
    pub fn partitions(&mut self) -> &mut Partitions {
        &mut self.partitions
    }

    /// Events and bytes sent and not acknowledged.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.in_flight_events, self.in_flight_bytes)
    }

    /// Deals with one pgoutput message. A row that can never be delivered is [`Reason::PoisonRow`]; nothing has
    /// changed then, and what came before it goes on.
    /// `stored_topics` is how many topics the committed checkpoint knows.
    pub fn message(&mut self, data: &[u8], stored_topics: usize) -> Result<Flow, Trouble> {
        match Message::parse(data).map_err(|error| violation(error.to_string()))? {
            Message::Begin(begin) => self.begin(begin.final_lsn, begin.commit_time)?,
            Message::Insert(insert) => return self.insert(&insert, stored_topics),
            Message::Commit(commit) => self.commit(commit.end_lsn)?,
            Message::Relation(relation) => self.relation(&relation)?,
            // The publication has inserts only; what else it may get some day is not an event.
            Message::Update(_) | Message::Delete(_) | Message::Truncate(_) => {}
            Message::Origin(_) | Message::Type(_) | Message::Logical(_) => {}
        }
        Ok(Flow::Next)
    }

    /// A keepalive: everything before `end` has been sent.
    pub fn keepalive(&mut self, end: EndLsn) {
        self.ledger.keepalive(end);
    }

    /// Takes in what Kafka acknowledged. A failed delivery ends the session.
    pub fn settle_acks(&mut self) -> Result<(), Trouble> {
        let mut taken = std::mem::take(&mut self.taken);
        self.acks.take(&mut taken);
        self.settled += taken.len();
        let settled = taken.drain(..).try_for_each(|ack| self.settle(ack));
        self.taken = taken;
        settled?;
        if self.acks.producer_failed() {
            return Err(Trouble::new(Reason::DeliveryFailed, "a producer has failed for good"));
        }
        Ok(())
    }

    /// Looks whether the producers are stuck; called at every tick.
    pub fn watch(&mut self) -> Result<(), Trouble> {
        let progress = std::mem::take(&mut self.settled) > 0 || self.in_flight_events == 0;
        match self.watchdog.tick(Instant::now(), progress) {
            Suspicion::None => Ok(()),
            Suspicion::Ask => {
                self.jobs.is_reachable();
                Ok(())
            }
            Suspicion::Stuck => {
                let what = "Kafka can be reached, but acknowledges nothing of what was sent";
                Err(Trouble::new(Reason::DeliveryFailed, what))
            }
        }
    }

    /// Takes in the answer to a question.
    pub fn answer(&mut self, answer: Answer) -> Result<(), Trouble> {
        match answer {
            Answer::Topic { name, found } => {
                self.wanted.retain(|wanted| *wanted != name);
                self.partitions.add(&name, found.partitions, &found.ends);
            }
            Answer::Searched { partition, found } => {
                if let Some(mark) = self.partitions.mark(partition) {
                    mark.searched(found);
                }
            }
            Answer::HoleRead { partition, found } => self.hole_read(partition, found),
            Answer::Reachable(there) => self.watchdog.looked(there),
            Answer::Failed(SearchError::Cancelled) => {}
            Answer::Failed(error @ SearchError::EndsEarly { .. }) => {
                return Err(Trouble::new(Reason::KafkaLostRecords, error.to_string()));
            }
            Answer::Failed(error @ SearchError::Refused(_)) => {
                return Err(Trouble::new(Reason::DeliveryFailed, error.to_string()));
            }
        }
        Ok(())
    }

    /// Ends the producers; blocks.
    pub fn into_producers(self) -> Producers {
        self.producers
    }

    fn begin(&mut self, commit: CommitLsn, commit_time: PgTime) -> Result<(), Trouble> {
        self.ledger.begin(commit, commit_time)?;
        let delivered = self.start.covers(commit);
        self.transaction = Some(Transaction { commit, commit_time, index: 0, delivered });
        Ok(())
    }

    fn commit(&mut self, end: EndLsn) -> Result<(), Trouble> {
        self.transaction = None;
        let completed = self.ledger.commit(end)?;
        self.observe(completed);
        Ok(())
    }

    fn relation(&mut self, relation: &Relation<'_>) -> Result<(), Trouble> {
        let is_outbox = relation.namespace == self.table.schema && relation.name == self.table.table;
        let columns = relation.columns().map(|column| (column.name, column.type_oid));
        let layout = is_outbox.then(|| Layout::new(columns, &self.route_by)).transpose();
        let layout = layout.map_err(|error| Trouble::new(Reason::TableUnsuitable, error.to_string()))?;
        self.layouts.insert(relation.oid, layout);
        Ok(())
    }

    fn insert(&mut self, insert: &Insert<'_>, stored_topics: usize) -> Result<Flow, Trouble> {
        let transaction = self.transaction.as_ref().ok_or(Inconsistent::NoTransaction)?;
        let layout = match self.layouts.get(&insert.relation) {
            Some(Some(layout)) => layout,
            Some(None) => return Ok(Flow::Next),
            None => return Err(violation(format!("a row of unannounced relation {}", insert.relation))),
        };
        if transaction.delivered {
            return Ok(Flow::Next);
        }
        let position = Position {
            timeline: self.timeline,
            commit_lsn: transaction.commit.lsn().as_u64(),
            index: transaction.index,
        };
        let (commit, commit_time) = (transaction.commit, transaction.commit_time);
        let row = layout.read(insert.tuple.columns()).map_err(|error| unreadable(position, &error))?;
        let content_type = layout.content_type();
        let Some(topic) = self.topic(&row, position, stored_topics)? else { return Ok(Flow::Blocked) };
        let key = row.key.unwrap_or_else(|| row.id.as_bytes());
        let partition = self.partitions.for_key(topic, key);
        let time = row.occurred_at.unwrap_or(commit_time);
        let headers = self.style.headers(&row, position, time, content_type);
        let headers = headers.map_err(|error| poison(position, &row, error))?;
        let Some((number, mark)) = self.partitions.number_and_mark(partition) else {
            return Err(violation(format!("{topic:?} has no partition {partition:?}")));
        };
        // Everything that can be wrong with the row was found before this: what is admitted is sent.
        match mark.admit(position, self.horizon.covers(commit)) {
            Admission::Send => self.send(&row, headers, time, topic, number, partition)?,
            Admission::AlreadyThere => self.metrics.duplicates_suppressed_total.inc(),
            Admission::Search { from } => {
                self.jobs.search(partition, self.partitions.topic_name(topic), number, from);
                return Ok(Flow::Blocked);
            }
            Admission::Wait => return Ok(Flow::Blocked),
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.index += 1;
        }
        Ok(Flow::Next)
    }

    /// The topic of a row, once Kafka has it and the checkpoint knows it.
    fn topic(
        &mut self,
        row: &OutboxRow<'_>,
        position: Position,
        stored_topics: usize,
    ) -> Result<Option<TopicId>, Trouble> {
        let value = row.route_by.ok_or_else(|| poison(position, row, "its routing column is NULL"))?;
        let name = match self.routes.get(value) {
            Some(name) => name,
            None => {
                let name = self.router.topic(value).map_err(|error| poison(position, row, error))?;
                self.routes.entry(value.to_owned()).or_insert(name)
            }
        };
        if let Some(topic) = self.partitions.topic(name) {
            return Ok((topic.index() < stored_topics).then_some(topic));
        }
        if !self.wanted.contains(name) {
            self.wanted.push(name.clone());
            self.jobs.find_topic(name);
        }
        Ok(None)
    }

    fn send(
        &mut self,
        row: &OutboxRow<'_>,
        headers: OwnedHeaders,
        time: PgTime,
        topic: TopicId,
        number: i32,
        partition: PartitionId,
    ) -> Result<(), Trouble> {
        let record = Outgoing {
            topic: self.partitions.topic_name(topic),
            partition: number,
            key: row.key,
            value: row.payload.as_deref(),
            headers,
            timestamp: kafka_timestamp(time),
        };
        let bytes = record.bytes();
        let entry = self.ledger.row()?;
        self.producers.send(record, Tag::new(entry, partition)).map_err(|error| not_accepted(row, &error))?;
        self.in_flight_events += 1;
        self.in_flight_bytes += bytes;
        Ok(())
    }

    fn settle(&mut self, ack: Ack) -> Result<(), Trouble> {
        self.in_flight_events = self.in_flight_events.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(ack.bytes);
        let (entry, partition) = (ack.tag.entry(), ack.tag.partition());
        let Some((topic, number)) = self.partitions.place(partition) else { return Ok(()) };
        let offset = match ack.outcome {
            Ok(offset) => offset,
            Err(code) => {
                let reason = format!("{code:?}");
                self.metrics.produce_errors_total.with_label_values(&[&reason]).inc();
                let what = format!(
                    "Kafka refused a record for {}/{number}: {reason}",
                    self.partitions.topic_name(topic)
                );
                return Err(Trouble::new(Reason::DeliveryFailed, what));
            }
        };
        let completed = self.ledger.acknowledge(entry)?;
        self.observe(completed);
        let name = self.partitions.topic_name(topic);
        self.metrics.events_total.with_label_values(&[name]).inc();
        self.metrics.bytes_total.inc_by(ack.bytes as u64);
        let hole = self.partitions.mark(partition).and_then(|mark| mark.acknowledged(offset));
        if let Some(hole) = hole {
            self.jobs.read_hole(partition, self.partitions.topic_name(topic), number, hole);
        }
        if let Some(offset) = offset {
            self.partitions.acknowledged(partition, entry, offset);
        }
        Ok(())
    }

    fn hole_read(&mut self, partition: PartitionId, found: Searched) {
        let twice = self.partitions.mark(partition).map_or(0, |mark| mark.hole_read(found));
        if twice > 0 {
            self.metrics.duplicates_detected_total.inc_by(twice);
            tracing::warn!(
                events = twice,
                "events are in a partition twice: another relay process was still sending"
            );
        }
    }

    fn observe(&self, completed: Option<Completed>) {
        let Some(Completed { commit_time }) = completed else { return };
        let micros = PgTime::now().as_micros().saturating_sub(commit_time.as_micros());
        self.metrics.transactions_total.inc();
        // Negative when the database's clock is ahead of this machine's.
        self.metrics.commit_to_ack_seconds.observe(micros.max(0) as f64 / 1e6);
    }
}

fn violation(what: String) -> Trouble {
    Trouble::new(Reason::ProtocolViolation, what)
}

fn unreadable(position: Position, error: &RowError) -> Trouble {
    Trouble::new(Reason::PoisonRow, format!("the row at {position}: {error}"))
}

fn poison(position: Position, row: &OutboxRow<'_>, error: impl std::fmt::Display) -> Trouble {
    let id = String::from_utf8_lossy(row.id.as_bytes()).into_owned();
    Trouble::new(Reason::PoisonRow, format!("event {id} at {position}: {error}"))
}

fn not_accepted(row: &OutboxRow<'_>, error: &KafkaError) -> Trouble {
    let id = String::from_utf8_lossy(row.id.as_bytes()).into_owned();
    Trouble::new(Reason::DeliveryFailed, format!("the producer did not take event {id}: {error}"))
}

impl From<Inconsistent> for Trouble {
    fn from(error: Inconsistent) -> Self {
        violation(error.to_string())
    }
}
