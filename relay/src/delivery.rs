//! From messages of the stream to records in Kafka and entries in the ledger: the path every event takes.
//!
//! Nothing here waits. A row that cannot go on yet (its topic is unknown, its partition is being searched) makes
//! [`Delivery::message`] answer [`Flow::Blocked`]; the caller keeps the message and offers it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::pgoutput::{Column, Insert, Message, Relation};
use pg_replication::{CommitLsn, EndLsn, Lsn, PgTime};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::dead_letter::replay::{Candidate, Outcome};
use crate::dead_letter::{Arrival, DeadLetterStyle, Poison, PoisonKind, Underway};
use crate::event::record::{Prepared, RecordStyle, kafka_timestamp};
use crate::event::row::{Layout, RowError};
use crate::failpoint::{self, Boundary};
use crate::kafka;
use crate::kafka::jobs::{Answer, Jobs};
use crate::kafka::search::{FoundTopic, Phantoms, SearchError};
use crate::kafka::sink::{Ack, AckQueue, Outgoing, Producers, Tag};
use crate::kafka::watchdog::{Activity, Suspicion, Watchdog};
use crate::postgres::backfill::StoredRow;
use crate::progress::cursor::Cursor;
use crate::progress::high_mark::{Admission, Landed, Searched};
use crate::progress::ledger::{Completed, Inconsistent, Ledger};
use crate::progress::lineage::Lineage;
use crate::routing::mapping::{Mapper, Mappings, Place, Subject, TopicShape, Unplaceable};
use crate::status::Status;
use crate::status::metrics::Metrics;
use crate::topics::partitions::{PartitionId, Partitions};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::{News, TopicWatch};
use crate::trouble::{Reason, Trouble};

/// Transactions read and not confirmed at most. An entry is small, but one partition that stands still must not
/// let the others fill the memory with what is behind it.
const MAX_UNCONFIRMED_TRANSACTIONS: usize = 65_536;

/// How often the metadata of the topics in use is looked at: what happens to them shows within seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a topic's settings are read while a row waits that is too large for it.
const READ_SETTINGS_EVERY: Duration = Duration::from_secs(5);

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

/// What a session starts with.
pub struct Start {
    /// Everything before it is in Kafka, or will be copied.
    pub confirmed: EndLsn,
    /// While rows are copied that were there before `confirmed`: up to which `seq` they are in Kafka.
    pub copied: Option<i64>,
    /// The server's past. Nothing committed at or beyond its end can be in Kafka.
    pub lineage: Lineage,
    /// Where rows go.
    pub mappings: Mappings,
    /// What the checkpoint knows of Kafka.
    pub partitions: Partitions,
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

struct Transaction {
    commit: CommitLsn,
    commit_time: PgTime,
    /// Inserts of the outbox table seen so far: the index of the next row's position.
    index: u64,
    /// It lies before the confirmed LSN: Kafka has it.
    delivered: bool,
}

/// Where a row comes from.
#[derive(Clone, Copy)]
struct Origin {
    position: Position,
    commit: CommitLsn,
    commit_time: PgTime,
    /// Its `seq`, if it comes from the table; else it is of the stream's open transaction.
    copied: Option<i64>,
}

/// Commit of a row that goes where the mapping of now sends it: none before has a say.
fn after_everything() -> CommitLsn {
    CommitLsn::new(u64::MAX.into())
}

/// See the module's text.
pub struct Delivery {
    table: crate::config::TableName,
    sink: crate::config::Sink,
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
    /// By relation OID; `None` for a table that is not the outbox.
    layouts: HashMap<u32, Option<Rc<Layout>>>,
    /// Topics being looked for.
    wanted: Vec<String>,
    topic_watch: TopicWatch,
    /// When the metadata was asked for last, and whether the answer is still to come.
    looked: (Instant, bool),
    /// Topics whose growth is being looked at.
    growing: HashSet<String>,
    /// What topics have become; events are spread over all of it once everything before is acknowledged.
    grown: BTreeMap<String, TopicShape>,
    /// The topic a row waits for that is too large for it, and when its settings were read last.
    too_large_for: Option<(String, Instant)>,
    /// The last commit that was begun.
    last_commit: CommitLsn,
    transaction: Option<Transaction>,
    ledger: Ledger,
    partitions: Partitions,
    producers: Producers,
    acks: Arc<AckQueue>,
    taken: Vec<Ack>,
    watchdog: Watchdog,
    /// Acknowledged since the watchdog last looked.
    settled: usize,
    /// Whether Kafka answers; `None` until it was asked.
    kafka: Option<bool>,
    counts: Counts,
    jobs: Jobs,
    /// A row went elsewhere than its mapping said when it was first read. Until that is in Kafka nothing follows: a later
    /// row in the partition it would have gone to would make a replay take it for delivered.
    settles_first: bool,
    in_flight_events: usize,
    in_flight_bytes: usize,
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
            table: config.source.table.clone(),
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
            wanted: Vec::new(),
            topic_watch: TopicWatch::default(),
            looked: (Instant::now(), false),
            growing: HashSet::new(),
            grown: BTreeMap::new(),
            too_large_for: None,
            last_commit: CommitLsn::default(),
            transaction: None,
            ledger: Ledger::new(start.confirmed),
            partitions: start.partitions,
            producers,
            acks,
            taken: Vec::new(),
            watchdog: Watchdog::default(),
            settled: 0,
            kafka: None,
            counts: Counts::default(),
            jobs,
            settles_first: false,
            in_flight_events: 0,
            in_flight_bytes: 0,
            status,
            metrics,
        };
        for topic in delivery.mapper.topics() {
            delivery.jobs.inspect(topic, delivery.partitions.to_inspect(topic));
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

    /// Where rows go, to be stored; without what only concerns rows that are confirmed.
    pub fn mapper(&mut self) -> &mut Mapper {
        self.mapper.confirm(self.ledger.confirmed());
        &mut self.mapper
    }

    /// Topics and partitions.
    pub fn partitions(&mut self) -> &mut Partitions {
        &mut self.partitions
    }

    /// Events and bytes sent and not acknowledged.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.in_flight_events, self.in_flight_bytes)
    }

