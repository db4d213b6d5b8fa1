//! What delivery asks Kafka, and the results. [`queries`](super::queries) runs the queries.

use std::collections::BTreeMap;

use pg_replication::CommitLsn;

use crate::kafka::diagnosis::Diagnosis;
use crate::kafka::evidence::DeliveredEvents;
use crate::kafka::scan::Stray;
use crate::kafka::scanner::{FoundTopic, QueryError, Reachability};
use crate::progress::fingerprints::FoundRecords;
use crate::progress::offset::Offset;
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::{PartitionId, PartitionNumber, ScanStarts, ToVerify};
use crate::topics::settings::TopicSettings;
use crate::topics::watch::TopicState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueriedPartition<'a> {
    pub id: PartitionId,
    pub topic: &'a str,
    pub number: PartitionNumber,
}

/// When a topic is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Before this session has sent anything: the end of a partition shows what earlier sessions, or another server's
    /// relay, have sent.
    AtStart,
    /// After the topic was missing, has a new leader, or Kafka was unavailable.
    Later,
}

/// A query. It is repeated while Kafka does not respond. A refusal, or lost records, end the session.
#[derive(Debug)]
pub enum Query<'a> {
    /// Finds a topic, once it exists.
    FindTopic(&'a str),
    /// Finds the new partitions of a topic, once the producers know them, too: until then they would not accept records
    /// for them.
    Growth(&'a str),
    /// Reads the settings of a topic, and compares its partitions with the checkpoint. Waits for a topic that does not
    /// exist.
    Verify {
        topic: &'a str,
        /// The partitions, as the checkpoint knows them.
        partitions: Vec<ToVerify>,
        /// Whether this session may have sent records to it.
        when: Verification,
    },
    /// Reads the settings of a topic.
    Settings(&'a str),
    /// Reads the metadata of topics.
    TopicStates(Vec<String>),
    /// Scans a partition from `from` to its end, once enough replicas are in sync for its records to count as
    /// acknowledged.
    Scan {
        partition: QueriedPartition<'a>,
        /// The first offset to read.
        from: Offset,
        /// `min.insync.replicas` of the topic, if known.
        min_in_sync: Option<usize>,
    },
    /// Scans the gap before the probe, which rows wait for.
    GapBeforeProbe(QueriedPartition<'a>, OffsetGap),
    /// Scans a gap between records of this process, when there is time for it.
    Gap(QueriedPartition<'a>, OffsetGap),
    /// Reads which events Kafka has already of the rows that a refill looks at.
    Evidence {
        /// Where to begin in each partition.
        starts: &'a ScanStarts,
        /// Only events committed before it count.
        before: CommitLsn,
    },
    /// Whether Kafka is reachable, and with `of_producers` whether the producers can reach it, too.
    Reachability { of_producers: bool },
    /// Why a partition acknowledges nothing of what was sent to it.
    Diagnosis {
        partition: QueriedPartition<'a>,
        /// `min.insync.replicas` of the topic, if known.
        min_in_sync: Option<usize>,
    },
}

#[derive(Debug)]
pub enum QueryResult {
    /// A requested topic exists.
    Topic {
        name: String,
        /// Its partitions and settings.
        found: FoundTopic,
    },
    /// A topic that rows or verification wait for does not exist.
    TopicMissing(String),
    TopicExists(String),
    /// A topic has more partitions, and the producers know them.
    Grown {
        name: String,
        /// Its partitions and settings.
        found: FoundTopic,
    },
    /// The settings of a topic.
    Settings {
        topic: String,
        /// `None` if the relay may not read them.
        settings: Option<TopicSettings>,
    },
    /// A partition matches the checkpoint.
    Verified {
        partition: PartitionId,
        /// The offset at which a scan of it starts.
        scan_from: Offset,
    },
    /// The states of topics from the metadata; `None` if Kafka did not respond.
    TopicStates(Option<BTreeMap<String, TopicState>>),
    Scanned {
        partition: PartitionId,
        found: ScanResult,
        /// This outbox's records in it.
        records: FoundRecords,
        /// Records whose rows the server does not have.
        phantoms: Phantoms,
    },
    /// The gap before the probe was scanned.
    GapScanned {
        partition: PartitionId,
        gap: OffsetGap,
        found: ScanResult,
        /// This outbox's records in it.
        records: FoundRecords,
    },
    /// Gaps between records of this process were scanned, and contain other records with this outbox's `ce_source`.
    Strays {
        partition: PartitionId,
        /// The records that were kept.
        strays: Vec<Stray>,
        /// The number of further records.
        more: u64,
    },
    /// Gaps that were not scanned, because too many were queued.
    GapsSkipped(u64),
    /// The events that Kafka has already.
    Evidence(DeliveredEvents),
    Reachability(Reachability),
    /// Why a partition acknowledges nothing.
    Diagnosed {
        partition: PartitionId,
        diagnosis: Diagnosis,
    },
    Failed(QueryError),
}
