//! Queries to Kafka that take a while. Each runs as a task that makes blocking calls on the threads of
//! [`call_pool`](super::call_pool). The result arrives through a queue; the rows that need it wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::error::ErrorKind;
use crate::kafka::call_pool::{CallKind, Caller, PAUSE};
use crate::kafka::evidence;
use crate::kafka::offset_gaps::{self, OffsetGaps, PartitionGaps};
use crate::kafka::producers::{ProducerHandles, Producers};
use crate::kafka::query::{QueriedPartition, Query, QueryResult, Verification};
use crate::kafka::scan::{Scan, Scope, Step};
use crate::kafka::scanner::{FairShare, FoundTopic, PartitionScanner, QueryError, Reachability};
use crate::kafka::verify;
use crate::progress::offset::{Offset, OffsetRange};
use crate::progress::partition_dedup::OffsetGap;
use crate::topics::partitions::{PartitionNumber, ScanStart, ToVerify};
use crate::topics::settings::TopicSettings;

/// How often to query a topic that does not exist.
const FIND_TOPIC_EVERY: Duration = Duration::from_secs(1);
/// Number of attempts, and the pause between them, for a partition that seems too short: a leader that was just elected
/// may not yet know how far its followers are.
const VERIFY_ATTEMPTS: u32 = 3;
const VERIFY_PAUSE: Duration = Duration::from_millis(700);

/// Starts queries and queues their results.
pub struct KafkaQueries {
    caller: Caller,
    results: mpsc::UnboundedSender<QueryResult>,
    gaps: Arc<Mutex<OffsetGaps>>,
}

impl KafkaQueries {
    /// Returns the queries and the queue of their results.
    pub fn new(scanner: Arc<PartitionScanner>) -> (KafkaQueries, mpsc::UnboundedReceiver<QueryResult>) {
        // Unbounded is safe: there are at most a few queries per topic and partition.
        let (results, queue) = mpsc::unbounded_channel();
        let gaps = Arc::new(Mutex::new(OffsetGaps::new(Instant::now())));
        (KafkaQueries { caller: Caller::new(scanner), results, gaps }, queue)
    }

    /// Starts a query. Those about producers block on a thread of the pool, so they get handles to `producers`.
    pub fn start(&self, query: Query<'_>, producers: &Producers) {
        match query {
            Query::FindTopic(name) => self.find_topic(name),
            Query::Growth(name) => self.find_growth(name, producers.handles(None)),
            Query::Verify { topic, partitions, when } => self.verify(topic, partitions, when),
            Query::Settings(topic) => self.describe(topic),
            Query::TopicStates(topics) => self.read_topic_states(topics),
            Query::Scan { partition, from, min_in_sync } => self.scan(partition, from, min_in_sync),
            Query::GapBeforeProbe(partition, gap) => self.scan_gap_before_probe(partition, gap),
            Query::Gap(partition, gap) => self.scan_gap_later(partition, gap),
            Query::Evidence { starts, before } => {
                let starts = starts.clone();
                self.submit(async move |caller| {
                    Ok(QueryResult::Evidence(evidence::collect(&caller, starts, before).await?))
                });
            }
            Query::Reachability { of_producers } => {
                self.check_reachability(of_producers.then(|| producers.handles(None)));
            }
            Query::Diagnosis { partition, min_in_sync } => {
                self.diagnose(partition, min_in_sync, producers.handles(Some(partition.number)));
            }
        }
    }

    fn find_topic(&self, name: &str) {
        let (name, results) = (name.to_owned(), self.results.clone());
        self.submit(async move |caller| {
            wait_for_topic(&caller, &name, &results).await?;
            let found = topic(&caller, &name).await?;
            Ok(QueryResult::Topic { name, found })
        });
    }

    fn find_growth(&self, name: &str, producers: ProducerHandles) {
        let name = name.to_owned();
        let producers = Arc::new(producers);
        self.submit(async move |caller| {
            let found = topic(&caller, &name).await?;
            loop {
                let (producers, name) = (Arc::clone(&producers), name.clone());
                let all_know = move |_: &PartitionScanner| producers.know_partitions(&name, found.partitions);
                if caller.call(CallKind::Health, all_know).await? {
                    break;
                }
                tokio::time::sleep(FIND_TOPIC_EVERY).await;
            }
            Ok(QueryResult::Grown { name, found })
        });
    }