    /// Whether Kafka answers; `None` until it was asked.
    pub fn kafka_answers(&self) -> Option<bool> {
        self.kafka
    }

    /// Events of this session.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Deals with one pgoutput message. A row that cannot be delivered becomes a dead letter; where it may not, it is
    /// [`Reason::PoisonRow`]: nothing has changed then, and what came before it goes on.
    /// `stored` is the revision of the mapping in the committed checkpoint.
    pub fn message(&mut self, data: &[u8], stored: u64) -> Result<Flow, Trouble> {
        match Message::parse(data).map_err(|error| violation(error.to_string()))? {
            Message::Begin(begin) => return self.begin(begin.final_lsn, begin.commit_time),
            Message::Insert(insert) => return self.insert(&insert, stored),
            Message::Commit(commit) => self.commit(commit.end_lsn)?,
            Message::Relation(relation) => self.relation(&relation)?,
            // The publication has inserts only; what else it may get some day is not an event.
            Message::Update(_) | Message::Delete(_) | Message::Truncate(_) => {}
            Message::Origin(_) | Message::Type(_) => {}
            // Nothing to confirm: the keepalive behind it, or the Commit around it, has the place in the ledger.
            Message::Logical(message) => self.status.message(message.prefix, message.content),
        }
        Ok(Flow::Next)
    }

    /// Deals with a row that was in the table before the slot. Such rows come before anything of the stream, in the
    /// order of `seq`. Their position is the byte before the slot's beginning, where no commit can be, with `seq` as
    /// index, so they keep the order of positions. A former process may have sent any of them.
    pub fn copied(&mut self, layout: &Layout, row: &StoredRow, stored: u64) -> Result<Flow, Trouble> {
        let (seq, commit) = (row.seq()?, self.before_start());
        let position = self.lineage.position(commit, seq.cast_unsigned());
        let origin = Origin { position, commit, commit_time: PgTime::now(), copied: Some(seq) };
        self.deliver(layout, row.values(), origin, stored)
    }

    /// While rows are copied: up to which `seq` they are all in Kafka.
    pub fn copied_up_to(&mut self) -> Option<i64> {
        let first_unconfirmed = self.ledger.first_unconfirmed();
        self.cursor.as_mut().map(|cursor| cursor.reached(first_unconfirmed))
    }

