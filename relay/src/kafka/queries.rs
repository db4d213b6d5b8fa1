//! Questions to Kafka that take a while. Each is a task that makes blocking calls on the threads of [`lanes`](super::call_pool);
//! the answer comes back through a queue, and the rows that need it wait meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::error::ErrorKind;
use crate::kafka::call_pool::{Caller, Lane, PAUSE};
use crate::kafka::diagnosis::Diagnosis;
use crate::kafka::offset_gaps::{self, OffsetGaps, PartitionGaps};
use crate::kafka::producers::ProducerHandles;
use crate::kafka::scan::{Range, Scan, Step, Stray};
use crate::kafka::scanner::{FairShare, FoundTopic, PartitionScanner, QueryError, Reachability};
use crate::kafka::verify;
use crate::progress::fingerprints::FoundRecords;
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::{PartitionId, ScanStart, ToVerify};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::TopicState;

/// How often a topic that does not exist is looked for.
const FIND_TOPIC_EVERY: Duration = Duration::from_secs(1);
/// A partition that seems too short is looked at so often, this far apart: a leader that was just elected may not yet
/// know how far its followers are.
const VERIFY_ATTEMPTS: u32 = 3;
const VERIFY_PAUSE: Duration = Duration::from_millis(700);

/// The answer to a question.
#[derive(Debug)]
pub enum QueryResult {
    /// A topic was found.
    Topic {
        /// Its name.
        name: String,
        /// What it looks like.
        found: FoundTopic,
    },
    /// A topic does not exist, or does now.
    TopicMissing {
        /// Its name.
        name: String,
        /// Whether it is missing.
        missing: bool,
    },
    /// A topic that has grown was looked at.
    Grown {
        /// Its name.
        name: String,
        /// What it looks like now.
        found: FoundTopic,
    },
    /// The settings of a topic.
    Settings {
        /// Its name.
        topic: String,
        /// `None` where they may not be read.
        settings: Option<TopicSettings>,
    },
    /// A partition holds what is remembered of it.
    Inspected {
        /// Which.
        partition: PartitionId,
        /// Where a search of it starts.
        search: i64,
    },
    /// What the metadata says of topics; `None` while Kafka does not answer.
    Looked(Option<BTreeMap<String, TopicState>>),
    /// A partition was searched.
    Searched {
        /// Which.
        partition: PartitionId,
        /// What it holds.
        found: ScanResult,
        /// Which records of ours.
        records: FoundRecords,
        /// What it holds of another history.
        phantoms: Phantoms,
    },
    /// The gap before the probe was read.
    HoleRead {
        /// In which partition.
        partition: PartitionId,
        /// Which.
        hole: OffsetGap,
        /// What it holds.
        found: ScanResult,
        /// Which records of ours.
        records: FoundRecords,
    },
    /// Gaps between records of ours were read, and held other records under our name.
    Strays {
        /// In which partition.
        partition: PartitionId,
        /// Those that are remembered.
        strays: Vec<Stray>,
        /// How many more.
        more: u64,
    },
    /// Whether Kafka could be reached.
    Reached(Reachability),
    /// Why a partition acknowledges nothing.
    Examined {
        /// Which.
        partition: PartitionId,
        /// What is wrong with it.
        ailment: Diagnosis,
    },
    /// There is no answer.
    Failed(QueryError),
}

/// Asks questions and queues the answers.
pub struct KafkaQueries {
    caller: Caller,
    answers: mpsc::UnboundedSender<QueryResult>,
    gaps: Arc<Mutex<OffsetGaps>>,
}

impl KafkaQueries {
    /// Questions go to `searcher`.
    pub fn new(searcher: Arc<PartitionScanner>) -> (KafkaQueries, mpsc::UnboundedReceiver<QueryResult>) {
        // Unbounded: there are at most a few questions per topic and partition.
        let (answers, queue) = mpsc::unbounded_channel();
        let gaps = Arc::new(Mutex::new(OffsetGaps::new(Instant::now())));
        (KafkaQueries { caller: Caller::new(searcher), answers, gaps }, queue)
    }

    /// Looks for a topic, until it exists.
    pub fn find_topic(&self, name: &str) {
        let (name, answers) = (name.to_owned(), self.answers.clone());
        self.submit(async move |caller| {
            wait_for_topic(&caller, &name, &answers).await?;
            let found = topic(&caller, &name).await?;
            Ok(QueryResult::Topic { name, found })
        });
    }

