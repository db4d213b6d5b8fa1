//! What delivery asks Kafka, and the results. [`queries`](super::queries) runs the queries.

use std::collections::BTreeMap;

use crate::kafka::diagnosis::Diagnosis;
use crate::kafka::scan::Stray;
use crate::kafka::scanner::{FoundTopic, QueryError, Reachability};
use crate::progress::fingerprints::FoundRecords;
use crate::progress::partition_dedup::{OffsetGap, ScanResult};
use crate::progress::phantoms::Phantoms;
use crate::topics::partitions::PartitionId;
use crate::topics::settings::TopicSettings;
use crate::topics::watch::TopicState;

/// The result of a query.
#[derive(Debug)]
pub enum QueryResult {
    /// A requested topic exists.
    Topic {
        /// The topic.
        name: String,
        /// Its partitions and settings.
        found: FoundTopic,
    },
    /// Whether a topic is missing.
    TopicMissing {
        /// The topic.
        name: String,
        /// Whether it is missing.
        missing: bool,
    },
    /// A topic has more partitions, and the producers know them.
    Grown {
        /// The topic.
        name: String,
        /// Its partitions and settings.
        found: FoundTopic,
    },
    /// The settings of a topic.
    Settings {
        /// The topic.
        topic: String,
        /// `None` if the relay may not read them.
        settings: Option<TopicSettings>,
    },
    /// A partition matches the checkpoint.
    Verified {
        /// The partition.
        partition: PartitionId,
        /// The offset at which a scan of it starts.
        search: i64,
    },
    /// The states of topics from the metadata; `None` if Kafka did not respond.
    TopicStates(Option<BTreeMap<String, TopicState>>),
    /// A partition was scanned.
    Scanned {
        /// The partition.
        partition: PartitionId,
        /// The result.
        found: ScanResult,
        /// This outbox's records in it.
        records: FoundRecords,
        /// Records whose rows the server does not have.
        phantoms: Phantoms,
    },
    /// The gap before the probe was scanned.
    GapScanned {
        /// The partition.
        partition: PartitionId,
        /// The gap.
        gap: OffsetGap,
        /// The result.
        found: ScanResult,
        /// This outbox's records in it.
        records: FoundRecords,
    },
    /// Gaps between records of this process were scanned, and contain other records with this outbox's `ce_source`.
    Strays {
        /// The partition.
        partition: PartitionId,
        /// The records that were kept.
        strays: Vec<Stray>,
        /// The number of further records.
        more: u64,
    },
    /// Whether Kafka is reachable.
    Reachability(Reachability),
    /// Why a partition acknowledges nothing.
    Diagnosed {
        /// The partition.
        partition: PartitionId,
        /// The diagnosis.
        diagnosis: Diagnosis,
    },
    /// The query failed.
    Failed(QueryError),
}