    /// All rows to copy were dealt with and are in Kafka: the stream can begin.
    pub fn copy_is_done(&mut self) {
        self.cursor = None;
    }

    /// A commit record needs more than one byte, and begins at a multiple of eight.
    fn before_start(&self) -> CommitLsn {
        CommitLsn::new(Lsn::from(self.start.lsn().as_u64().saturating_sub(1)))
    }

    /// Sends a dead letter again, by the mapping of now. Gives it back when it has to be offered again.
    pub fn replay(&mut self, candidate: Candidate, stored: u64) -> Result<Option<Candidate>, Trouble> {
        if self.replaying.is_some() {
            return Ok(Some(candidate));
        }
        let Candidate { letter, topic_exists, answer } = candidate;
        let prepared = letter.row().map_err(|error| Poison::from(&error)).and_then(|row| {
            let now = PgTime::now();
            let time = row.occurred_at.unwrap_or(now);
            let headers = self.style.headers(&row, None, time, letter.content_type.as_deref());
            let headers = headers.map_err(|error| Poison::from(&error))?;
            let subject = Subject {
                key: row.key.as_deref().unwrap_or_else(|| row.id.as_bytes()),
                bytes: self.style.size(&row),
                flaw: None,
                commit: after_everything(),
                column: |_: &str| row.route_by,
            };
            let place = match self.mapper.place(&subject)? {
                Place::Partition { poison: Some(poison), .. } => return Err(poison),
                Place::Partition { topic, number, revision, poison: None } => {
                    let id = self.partitions.id(topic, number).filter(|_| revision <= stored);
                    Ok(id.filter(|id| self.partitions.is_inspected(*id)))
                }
                Place::NewTopic(topic) => Err(topic.to_owned()),
            };
            // A record as old as its event might be gone by the topic's retention as soon as it is there.
            Ok((place, Prepared::event(row, headers, now)))
        });
        let (place, prepared) = match prepared {
            Ok((place, prepared)) => (place, prepared),
            Err(poison) => return Ok(answered(answer, Outcome::Refused(poison.error))),
        };
        match place {
            Ok(Some(partition)) => {
                self.hand_over(prepared, Tag::replay(partition))
                    .map_err(|error| not_accepted("a dead letter", &error))?;
                self.replaying = Some(answer);
                return Ok(None);
            }
            Err(topic) if !topic_exists => return Ok(answered(answer, Outcome::UnknownTopic(topic))),
            Err(topic) => self.want(&topic),
            Ok(None) => {}
        }
        drop(prepared);
        Ok(Some(Candidate { letter, topic_exists, answer }))
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
        if let Some(why) = self.acks.refused() {
            return Err(Trouble::new(Reason::KafkaAuthenticationFailed, why));
        }
        if self.acks.producer_failed() {
            self.metrics.count_produce_error(RDKafkaErrorCode::Fatal);
            return Err(Trouble::new(Reason::DeliveryFailed, "a producer has failed for good"));
        }
        Ok(())
    }

    /// Looks whether something has to be done that no message brings about; called at every tick. `stored` is the
    /// revision of the mapping in the committed checkpoint.
    pub fn watch(&mut self, stored: u64) -> Result<(), Trouble> {
        self.watch_topics();
        if self.ledger.confirmed() >= self.lineage.end() {
            self.spread_over_grown()?;
        }
        let limit = self.mapper.smallest_limit().filter(|_| stored >= self.mapper.revision());
        if let Some(limit) = limit.filter(|limit| !self.producers.keep_to(*limit)) {
            let what = format!("a topic takes no more than {limit} bytes now");
            return Err(Trouble::new(Reason::TopicChanged, what));
        }
        self.watch_producers()
    }