    /// Looks at a topic that has more partitions than before, until the producers know of them as well: they would not
    /// take records for them.
    pub fn query_growth(&self, name: &str, producers: ProducerHandles) {
        let name = name.to_owned();
        let producers = Arc::new(producers);
        self.submit(async move |caller| {
            let found = topic(&caller, &name).await?;
            loop {
                let (producers, name) = (Arc::clone(&producers), name.clone());
                let know = move |_: &PartitionScanner| producers.know_partitions(&name, found.partitions);
                if caller.call(Lane::Health, know).await? {
                    break;
                }
                tokio::time::sleep(FIND_TOPIC_EVERY).await;
            }
            Ok(QueryResult::Grown { name, found })
        });
    }

    /// Reads the settings of a topic, and compares its partitions with what is remembered of them. A topic that does
    /// not exist is waited for. `at_start`: this session has sent nothing yet.
    pub fn verify(&self, topic: &str, partitions: Vec<ToVerify>, at_start: bool) {
        let (name, answers) = (topic.to_owned(), self.answers.clone());
        self.submit(async move |caller| {
            wait_for_topic(&caller, &name, &answers).await?;
            let settings = describe(&caller, &name).await;
            let compacted = settings.map(|settings| settings.compacted);
            let topic: Arc<str> = name.as_str().into();
            // One question for each: the leader of one may be away.
            for partition in partitions {
                let topic = Arc::clone(&topic);
                spawn(&caller, &answers, async move |caller| {
                    let ToVerify { id, number, floor } = partition;
                    let search =
                        verify_partition(&caller, &topic, number, floor, compacted, at_start).await?;
                    Ok(QueryResult::Inspected { partition: id, search })
                });
            }
            Ok(QueryResult::Settings { topic: name, settings })
        });
    }

    /// Reads the settings of a topic.
    pub fn describe(&self, topic: &str) {
        let topic = topic.to_owned();
        self.submit(async move |caller| {
            let settings = describe(&caller, &topic).await;
            Ok(QueryResult::Settings { topic, settings })
        });
    }

    /// Looks at the metadata of topics.
    pub fn query_topic_states(&self, topics: Vec<String>) {
        self.submit(async move |caller| {
            Ok(QueryResult::Looked(
                caller.call(Lane::Health, move |searcher| searcher.topic_states(&topics)).await?,
            ))
        });
    }

    /// Searches a partition from `from` to its end, once its end is as good as acknowledged.
    pub fn scan(
        &self,
        partition: PartitionId,
        topic: &str,
        number: i32,
        from: i64,
        min_in_sync: Option<usize>,
    ) {
        let topic: Arc<str> = topic.into();
        self.submit(async move |caller| {
            let scan = scan_partition(&caller, &topic, number, from, min_in_sync).await?;
            let Scan { found, records, phantoms, .. } = scan;
            Ok(QueryResult::Searched { partition, found, records, phantoms })
        });
    }

    /// Asks whether Kafka can be reached, also by these producers.
    pub fn query_reachability(&self, producers: Option<ProducerHandles>) {
        self.submit(async move |caller| {
            let reach = caller.call(Lane::Health, move |searcher| {
                let reach = searcher.reachability()?;
                let lost =
                    reach == Reachability::Up && producers.is_some_and(|producers| producers.has_no_broker());
                Ok(if lost { Reachability::ClientStranded } else { reach })
            });
            Ok(QueryResult::Reached(reach.await??))
        });
    }

    /// Asks why a partition acknowledges nothing of what `producers` have sent to it.
    pub fn diagnose(
        &self,
        partition: PartitionId,
        topic: &str,
        number: i32,
        min_in_sync: Option<usize>,
        producers: ProducerHandles,
    ) {
        let topic = topic.to_owned();
        self.submit(async move |caller| {
            let examine =
                move |searcher: &PartitionScanner| searcher.diagnose(&topic, number, min_in_sync, &producers);
            Ok(QueryResult::Examined { partition, ailment: caller.call(Lane::Health, examine).await? })
        });
    }

    /// Reads the gap before the probe, which rows wait for.
    pub fn scan_gap_before_probe(&self, partition: PartitionId, topic: &str, number: i32, hole: OffsetGap) {
        let topic: Arc<str> = topic.into();
        self.submit(async move |caller| {
            let scan = Scan::new(&topic, number, Range::BeforeProbe(hole), hole.from, hole.until);
            let Scan { found, records, .. } = read(&caller, scan, FairShare::first()).await?;
            Ok(QueryResult::HoleRead { partition, hole, found, records })
        });
    }

    /// Reads a gap between records of ours some time. Answers how many gaps are skipped in exchange.
    pub fn scan_gap_later(&self, partition: PartitionId, topic: &str, number: i32, gap: (i64, i64)) -> u64 {
        let added =
            self.gaps.lock().unwrap_or_else(PoisonError::into_inner).add(partition, topic, number, gap);
        if added.begins {
            let (gaps, answers) = (Arc::clone(&self.gaps), self.answers.clone());
            let caller = self.caller.clone();
            tokio::spawn(async move {
                tokio::select! {
                    read = read_gaps(&caller, &gaps, &answers) => {
                        read.unwrap_or_else(|error| drop(answers.send(QueryResult::Failed(error))));
                    }
                    () = answers.closed() => {}
                }
            });
        }
        added.skipped
    }