    fn verify(&self, topic: &str, partitions: Vec<ToVerify>, when: Verification) {
        let (name, results) = (topic.to_owned(), self.results.clone());
        self.submit(async move |caller| {
            wait_for_topic(&caller, &name, &results).await?;
            let settings = describe(&caller, &name).await?;
            let compacted = settings.map(|settings| settings.compacted);
            let topic: Arc<str> = name.as_str().into();
            // One query for each partition, because a leader may be down.
            for partition in partitions {
                let topic = Arc::clone(&topic);
                spawn(&caller, &results, async move |caller| {
                    let ToVerify { id, number, start } = partition;
                    let scan_from = verify_partition(&caller, &topic, number, start, compacted, when).await?;
                    Ok(QueryResult::Verified { partition: id, scan_from })
                });
            }
            Ok(QueryResult::Settings { topic: name, settings })
        });
    }

    fn describe(&self, topic: &str) {
        let topic = topic.to_owned();
        self.submit(async move |caller| {
            let settings = describe(&caller, &topic).await?;
            Ok(QueryResult::Settings { topic, settings })
        });
    }

    fn read_topic_states(&self, topics: Vec<String>) {
        self.submit(async move |caller| {
            Ok(QueryResult::TopicStates(
                caller.call(CallKind::Health, move |scanner| scanner.topic_states(&topics)).await?,
            ))
        });
    }

    fn scan(&self, partition: QueriedPartition<'_>, from: Offset, min_in_sync: Option<usize>) {
        let QueriedPartition { id: partition, topic, number } = partition;
        let topic: Arc<str> = topic.into();
        self.submit(async move |caller| {
            let scan = scan_partition(&caller, &topic, number, Scope::ToEnd, from, min_in_sync).await?;
            let Scan { found, records, phantoms, .. } = scan;
            Ok(QueryResult::Scanned { partition, found, records: records.finish(), phantoms })
        });
    }

    fn check_reachability(&self, producers: Option<ProducerHandles>) {
        self.submit(async move |caller| {
            let reachability = caller.call(CallKind::Health, move |scanner| {
                let reachability = scanner.reachability()?;
                let stranded = reachability == Reachability::Up
                    && producers.is_some_and(|producers| producers.has_no_broker());
                Ok(if stranded { Reachability::ClientStranded } else { reachability })
            });
            Ok(QueryResult::Reachability(reachability.await??))
        });
    }

    fn diagnose(
        &self,
        partition: QueriedPartition<'_>,
        min_in_sync: Option<usize>,
        producers: ProducerHandles,
    ) {
        let QueriedPartition { id: partition, topic, number } = partition;
        let topic = topic.to_owned();
        self.submit(async move |caller| {
            let diagnose =
                move |scanner: &PartitionScanner| scanner.diagnose(&topic, number, min_in_sync, &producers);
            Ok(QueryResult::Diagnosed {
                partition,
                diagnosis: caller.call(CallKind::Health, diagnose).await?,
            })
        });
    }

    fn scan_gap_before_probe(&self, partition: QueriedPartition<'_>, gap: OffsetGap) {
        let QueriedPartition { id: partition, topic, number } = partition;
        let topic: Arc<str> = topic.into();
        self.submit(async move |caller| {
            let scan = Scan::new(&topic, number, Scope::BeforeProbe(gap), gap.range);
            let Scan { found, records, .. } = read(&caller, scan, FairShare::first()).await?;
            Ok(QueryResult::GapScanned { partition, gap, found, records: records.finish() })
        });
    }

    /// Queues the scan of a gap between records of this process.
    fn scan_gap_later(&self, QueriedPartition { id, topic, number }: QueriedPartition<'_>, gap: OffsetGap) {
        let added =
            self.gaps.lock().unwrap_or_else(PoisonError::into_inner).add(id, topic, number, gap.range);
        if added.skipped > 0 {
            drop(self.results.send(QueryResult::GapsSkipped(added.skipped)));
        }
        if added.must_start {
            let (gaps, results) = (Arc::clone(&self.gaps), self.results.clone());
            let caller = self.caller.clone();
            tokio::spawn(async move {
                tokio::select! {
                    read = read_gaps(&caller, &gaps, &results) => {
                        read.unwrap_or_else(|error| drop(results.send(QueryResult::Failed(error))));
                    }
                    () = results.closed() => {}
                }
            });
        }
    }

    fn submit<F: Future<Output = Result<QueryResult, QueryError>> + Send + 'static>(
        &self,
        query: impl FnOnce(Caller) -> F,
    ) {
        spawn(&self.caller, &self.results, query);
    }
}

impl Drop for KafkaQueries {
    fn drop(&mut self) {
        self.caller.scanner.cancel();
    }
}