    fn watch_producers(&mut self) -> Result<(), Trouble> {
        let activity = match std::mem::take(&mut self.settled) {
            0 if self.in_flight_events == 0 => Activity::Idle,
            0 => Activity::Waiting,
            _ => Activity::Acknowledged,
        };
        if activity == Activity::Acknowledged {
            self.kafka = Some(true);
        }
        match self.watchdog.tick(Instant::now(), activity, self.acks.take_brokers_down()) {
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

    fn watch_topics(&mut self) {
        let (at, answer_to_come) = self.looked;
        if !answer_to_come && at.elapsed() >= LOOK_EVERY {
            let topics: Vec<String> = self.mapper.topics().into_iter().map(str::to_owned).collect();
            self.looked = (Instant::now(), !topics.is_empty());
            if !topics.is_empty() {
                self.jobs.look(topics);
            }
        }
        if let Some((topic, read)) = &mut self.too_large_for
            && read.elapsed() >= READ_SETTINGS_EVERY
        {
            *read = Instant::now();
            self.jobs.describe(topic);
        }
    }

    /// Takes in the answer to a question.
    pub fn answer(&mut self, answer: Answer) -> Result<(), Trouble> {
        match answer {
            Answer::Topic { name, found } => {
                self.wanted.retain(|wanted| *wanted != name);
                let shape = self.take_in(&name, &found);
                self.mapper.add(&name, shape);
            }
            Answer::Grown { name, found } => {
                self.growing.remove(&name);
                let shape = self.take_in(&name, &found);
                self.grown.insert(name, shape);
            }
            Answer::Settings { topic, settings } => self.settings(&topic, settings)?,
            Answer::Inspected { partition, search } => {
                self.partitions.inspected(partition, search);
                self.say_whether_kafka_is_whole();
            }
            Answer::Looked(seen) => {
                self.looked.1 = false;
                match seen {
                    None => self.topic_watch.away(),
                    Some(seen) => {
                        let news = self.compare(seen);
                        self.news(news)?;
                    }
                }
            }
            Answer::Searched { partition, found, phantoms } => {
                let ahead = phantoms.ahead;
                self.report(partition, phantoms);
                if ahead {
                    let what = "Kafka has events of the server's own timeline beyond the end of its log: the database was put \
                                back to an earlier state without a new timeline";
                    return Err(Trouble::new(Reason::HistoryChanged, what));
                }
                if let Some(mark) = self.partitions.mark(partition) {
                    mark.searched(found);
                }
            }
            Answer::HoleRead { partition, found } => self.hole_read(partition, found),
            Answer::Reachable(there) => {
                self.kafka = Some(there);
                self.watchdog.looked(Instant::now(), there);
            }
            Answer::Failed(SearchError::Cancelled) => {}
            Answer::Failed(SearchError::Distrusted(why)) => {
                return Err(Trouble::new(Reason::KafkaAuthenticationFailed, why));
            }
            Answer::Failed(error @ SearchError::Lost { .. }) => {
                return Err(Trouble::new(Reason::KafkaLostRecords, error.to_string()));
            }
            Answer::Failed(SearchError::Refused(error)) => {
                return Err(kafka::error::trouble("Kafka refused a search", code_of(&error)));
            }
        }
        Ok(())
    }

    /// Takes in what a look at a new or grown topic has found.
    fn take_in(&mut self, name: &str, found: &FoundTopic) -> TopicShape {
        let known = self.partitions.count(name);
        self.partitions.add(name, found.partitions, &found.ends);
        self.partitions.set_settings(name, found.settings);
        for new in self.partitions.to_inspect(name).into_iter().skip(known) {
            self.partitions.inspected(new.id, new.floor.search);
        }
        let limit = found.settings.and_then(|settings| settings.lower_limit(&self.sink));
        TopicShape { partitions: found.partitions, max_message_bytes: limit }
    }

    fn settings(&mut self, topic: &str, settings: Option<TopicSettings>) -> Result<(), Trouble> {
        self.partitions.set_settings(topic, settings);
        let (Some(settings), Some(shape)) = (settings, self.mapper.shape(topic)) else { return Ok(()) };
        let limit = settings.lower_limit(&self.sink);
        if limit == shape.max_message_bytes {
            return Ok(());
        }
        tracing::info!(
            topic,
            bytes = limit.unwrap_or(self.sink.max_message_bytes),
            "the limit of the topic has changed"
        );
        let shapes = BTreeMap::from([(topic.to_owned(), TopicShape { max_message_bytes: limit, ..shape })]);
        // Whatever was sent was committed before the horizon, or is of the last transaction or one before it.
        let behind_last = EndLsn::new((self.last_commit.lsn().as_u64() + 1).into());
        self.change_mapping(&shapes, self.lineage.end().max(behind_last))
    }

    fn change_mapping(
        &mut self,
        shapes: &BTreeMap<String, TopicShape>,
        until: EndLsn,
    ) -> Result<(), Trouble> {
        let changed = self.mapper.change(shapes, until);
        changed.map_err(|error| Trouble::new(Reason::PoisonRow, error.to_string()))
    }

    fn compare(&mut self, seen: BTreeMap<String, crate::topics::watch::Seen>) -> Vec<(String, News)> {
        let partitions = &self.partitions;
        self.topic_watch.look(seen, |topic| partitions.count(topic))
    }

    fn news(&mut self, news: Vec<(String, News)>) -> Result<(), Trouble> {
        for (topic, news) in news {
            match news {
                News::Missing => {
                    // It may come back as another topic under the same name.
                    let remembered = self.partitions.to_inspect(&topic);
                    self.partitions.doubt(&topic);
                    self.jobs.inspect(&topic, remembered);
                }
                News::Moved => self.jobs.inspect(&topic, self.partitions.to_inspect(&topic)),
                News::Grown => {
                    if self.growing.insert(topic.clone()) {
                        self.jobs.look_at_growth(&topic);
                    }
                }
                News::Shrunk { partitions } => {
                    let known = self.partitions.count(&topic);
                    let what =
                        format!("topic {topic} has {partitions} partitions, but {known} were written to");
                    return Err(Trouble::new(Reason::KafkaLostRecords, what));
                }
            }
        }
        Ok(())
    }

    /// Spreads events over all partitions of topics that have grown. Nothing is under way then, so that no event of a
    /// key can be in its new partition before an earlier one is in the old.
    fn spread_over_grown(&mut self) -> Result<(), Trouble> {
        if self.grown.is_empty() || self.transaction.is_some() || !self.ledger.is_empty() {
            return Ok(());
        }
        let grown = std::mem::take(&mut self.grown);
        for (topic, shape) in &grown {
            tracing::info!(
                topic,
                partitions = shape.partitions,
                "the topic has grown; events are spread over all of it"
            );
        }
        self.change_mapping(&grown, self.ledger.confirmed())
    }

    /// Ends the producers; blocks.
    pub fn into_producers(self) -> Producers {
        self.producers
    }

    fn begin(&mut self, commit: CommitLsn, commit_time: PgTime) -> Result<Flow, Trouble> {
        // Rows before the horizon may have been sent, and are judged by where they went.
        if !self.lineage.end().covers(commit) {
            self.spread_over_grown()?;
            if !self.grown.is_empty() {
                return Ok(Flow::Blocked);
            }
        }
        self.ledger.begin(commit, commit_time)?;
        self.last_commit = commit;
        let delivered = self.start.covers(commit);
        self.transaction = Some(Transaction { commit, commit_time, index: 0, delivered });
        Ok(Flow::Next)
    }

    fn commit(&mut self, end: EndLsn) -> Result<(), Trouble> {
        failpoint::pass(Boundary::AllSent);
        self.transaction = None;
        let completed = self.ledger.commit(end)?;
        self.observe(completed);
        Ok(())
    }

    fn relation(&mut self, relation: &Relation<'_>) -> Result<(), Trouble> {
        let is_outbox = relation.namespace == self.table.schema && relation.name == self.table.table;
        let columns = relation.columns().map(|column| (column.name, column.type_oid));
        let layout = is_outbox.then(|| Layout::new(columns, self.mapper.by_field())).transpose();
        let layout = layout.map_err(|error| Trouble::new(Reason::TableUnsuitable, error.to_string()))?;
        self.layouts.insert(relation.oid, layout.map(Rc::new));
        Ok(())
    }

    fn insert(&mut self, insert: &Insert<'_>, stored: u64) -> Result<Flow, Trouble> {
        let transaction = self.transaction.as_ref().ok_or(Inconsistent::NoTransaction)?;
        let layout = match self.layouts.get(&insert.relation) {
            Some(Some(layout)) => Rc::clone(layout),
            Some(None) => return Ok(Flow::Next),
            None => return Err(violation(format!("a row of unannounced relation {}", insert.relation))),
        };
        if transaction.delivered {
            self.counts.received += 1;
            self.counts.suppressed += 1;
            return Ok(Flow::Next);
        }
        let (commit, commit_time) = (transaction.commit, transaction.commit_time);
        let position = self.lineage.position(commit, transaction.index);
        let origin = Origin { position, commit, commit_time, copied: None };
        let flow = self.deliver(&layout, insert.tuple.columns(), origin, stored)?;
        if flow == Flow::Next
            && let Some(transaction) = &mut self.transaction
        {
            transaction.index += 1;
        }
        Ok(flow)
    }

    fn deliver<'a>(
        &mut self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
        stored: u64,
    ) -> Result<Flow, Trouble> {
        if self.settles_first && self.in_flight_events > 0 {
            return Ok(Flow::Blocked);
        }
        self.settles_first = false;
        let (arrival, time) = self.read(layout, values.clone(), origin)?;
        failpoint::pass(match origin.position.index {
            0 => Boundary::AfterDecode,
            _ => Boundary::InTransaction,
        });
        let spread_by = arrival.spread_by(origin.position);
        let (bytes, route_by) = match &arrival {
            Arrival::Event(row, _) => (self.style.size(row), row.route_by),
            Arrival::Flawed(row, _) => (0, row.route_by),
        };
        let subject = Subject {
            key: &spread_by,
            bytes,
            flaw: arrival.flaw(),
            commit: origin.commit,
            column: |name: &str| {
                if layout.routes_by(name) { route_by } else { layout.text(values.clone(), name) }
            },
        };
        let (topic, number, poison) = match self.mapper.place(&subject) {
            Ok(Place::Partition { topic, number, revision, poison }) if revision <= stored => {
                (topic, number, poison)
            }
            Ok(Place::Partition { .. }) => return Ok(Flow::Blocked),
            Ok(Place::NewTopic(name)) => {
                let name = name.to_owned();
                self.want(&name);
                return Ok(Flow::Blocked);
            }
            Err(error) => return Err(self.unplaceable(&arrival, origin.position, error)),
        };
        let Some(partition) = self.partitions.id(topic, number) else {
            return Err(violation(format!("{topic} has no partition {number}")));
        };
        if !self.partitions.is_inspected(partition) {
            return Ok(Flow::Blocked);
        }
        let Some(mark) = self.partitions.mark(partition) else { return Ok(Flow::Blocked) };
        match mark.admit(origin.position, self.lineage.holds(origin.position)) {
            Admission::Send => {
                let limit = self.partitions.place(partition).map_or(0, |(topic, _)| self.mapper.limit(topic));
                if poison.is_none() && bytes > limit {
                    // It was smaller than the limit of a mapping before this one, and was not sent.
                    let origin = Origin { commit: after_everything(), ..origin };
                    let flow = self.deliver(layout, values, origin, stored)?;
                    self.settles_first = flow == Flow::Next;
                    return Ok(flow);
                }
                if let Some(Poison { kind: PoisonKind::TooLarge, topic: Some(topic), .. }) = &poison {
                    self.was_too_large_for(topic);
                }
                let prepared =
                    self.prepare(arrival, poison, origin.position, time, layout.content_type(), limit);
                self.send(prepared, origin, partition)?;
            }
            Admission::AlreadyThere => {
                self.counts.suppressed += 1;
                self.metrics.duplicates_suppressed_total.inc();
                if let (Some(seq), Some(cursor)) = (origin.copied, &mut self.cursor) {
                    cursor.already_there(seq);
                }
            }
            Admission::Search { from } => {
                let min_in_sync = self.partitions.settings(topic).and_then(|s| s.min_in_sync_replicas);
                self.jobs.search(partition, topic, number, from, min_in_sync);
                return Ok(Flow::Blocked);
            }
            Admission::Wait => return Ok(Flow::Blocked),
        }
        self.counts.received += 1;
        Ok(Flow::Next)
    }

    /// Reads a row, with its time. What is wrong with its values is the row's; a row of another shape than its table
    /// is the stream's.
    fn read<'a>(
        &self,
        layout: &Layout,
        values: impl Iterator<Item = Column<'a>> + Clone,
        origin: Origin,
    ) -> Result<(Arrival<'a>, PgTime), Trouble> {
        let (row, flaw) = match layout.read(values.clone()) {
            Ok(row) => {
                let time = row.occurred_at.unwrap_or(origin.commit_time);
                let headers = self.style.headers(&row, Some(origin.position), time, layout.content_type());
                match headers {
                    Ok(headers) => return Ok((Arrival::Event(row, headers), time)),
                    Err(error) => (row.into(), Poison::from(&error)),
                }
            }
            Err(error @ RowError::ColumnCount { .. }) => return Err(violation(error.to_string())),
            Err(error) => (layout.salvage(values), Poison::from(&error)),
        };
        let time = row.occurred_at.unwrap_or(origin.commit_time);
        Ok((Arrival::Flawed(row, flaw), time))
    }