    fn submit<F: Future<Output = Result<QueryResult, QueryError>> + Send + 'static>(
        &self,
        question: impl FnOnce(Caller) -> F,
    ) {
        spawn(&self.caller, &self.answers, question);
    }
}

impl Drop for KafkaQueries {
    fn drop(&mut self) {
        self.caller.searcher.cancel();
    }
}

/// Asks a question until it is answered, or the session ends.
fn spawn<F: Future<Output = Result<QueryResult, QueryError>> + Send + 'static>(
    caller: &Caller,
    answers: &mpsc::UnboundedSender<QueryResult>,
    question: impl FnOnce(Caller) -> F,
) {
    let (question, answers) = (question(caller.clone()), answers.clone());
    tokio::spawn(async move {
        tokio::select! {
            answer = question => drop(answers.send(answer.unwrap_or_else(QueryResult::Failed))),
            () = answers.closed() => {}
        }
    });
}

/// Waits until a topic exists, and reports that it is missing meanwhile.
async fn wait_for_topic(
    caller: &Caller,
    name: &str,
    answers: &mpsc::UnboundedSender<QueryResult>,
) -> Result<(), QueryError> {
    let report = |missing| drop(answers.send(QueryResult::TopicMissing { name: name.to_owned(), missing }));
    let mut logged = false;
    while partition_count(caller, name).await? == 0 {
        if !std::mem::replace(&mut logged, true) {
            tracing::warn!(topic = %name, "the topic does not exist; {}", ErrorKind::TopicMissing.remedy());
        }
        // Each time: another phase of the session forgets what was reported before.
        report(true);
        tokio::time::sleep(FIND_TOPIC_EVERY).await;
    }
    report(false);
    Ok(())
}

async fn partition_count(caller: &Caller, name: &str) -> Result<i32, QueryError> {
    let name = name.to_owned();
    caller.persist(Lane::Metadata, move |searcher| searcher.partition_count(&name)).await
}

async fn watermarks(caller: &Caller, topic: &Arc<str>, number: i32) -> Result<(i64, i64), QueryError> {
    let topic = Arc::clone(topic);
    caller.persist(Lane::Offsets, move |searcher| searcher.watermarks(&topic, number)).await
}

async fn describe(caller: &Caller, topic: &str) -> Option<TopicSettings> {
    let _place = caller.metadata_place().await;
    caller.searcher.describe(topic).await
}

/// Partition count, ends and settings of a topic that exists.
async fn topic(caller: &Caller, name: &str) -> Result<FoundTopic, QueryError> {
    let mut partitions = partition_count(caller, name).await?;
    // A topic that was just made is not known to every broker yet.
    while partitions == 0 {
        tokio::time::sleep(PAUSE).await;
        partitions = partition_count(caller, name).await?;
    }
    let (topic, mut ends) = (Arc::from(name), BTreeMap::new());
    for partition in 0..partitions {
        let (_, search) = watermarks(caller, &topic, partition).await?;
        ends.insert(partition, ScanStart { search, last: None });
    }
    Ok(FoundTopic { partitions, ends, settings: describe(caller, name).await })
}

/// Compares a partition with what is remembered of it; answers where a search of it starts.
async fn verify_partition(
    caller: &Caller,
    topic: &Arc<str>,
    number: i32,
    floor: ScanStart,
    compacted: Option<bool>,
    at_start: bool,
) -> Result<i64, QueryError> {
    let reached = floor.last.map_or(0, |last| last.offset + 1).max(floor.search);
    let (mut low, mut high) = watermarks(caller, topic, number).await?;
    for _ in 1..VERIFY_ATTEMPTS {
        if high >= reached {
            break;
        }
        tokio::time::sleep(VERIFY_PAUSE).await;
        (low, high) = watermarks(caller, topic, number).await?;
    }
    let found = match floor.last {
        Some(last) if low <= last.offset && last.offset < high => {
            Some(record_at(caller, topic, number, last.offset).await?)
        }
        _ => None,
    };
    let lost = |what| QueryError::Lost { topic: topic.to_string(), partition: number, what };
    let search = verify::is_same_partition(topic, &floor, low, high, found, compacted).map_err(lost)?;
    // A database that was put back shows by records beyond its end: one is enough, before anything is sent.
    if at_start && high > reached && high > low {
        let newest = record_at(caller, topic, number, high - 1).await?;
        caller.searcher.check_not_ahead(topic, number, high - 1, newest)?;
    }
    Ok(search)
}

