//! From messages of the stream to records in Kafka and entries in the ledger: the path every event takes.
//!
//! Nothing here waits. A row that cannot go on yet (its topic is unknown, its partition is being searched) makes
//! [`Delivery::message`] answer [`Flow::Blocked`]; the caller keeps the message and offers it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox::Position;
use pg_replication::pgoutput::{Insert, Message, Relation};
use pg_replication::{CommitLsn, EndLsn, Lsn, PgTime};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;

use crate::backfill::StoredRow;
use crate::config::Config;
use crate::cursor::Cursor;
use crate::high_mark::{Admission, Landed, Searched};
use crate::jobs::{Answer, Jobs};
use crate::kafka_error;
use crate::ledger::{Completed, Inconsistent, Ledger};
use crate::lineage::Lineage;
use crate::mapping::{Mapper, Mappings, Place, Subject, TopicShape, Unplaceable};
use crate::metrics::Metrics;
use crate::partitions::{PartitionId, Partitions};
use crate::record::{self, RecordStyle, kafka_timestamp};
use crate::row::{Layout, OutboxRow, RowError};
use crate::search::{FoundTopic, Phantoms, SearchError};
use crate::sink::{Ack, AckQueue, Outgoing, Producers, Tag};
use crate::status::Status;
use crate::topic_settings::TopicSettings;
use crate::topic_watch::{News, TopicWatch};
use crate::trouble::{Reason, Trouble};
use crate::watchdog::{Suspicion, Watchdog};

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
enum Origin {
    /// The open transaction of the stream.
    Stream,
    /// The table, with its `seq`.
    Table(i64),
}

/// A row and what was found out about it.
struct Judged<'a> {
    row: OutboxRow<'a>,
    content_type: Option<&'static str>,
    position: Position,
    time: PgTime,
    bytes: usize,
    partition: PartitionId,
    origin: Origin,
}

/// See the module's text.
pub struct Delivery {
    table: crate::config::TableName,
    sink: crate::config::Sink,
    mapper: Mapper,
    style: RecordStyle,
    max_events: usize,
    max_bytes: usize,
    start: EndLsn,
    lineage: Lineage,
    /// While rows are copied.
    cursor: Option<Cursor>,
    /// By relation OID; `None` for a table that is not the outbox.
    layouts: HashMap<u32, Option<Layout>>,
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
    jobs: Jobs,
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
            watchdog: Watchdog::new(Instant::now()),
            settled: 0,
            jobs,
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

    /// Deals with one pgoutput message. A row that can never be delivered is [`Reason::PoisonRow`]; nothing has
    /// changed then, and what came before it goes on.
    /// `stored` is the revision of the mapping in the committed checkpoint.
    pub fn message(&mut self, data: &[u8], stored: u64) -> Result<Flow, Trouble> {
        match Message::parse(data).map_err(|error| violation(error.to_string()))? {
            Message::Begin(begin) => return self.begin(begin.final_lsn, begin.commit_time),
            Message::Insert(insert) => return self.insert(&insert, stored),
            Message::Commit(commit) => self.commit(commit.end_lsn)?,
            Message::Relation(relation) => self.relation(&relation)?,
            // The publication has inserts only; what else it may get some day is not an event.
            Message::Update(_) | Message::Delete(_) | Message::Truncate(_) => {}
            Message::Origin(_) | Message::Type(_) | Message::Logical(_) => {}
        }
        Ok(Flow::Next)
    }