    fn prepare<'a>(
        &self,
        arrival: Arrival<'a>,
        poison: Option<Poison>,
        position: Position,
        time: PgTime,
        content_type: Option<&str>,
        limit: usize,
    ) -> Prepared<'a> {
        let (row, poison) = match (arrival, poison) {
            (Arrival::Event(row, headers), None) => return Prepared::event(row, headers, time),
            (Arrival::Event(row, _), Some(poison)) => (row.into(), poison),
            (Arrival::Flawed(row, flaw), poison) => (row, poison.unwrap_or(flaw)),
        };
        self.dead_letter_style.record(row, poison, position, time, content_type, limit)
    }

    /// Looks for a topic that is not part of the mapping yet.
    fn want(&mut self, topic: &str) {
        if !self.wanted.iter().any(|wanted| wanted == topic) {
            self.wanted.push(topic.to_owned());
            self.jobs.find_topic(topic);
        }
    }

    /// A row that is too large waits for the limit to be raised.
    fn unplaceable(&mut self, arrival: &Arrival<'_>, position: Position, error: Unplaceable) -> Trouble {
        if let Unplaceable::TooLarge { topic, .. } = &error {
            self.was_too_large_for(topic);
        }
        arrival.trouble(error, position)
    }

    /// From now on the limit of `topic` is looked at.
    fn was_too_large_for(&mut self, topic: &str) {
        if self.too_large_for.as_ref().is_none_or(|(known, _)| known != topic) {
            self.too_large_for = Some((topic.to_owned(), Instant::now()));
        }
    }

    fn send(
        &mut self,
        mut prepared: Prepared<'_>,
        origin: Origin,
        partition: PartitionId,
    ) -> Result<(), Trouble> {
        let position = origin.position;
        let entry = match origin.copied {
            None => self.ledger.row()?,
            Some(seq) => {
                let entry = self.ledger.lone_row(self.before_start(), prepared.time, self.start)?;
                self.cursor.iter_mut().for_each(|cursor| cursor.sent(entry, seq));
                entry
            }
        };
        let dead = prepared.dead.take();
        self.hand_over(prepared, Tag::new(entry, partition))
            .map_err(|error| not_accepted(&format!("the event at {position}"), &error))?;
        if let Some(note) = dead {
            self.dead_letters.sent(partition, note);
            failpoint::pass(Boundary::DeadLetterSent);
        }
        if let Some(mark) = self.partitions.mark(partition) {
            mark.sent(position);
        }
        Ok(())
    }

    fn hand_over(&mut self, prepared: Prepared<'_>, tag: Tag) -> Result<(), KafkaError> {
        let Some((topic, number)) = self.partitions.place(tag.partition()) else { return Ok(()) };
        let now = kafka_timestamp(PgTime::now());
        let mut timestamp = kafka_timestamp(prepared.time);
        let settings = self.partitions.settings(topic).copied().unwrap_or_default();
        if settings.is_too_old(timestamp, now) || settings.is_too_new(timestamp, now) {
            timestamp = now;
            self.metrics.timestamps_replaced_total.inc();
        }
        let record = Outgoing {
            topic,
            partition: number,
            key: prepared.key.as_deref(),
            value: prepared.value.as_deref(),
            headers: prepared.headers,
            timestamp,
        };
        let bytes = record.bytes();
        let sent = self.producers.send(record, tag);
        // After a refused record a producer takes no more: this can be the first that is heard of it.
        sent.inspect_err(|error| self.metrics.count_produce_error(code_of(error)))?;
        self.counts.sent += 1;
        self.in_flight_events += 1;
        self.in_flight_bytes += bytes;
        Ok(())
    }

    fn settle(&mut self, ack: Ack) -> Result<(), Trouble> {
        self.in_flight_events = self.in_flight_events.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(ack.bytes);
        let (entry, partition) = (ack.tag.entry(), ack.tag.partition());
        let Some((topic, number)) = self.partitions.place(partition) else { return Ok(()) };
        if ack.tag.is_replay() {
            replayed(self.replaying.take(), topic, number, &ack.outcome);
        }
        let offset = match ack.outcome {
            Ok(offset) => offset,
            Err(code) => {
                self.metrics.count_produce_error(code);
                return Err(kafka::error::trouble(
                    &format!("Kafka refused a record for {topic}/{number}"),
                    code,
                ));
            }
        };
        if ack.tag.is_replay() {
            return Ok(());
        }
        let commit = self.ledger.commit_lsn(entry);
        self.counts.acknowledged += 1;
        let completed = self.ledger.acknowledge(entry)?;
        failpoint::pass(match completed {
            None => Boundary::PartlyAcknowledged,
            Some(_) => Boundary::AllAcknowledged,
        });
        if self.cursor.is_some() {
            self.metrics.refilled_rows_total.with_label_values(&[CAUSE_START]).inc();
        } else {
            self.observe(completed);
        }
        self.metrics.events_total.with_label_values(&[topic]).inc();
        self.metrics.bytes_total.inc_by(ack.bytes as u64);
        self.dead_letters.acknowledged(partition);
        let topic = topic.to_owned();
        match self.partitions.mark(partition).map(|mark| mark.acknowledged(offset)) {
            Some(Landed::BehindHole(hole)) => self.jobs.read_hole(partition, &topic, number, hole),
            Some(Landed::Backwards { expected }) => {
                let at = offset.unwrap_or_default();
                let what = format!(
                    "{topic}/{number} took a record at offset {at}, but {expected} was reached before"
                );
                return Err(Trouble::new(Reason::KafkaLostRecords, what));
            }
            Some(Landed::InOrder) | None => {}
        }
        if let Some((offset, commit)) = offset.zip(commit) {
            let timeline = self.lineage.position(commit, 0).timeline;
            self.partitions.acknowledged(partition, entry, timeline, commit, offset);
        }
        Ok(())
    }

    /// Events whose rows this server does not have cannot be taken out of Kafka: a person has to know which they are.
    fn report(&self, partition: PartitionId, phantoms: Phantoms) {
        if phantoms.count == 0 {
            return;
        }
        let topic = self.partitions.place(partition).map_or("", |(topic, _)| topic);
        tracing::warn!(
            topic,
            events = phantoms.count,
            ids = phantoms.ids.join(" "),
            "Kafka has events that are not of this server's history: it was restored, or took over without them"
        );
        self.metrics.phantom_events.add(i64::try_from(phantoms.count).unwrap_or(i64::MAX));
        self.status.phantoms(phantoms);
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

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

fn not_accepted(what: &str, error: &KafkaError) -> Trouble {
    Trouble::new(Reason::DeliveryFailed, format!("the producer did not take {what}: {error}"))
}

/// High marks see the record of a replay as somebody else's: it has no position.
fn replayed(
    answer: Option<oneshot::Sender<Outcome>>,
    topic: &str,
    partition: i32,
    outcome: &Result<Option<i64>, RDKafkaErrorCode>,
) {
    let Some(answer) = answer else { return };
    let outcome = match outcome {
        Ok(_) => Outcome::Sent { topic: topic.to_owned(), partition },
        Err(code) => Outcome::Refused(format!("Kafka refused it for {topic}/{partition}: {code:?}")),
    };
    answered(answer, outcome);
}

/// Who asked may have gone away.
fn answered(answer: oneshot::Sender<Outcome>, outcome: Outcome) -> Option<Candidate> {
    drop(answer.send(outcome));
    None
}

impl From<Inconsistent> for Trouble {
    fn from(error: Inconsistent) -> Self {
        violation(error.to_string())
    }
}