/// What lies at an offset.
async fn record_at(
    caller: &Caller,
    topic: &Arc<str>,
    number: i32,
    offset: i64,
) -> Result<verify::RecordAt, QueryError> {
    let mut turn = FairShare::first();
    loop {
        let name = Arc::clone(topic);
        let look = move |searcher: &PartitionScanner| searcher.record_at(&name, number, offset, &turn);
        if let Some(found) = caller.call(Lane::Records, look).await?? {
            return Ok(found);
        }
        turn = turn.longer();
        tokio::time::sleep(PAUSE).await;
        // Only once its leader answers does it keep others waiting again.
        watermarks(caller, topic, number).await?;
    }
}

/// Reads a partition from `from` to its end, and reports our own records. What is seen counts as acknowledged only while
/// as many replicas are in sync as an acknowledgement needs, before the search and after it.
async fn scan_partition(
    caller: &Caller,
    topic: &Arc<str>,
    number: i32,
    from: i64,
    mut min_in_sync: Option<usize>,
) -> Result<Scan, QueryError> {
    loop {
        while !is_replicated(caller, topic, number, min_in_sync).await? {
            tracing::debug!(%topic, number, "fewer replicas in sync than min.insync.replicas");
            tokio::time::sleep(VERIFY_PAUSE).await;
            // Lowering it is what a person does to let delivery continue.
            min_in_sync = describe(caller, topic).await.and_then(|settings| settings.min_in_sync_replicas);
        }
        let (_, high) = watermarks(caller, topic, number).await?;
        if high < from {
            let what = format!("it ends at offset {high}, but {from} was reached before");
            return Err(QueryError::Lost { topic: topic.to_string(), partition: number, what });
        }
        let scan = Scan::new(topic, number, Range::ToEnd, from, high);
        let scan = read(caller, scan, FairShare::first()).await?;
        if is_replicated(caller, topic, number, min_in_sync).await? {
            return Ok(scan);
        }
    }
}

async fn is_replicated(
    caller: &Caller,
    topic: &Arc<str>,
    number: i32,
    min_in_sync: Option<usize>,
) -> Result<bool, QueryError> {
    let topic = Arc::clone(topic);
    let replicas = move |searcher: &PartitionScanner| searcher.replicas(&topic, number);
    let replicas = caller.persist(Lane::Metadata, replicas).await?;
    Ok(verify::counts_as_acknowledged(replicas, min_in_sync))
}

/// Reads all of `scan`.
async fn read(caller: &Caller, mut scan: Scan, mut turn: FairShare) -> Result<Scan, QueryError> {
    let (topic, number) = (Arc::clone(&scan.topic), scan.partition);
    let mut looks = 1;
    loop {
        let (low, high) = watermarks(caller, &topic, number).await?;
        if high < scan.end() {
            let what = format!("it ends at offset {high}, but {} was reached before", scan.end());
            return Err(QueryError::Lost { topic: topic.to_string(), partition: number, what });
        }
        scan.skip_to(low);
        if scan.is_done() {
            break;
        }
        let step;
        let on = move |searcher: &PartitionScanner| searcher.scan(&mut scan, &turn).map(|step| (step, scan));
        (step, scan) = caller.call(Lane::Records, on).await??;
        match step {
            Step::Done => break,
            Step::Short if looks >= VERIFY_ATTEMPTS => break,
            Step::Short => {
                looks += 1;
                tokio::time::sleep(VERIFY_PAUSE).await;
            }
            Step::GaveWay => {
                turn = turn.longer();
                tokio::time::sleep(PAUSE).await;
            }
            Step::OutOfRange => {}
        }
    }
    scan.records.sort();
    Ok(scan)
}

/// Reads the gaps that wait, until there are none.
async fn read_gaps(
    caller: &Caller,
    gaps: &Mutex<OffsetGaps>,
    answers: &mpsc::UnboundedSender<QueryResult>,
) -> Result<(), QueryError> {
    loop {
        let next = gaps.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((partition, PartitionGaps { topic, number, gaps: ranges, .. })) = next else {
            return Ok(());
        };
        let Some((from, until)) = ranges.front().zip(ranges.back()).map(|(first, last)| (first.0, last.1))
        else {
            continue;
        };
        let began = Instant::now();
        let scan = Scan::new(&topic, number, Range::Gaps(ranges.into()), from, until);
        let scan = read(caller, scan, FairShare::brief(offset_gaps::BRIEF_TURN)).await?;
        if !scan.strays.is_empty() {
            let Scan { strays, more_strays: more, .. } = scan;
            drop(answers.send(QueryResult::Strays { partition, strays, more }));
        }
        let (took, now) = (began.elapsed(), Instant::now());
        let pause = gaps.lock().unwrap_or_else(PoisonError::into_inner).pause_after(took, now);
        tokio::time::sleep(pause).await;
    }
}