    /// Deals with a row that was in the table before the slot. Such rows come before anything of the stream, in the
    /// order of `seq`. Their position is the byte before the slot's beginning, where no commit can be, with `seq` as
    /// index, so they keep the order of positions. A former process may have sent any of them.
    pub fn copied(&mut self, layout: &Layout, stored_row: &StoredRow, stored: u64) -> Result<Flow, Trouble> {
        let (seq, commit) = (stored_row.seq()?, self.before_start());
        let position = self.lineage.position(commit, seq.cast_unsigned());
        let row = layout.read(stored_row.values()).map_err(|error| unreadable(position, &error))?;
        let (time, bytes) = (row.occurred_at.unwrap_or_else(PgTime::now), record::size(&row));
        let subject = Subject {
            key: row.key.unwrap_or_else(|| row.id.as_bytes()),
            bytes,
            commit,
            column: |name: &str| {
                if layout.routes_by(name) { row.route_by } else { layout.text(stored_row.values(), name) }
            },
        };
        let place = destination(&mut self.mapper, &self.partitions, &subject, stored);
        let Some(partition) = self.settle_on(place, position, &row)? else { return Ok(Flow::Blocked) };
        let content_type = layout.content_type();
        let origin = Origin::Table(seq);
        self.deliver(&Judged { row, content_type, position, time, bytes, partition, origin })
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
            Answer::Reachable(there) => self.watchdog.looked(there),
            Answer::Failed(SearchError::Cancelled) => {}
            Answer::Failed(error @ SearchError::Lost { .. }) => {
                return Err(Trouble::new(Reason::KafkaLostRecords, error.to_string()));
            }
            Answer::Failed(SearchError::Refused(error)) => {
                return Err(kafka_error::trouble("Kafka refused a search", code_of(&error)));
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

    fn compare(&mut self, seen: BTreeMap<String, crate::topic_watch::Seen>) -> Vec<(String, News)> {
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
        self.layouts.insert(relation.oid, layout);
        Ok(())
    }

    fn insert(&mut self, insert: &Insert<'_>, stored: u64) -> Result<Flow, Trouble> {
        let transaction = self.transaction.as_ref().ok_or(Inconsistent::NoTransaction)?;
        let layout = match self.layouts.get(&insert.relation) {
            Some(Some(layout)) => layout,
            Some(None) => return Ok(Flow::Next),
            None => return Err(violation(format!("a row of unannounced relation {}", insert.relation))),
        };
        if transaction.delivered {
            return Ok(Flow::Next);
        }
        let (commit, commit_time) = (transaction.commit, transaction.commit_time);
        let position = self.lineage.position(commit, transaction.index);
        let row = layout.read(insert.tuple.columns()).map_err(|error| unreadable(position, &error))?;
        let content_type = layout.content_type();
        let bytes = record::size(&row);
        let subject = Subject {
            key: row.key.unwrap_or_else(|| row.id.as_bytes()),
            bytes,
            commit,
            column: |name: &str| {
                if layout.routes_by(name) { row.route_by } else { layout.text(insert.tuple.columns(), name) }
            },
        };
        let place = destination(&mut self.mapper, &self.partitions, &subject, stored);
        let Some(partition) = self.settle_on(place, position, &row)? else { return Ok(Flow::Blocked) };
        let time = row.occurred_at.unwrap_or(commit_time);
        let origin = Origin::Stream;
        let flow = self.deliver(&Judged { row, content_type, position, time, bytes, partition, origin })?;
        if flow == Flow::Next
            && let Some(transaction) = &mut self.transaction
        {
            transaction.index += 1;
        }
        Ok(flow)
    }

    /// The partition of a row; `None` while it waits for its topic, or for a checkpoint that knows it.
    fn settle_on(
        &mut self,
        place: Result<Destination, Unplaceable>,
        position: Position,
        row: &OutboxRow<'_>,
    ) -> Result<Option<PartitionId>, Trouble> {
        match place {
            Ok(Destination::Partition(partition)) => Ok(Some(partition)),
            Ok(Destination::NotStored) => Ok(None),
            Ok(Destination::NewTopic(name)) => {
                if !self.wanted.contains(&name) {
                    self.jobs.find_topic(&name);
                    self.wanted.push(name);
                }
                Ok(None)
            }
            Ok(Destination::Nowhere(what)) => Err(violation(what)),
            Err(error) => Err(self.unplaceable(position, row, error)),
        }
    }

    fn deliver(&mut self, judged: &Judged<'_>) -> Result<Flow, Trouble> {
        let Judged { row, content_type, position, time, partition, origin, .. } = judged;
        let headers = self.style.headers(row, *position, *time, *content_type);
        let headers = headers.map_err(|error| poison(*position, row, error))?;
        if !self.partitions.is_inspected(*partition) {
            return Ok(Flow::Blocked);
        }
        let replayed = self.lineage.holds(*position);
        let Some(mark) = self.partitions.mark(*partition) else { return Ok(Flow::Blocked) };
        match mark.admit(*position, replayed) {
            // Everything that can be wrong with the row was found before this: what is admitted is sent.
            Admission::Send => self.send(judged, headers)?,
            Admission::AlreadyThere => {
                self.metrics.duplicates_suppressed_total.inc();
                if let (Origin::Table(seq), Some(cursor)) = (origin, &mut self.cursor) {
                    cursor.already_there(*seq);
                }
            }
            Admission::Search { from } => {
                let Some((topic, number)) = self.partitions.place(*partition) else {
                    return Ok(Flow::Blocked);
                };
                let min_in_sync = self.partitions.settings(topic).and_then(|s| s.min_in_sync_replicas);
                self.jobs.search(*partition, topic, number, from, min_in_sync);
                return Ok(Flow::Blocked);
            }
            Admission::Wait => return Ok(Flow::Blocked),
        }
        Ok(Flow::Next)
    }

    /// A row that is too large waits for the limit to be raised.
    fn unplaceable(&mut self, position: Position, row: &OutboxRow<'_>, error: Unplaceable) -> Trouble {
        if let Unplaceable::TooLarge { topic, .. } = &error
            && self.too_large_for.as_ref().is_none_or(|(known, _)| known != topic)
        {
            self.too_large_for = Some((topic.clone(), Instant::now()));
        }
        poison(position, row, error)
    }

    fn send(&mut self, judged: &Judged<'_>, headers: OwnedHeaders) -> Result<(), Trouble> {
        let Judged { row, position, time, bytes, partition, origin, .. } = judged;
        let (position, time, bytes, partition) = (*position, *time, *bytes, *partition);
        let Some((topic, number)) = self.partitions.place(partition) else { return Ok(()) };
        // It may have been smaller than the limit when it was read before, and be too large now.
        if let Err(error) = self.mapper.fits(topic, bytes) {
            return Err(self.unplaceable(position, row, error));
        }
        let now = kafka_timestamp(PgTime::now());
        let mut timestamp = kafka_timestamp(time);
        let settings = self.partitions.settings(topic).copied().unwrap_or_default();
        if settings.is_too_old(timestamp, now) {
            timestamp = now;
            self.metrics.timestamps_replaced_total.inc();
        }
        let record = Outgoing {
            topic,
            partition: number,
            key: row.key,
            value: row.payload.as_deref(),
            headers,
            timestamp,
        };
        let bytes = record.bytes();
        let entry = match *origin {
            Origin::Stream => self.ledger.row()?,
            Origin::Table(seq) => {
                let entry = self.ledger.lone_row(self.before_start(), time, self.start)?;
                self.cursor.iter_mut().for_each(|cursor| cursor.sent(entry, seq));
                entry
            }
        };
        self.producers.send(record, Tag::new(entry, partition)).map_err(|error| not_accepted(row, &error))?;
        if let Some(mark) = self.partitions.mark(partition) {
            mark.sent(position);
        }
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
                return Err(kafka_error::trouble(
                    &format!("Kafka refused a record for {topic}/{number}"),
                    code,
                ));
            }
        };
        let commit = self.ledger.commit_lsn(entry);
        let completed = self.ledger.acknowledge(entry)?;
        if self.cursor.is_some() {
            self.metrics.refilled_rows_total.with_label_values(&[CAUSE_START]).inc();
        } else {
            self.observe(completed);
        }
        self.metrics.events_total.with_label_values(&[topic]).inc();
        self.metrics.bytes_total.inc_by(ack.bytes as u64);
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

/// Where a row goes.
enum Destination {
    Partition(PartitionId),
    /// The checkpoint does not know the place yet.
    NotStored,
    NewTopic(String),
    Nowhere(String),
}

fn destination<'a, F: Fn(&str) -> Option<&'a str>>(
    mapper: &mut Mapper,
    partitions: &Partitions,
    subject: &Subject<'a, F>,
    stored: u64,
) -> Result<Destination, Unplaceable> {
    Ok(match mapper.place(subject)? {
        Place::Partition { topic, number, revision } if revision <= stored => {
            let nowhere = || Destination::Nowhere(format!("{topic} has no partition {number}"));
            partitions.id(topic, number).map_or_else(nowhere, Destination::Partition)
        }
        Place::Partition { .. } => Destination::NotStored,
        Place::NewTopic(name) => Destination::NewTopic(name.to_owned()),
    })
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

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
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