/// Runs a query until it completes, or the session ends.
fn spawn<F: Future<Output = Result<QueryResult, QueryError>> + Send + 'static>(
    caller: &Caller,
    results: &mpsc::UnboundedSender<QueryResult>,
    query: impl FnOnce(Caller) -> F,
) {
    let (query, results) = (query(caller.clone()), results.clone());
    tokio::spawn(async move {
        tokio::select! {
            result = query => drop(results.send(result.unwrap_or_else(QueryResult::Failed))),
            () = results.closed() => {}
        }
    });
}

/// Waits until a topic exists. Reports that it is missing until then.
async fn wait_for_topic(
    caller: &Caller,
    name: &str,
    results: &mpsc::UnboundedSender<QueryResult>,
) -> Result<(), QueryError> {
    let mut logged = false;
    while partition_count(caller, name).await? == 0 {
        if !std::mem::replace(&mut logged, true) {
            tracing::warn!(topic = %name, "the topic does not exist; {}", ErrorKind::TopicMissing.remedy());
        }
        // Report it each time, because a new phase of the session clears earlier reports.
        drop(results.send(QueryResult::TopicMissing(name.to_owned())));
        tokio::time::sleep(FIND_TOPIC_EVERY).await;
    }
    drop(results.send(QueryResult::TopicExists(name.to_owned())));
    Ok(())
}

pub(super) async fn partition_count(caller: &Caller, name: &str) -> Result<i32, QueryError> {
    let name = name.to_owned();
    caller.persist(CallKind::Metadata, move |scanner| scanner.partition_count(&name)).await
}

pub(super) async fn watermarks(
    caller: &Caller,
    topic: &Arc<str>,
    number: PartitionNumber,
) -> Result<OffsetRange, QueryError> {
    let topic = Arc::clone(topic);
    caller.persist(CallKind::Offsets, move |scanner| scanner.watermarks(&topic, number)).await
}

/// The settings of a topic; `None` if the relay may not read them.
pub(super) async fn describe(caller: &Caller, topic: &str) -> Result<Option<TopicSettings>, QueryError> {
    let topic = topic.to_owned();
    caller.persist(CallKind::Metadata, move |scanner| scanner.describe(&topic)).await
}

/// The partition count, end offsets and settings of an existing topic.
async fn topic(caller: &Caller, name: &str) -> Result<FoundTopic, QueryError> {
    let mut partitions = partition_count(caller, name).await?;
    // Not every broker knows a topic that was just created.
    while partitions == 0 {
        tokio::time::sleep(PAUSE).await;
        partitions = partition_count(caller, name).await?;
    }
    let (topic, mut ends) = (Arc::from(name), BTreeMap::new());
    for number in (0..partitions).map(PartitionNumber) {
        let offset = watermarks(caller, &topic, number).await?.until;
        ends.insert(number, ScanStart { offset, last: None });
    }
    Ok(FoundTopic { partitions, ends, settings: describe(caller, name).await? })
}

/// Compares a partition with the checkpoint. Returns the offset at which a scan of it starts.
async fn verify_partition(
    caller: &Caller,
    topic: &Arc<str>,
    number: PartitionNumber,
    start: ScanStart,
    compacted: Option<bool>,
    when: Verification,
) -> Result<Offset, QueryError> {
    let reached = start.last.map_or(Offset::ZERO, |last| last.offset.next()).max(start.offset);
    let mut present = watermarks(caller, topic, number).await?;
    for _ in 1..VERIFY_ATTEMPTS {
        if present.until >= reached {
            break;
        }
        tokio::time::sleep(VERIFY_PAUSE).await;
        present = watermarks(caller, topic, number).await?;
    }
    let found = match start.last {
        Some(last) if present.contains(last.offset) => {
            Some(record_at(caller, topic, number, last.offset).await?)
        }
        _ => None,
    };
    let lost = |what| QueryError::Lost { topic: topic.to_string(), partition: number, what };
    let scan_from = verify::check_same_partition(topic, &start, present, found, compacted).map_err(lost)?;
    // A record beyond the end of the server's WAL reveals that the database was restored. Checking the last record is
    // enough, while this session has sent nothing.
    if when == Verification::AtStart
        && let Some(last) = present.last().filter(|last| *last >= reached)
    {
        let newest = record_at(caller, topic, number, last).await?;
        caller.scanner.check_not_ahead(topic, number, last, newest)?;
    }
    Ok(scan_from)
}

/// What is at an offset.
async fn record_at(
    caller: &Caller,
    topic: &Arc<str>,
    number: PartitionNumber,
    offset: Offset,
) -> Result<verify::RecordAt, QueryError> {
    let mut share = FairShare::first();
    loop {
        let name = Arc::clone(topic);
        let read = move |scanner: &PartitionScanner| scanner.record_at(&name, number, offset, &share);
        if let Some(found) = caller.call(CallKind::Records, read).await?? {
            return Ok(found);
        }
        share = share.longer();
        tokio::time::sleep(PAUSE).await;
        // Do not make others wait again before the partition's leader responds.
        watermarks(caller, topic, number).await?;
    }
}

/// Scans a partition from `from` to its end for this outbox's records. The records found count as acknowledged only if
/// enough replicas for an acknowledgement are in sync, both before and after the scan.
pub(super) async fn scan_partition(
    caller: &Caller,
    topic: &Arc<str>,
    number: PartitionNumber,
    scope: Scope,
    from: Offset,
    mut min_in_sync: Option<usize>,
) -> Result<Scan, QueryError> {
    loop {
        while !is_replicated(caller, topic, number, min_in_sync).await? {
            tracing::debug!(%topic, %number, "fewer replicas in sync than min.insync.replicas");
            tokio::time::sleep(VERIFY_PAUSE).await;
            // Read the setting again: administrators may lower it to let delivery continue.
            min_in_sync = describe(caller, topic).await?.and_then(|settings| settings.min_in_sync_replicas);
        }
        let until = watermarks(caller, topic, number).await?.until;
        if until < from {
            let what = format!("it ends at offset {until}, but it had already reached {from}");
            return Err(QueryError::Lost { topic: topic.to_string(), partition: number, what });
        }
        let scan = Scan::new(topic, number, scope.clone(), OffsetRange { from, until });
        let scan = read(caller, scan, FairShare::first()).await?;
        if is_replicated(caller, topic, number, min_in_sync).await? {
            return Ok(scan);
        }
    }
}

async fn is_replicated(
    caller: &Caller,
    topic: &Arc<str>,
    number: PartitionNumber,
    min_in_sync: Option<usize>,
) -> Result<bool, QueryError> {
    let topic = Arc::clone(topic);
    let replicas = move |scanner: &PartitionScanner| scanner.replicas(&topic, number);
    let replicas = caller.persist(CallKind::Metadata, replicas).await?;
    Ok(verify::counts_as_acknowledged(replicas, min_in_sync))
}

/// Completes `scan`.
async fn read(caller: &Caller, mut scan: Scan, mut share: FairShare) -> Result<Scan, QueryError> {
    let (topic, number) = (Arc::clone(&scan.topic), scan.partition);
    let mut attempts = 1;
    loop {
        let OffsetRange { from: low, until } = watermarks(caller, &topic, number).await?;
        if until < scan.end() {
            let what = format!("it ends at offset {until}, but it had already reached {}", scan.end());
            return Err(QueryError::Lost { topic: topic.to_string(), partition: number, what });
        }
        scan.skip_to(low);
        if scan.is_done() {
            return Ok(scan);
        }
        let step;
        let run = move |scanner: &PartitionScanner| scanner.scan(&mut scan, &share).map(|step| (step, scan));
        (step, scan) = caller.call(CallKind::Records, run).await??;
        match step {
            Step::Done => return Ok(scan),
            Step::EndedEarly if attempts >= VERIFY_ATTEMPTS => return Ok(scan),
            Step::EndedEarly => {
                attempts += 1;
                tokio::time::sleep(VERIFY_PAUSE).await;
            }
            Step::Yielded => {
                share = share.longer();
                tokio::time::sleep(PAUSE).await;
            }
            Step::OutOfRange => {}
        }
    }
}

/// Scans the queued gaps, until there are none.
async fn read_gaps(
    caller: &Caller,
    gaps: &Mutex<OffsetGaps>,
    results: &mpsc::UnboundedSender<QueryResult>,
) -> Result<(), QueryError> {
    loop {
        let next = gaps.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((partition, PartitionGaps { topic, number, gaps: ranges, .. })) = next else {
            return Ok(());
        };
        let Some((first, last)) = ranges.front().zip(ranges.back()) else { continue };
        let all = OffsetRange { from: first.from, until: last.until };
        let began = Instant::now();
        let scan = Scan::new(&topic, number, Scope::Gaps(ranges.into()), all);
        let scan = read(caller, scan, FairShare::brief(offset_gaps::BRIEF_TURN)).await?;
        if !scan.strays.is_empty() {
            let Scan { strays, more_strays: more, .. } = scan;
            drop(results.send(QueryResult::Strays { partition, strays, more }));
        }
        let (took, now) = (began.elapsed(), Instant::now());
        let pause = gaps.lock().unwrap_or_else(PoisonError::into_inner).on_scanned(took, now);
        tokio::time::sleep(pause).await;
    }
}
