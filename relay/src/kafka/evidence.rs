//! The evidence of a refill: the events that Kafka has already of the rows that the refill looks at.
//!
//! The lost slot delivered in the order of commits, and a refill reads in the order of `seq`, so high-water marks cannot
//! tell which rows were delivered. The relay reads every partition that may have one of them, from the offsets before
//! which there is none, and remembers each event by its id and time. The time belongs to the key because administrators
//! republish rows under their ids, and such a row is another event.
//!
//! The evidence has to be complete: without a record that retention or compaction has removed, its row would be sent a
//! second time, behind newer events of its key.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use pg_replication::CommitLsn;

use crate::kafka::call_pool::Caller;
use crate::kafka::queries::{describe, partition_count, scan_partition, watermarks};
use crate::kafka::scan::{MAX_REFILLED, Scan, Scope};
use crate::kafka::scanner::QueryError;
use crate::progress::fingerprints::RecordCollector;
use crate::progress::offset::Offset;
use crate::topics::partitions::{PartitionNumber, ScanStarts};
use crate::topics::registry::PartitionName;

/// Maximum number of events: 16 MB.
pub const MAX_EVENTS: usize = 1_000_000;

/// Identifies an event by its id and its time, as the headers `ce_id` and `ce_time` show them. 128 bits, because two
/// events with the same key would be one, and the second never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey(u64, u64);

impl EventKey {
    pub fn new(id: &[u8], time: &[u8]) -> EventKey {
        let hash = |half: u8| {
            let mut hasher = DefaultHasher::new();
            (half, id, time).hash(&mut hasher);
            hasher.finish()
        };
        EventKey(hash(0), hash(1))
    }
}

/// Up to which offset each partition was read.
pub type Ends = BTreeMap<String, BTreeMap<PartitionNumber, Offset>>;

/// The events that Kafka has already.
#[derive(Debug)]
pub struct DeliveredEvents {
    /// Sorted.
    events: Vec<EventKey>,
    ends: Ends,
    twice: u64,
}

impl DeliveredEvents {
    /// `refilled` are events that the refill itself has sent: one that is among `events`, too, is in Kafka twice.
    pub fn new(mut events: Vec<EventKey>, refilled: &[EventKey], ends: Ends) -> DeliveredEvents {
        events.sort_unstable();
        events.dedup();
        let mut delivered = DeliveredEvents { events, ends, twice: 0 };
        delivered.twice = refilled.iter().filter(|event| delivered.contains(**event)).count() as u64;
        delivered
    }

    pub fn contains(&self, event: EventKey) -> bool {
        self.events.binary_search(&event).is_ok()
    }

    pub fn count(&self) -> usize {
        self.events.len()
    }

    /// The number of events that are in Kafka twice: an earlier process of the relay was still sending when the refill
    /// had begun.
    pub fn twice(&self) -> u64 {
        self.twice
    }

    /// Whether a record at `offset` was appended after its partition had been read.
    pub fn misses(&self, partition: PartitionName<'_>, offset: Offset) -> bool {
        let end = self.ends.get(partition.topic).and_then(|ends| ends.get(&partition.number));
        end.is_some_and(|end| offset >= *end)
    }
}

/// Reads the partitions of `starts` to their ends, and collects this outbox's events at positions before `before`: the
/// refill's own records come after it, so a second scan finds the same.
pub(super) async fn collect(
    caller: &Caller,
    starts: ScanStarts,
    before: CommitLsn,
) -> Result<DeliveredEvents, QueryError> {
    let (mut events, mut refilled, mut ends) = (Vec::new(), Vec::new(), Ends::new());
    for (name, partitions) in starts {
        let topic: Arc<str> = name.as_str().into();
        let count = partition_count(caller, &name).await?;
        let settings = if count > 0 { describe(caller, &name).await? } else { None };
        for (number, start) in partitions {
            let incomplete =
                |what| QueryError::EvidenceIncomplete { topic: name.clone(), partition: number, what };
            if number.0 >= count {
                return Err(incomplete("it does not exist any more".to_owned()));
            }
            let (from, range) = (start.offset, watermarks(caller, &topic, number).await?);
            if range.until < from {
                let end = range.until;
                return Err(incomplete(format!(
                    "it ends at offset {end}, before {from}: the topic was recreated, or has lost records"
                )));
            }
            if range.from > from {
                let low = range.from;
                return Err(incomplete(format!(
                    "retention has removed its records from offset {from} to {low}"
                )));
            }
            let scope = Scope::Evidence { before, room: MAX_EVENTS - events.len() };
            let min_in_sync = settings.and_then(|settings| settings.min_in_sync_replicas);
            let scan = scan_partition(caller, &topic, number, scope, start.offset, min_in_sync).await?;
            if !scan.is_done() {
                return Err(incomplete(format!("it seems to end before offset {}", scan.until)));
            }
            let compacted = settings.map(|settings| settings.compacted);
            if let Some(what) = incompleteness(&scan.records, start.offset, compacted) {
                return Err(incomplete(what));
            }
            ends.entry(name.clone()).or_default().insert(number, scan.until);
            let Scan { events: found, refilled: sent, .. } = scan;
            if events.len() + found.len() > MAX_EVENTS {
                return Err(incomplete(format!(
                    "the scanned partitions have more than {MAX_EVENTS} events up to here, the maximum for a refill"
                )));
            }
            events.extend(found);
            if refilled.len() < MAX_REFILLED {
                refilled.extend(sent);
            }
        }
    }
    Ok(DeliveredEvents::new(events, &refilled, ends))
}

/// Why a scan that began at offset `from` is no proof that other events are not in Kafka. `compacted` is the topic's
/// policy, if the relay may read it.
fn incompleteness(records: &RecordCollector, from: Offset, compacted: Option<bool>) -> Option<String> {
    if records.begins_late {
        return Some(format!("retention has removed records behind offset {from} during the scan"));
    }
    match compacted {
        _ if !records.has_missing_offsets => None,
        Some(false) => None, // Control records.
        Some(true) => Some(format!("the topic is compacted, and has offsets behind {from} without a record")),
        None => Some(format!(
            "it has offsets behind {from} without a record, and the relay may not read whether the topic is compacted"
        )),
    }
}

#[cfg(test)]
mod tests {
    use outbox::{Position, header};
    use pg_replication::TimelineHistory;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage, Timestamp};

    use super::*;
    use crate::kafka::own_records::OwnRecords;
    use crate::progress::lineage::Lineage;
    use crate::progress::offset::OffsetRange;
    use crate::testing::{commit, end};
    use crate::topics::kafka_time::KafkaTime;

    const SOURCE: &str = "/shop/public.outbox";

    fn record(offset: i64, headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        OwnedMessage::new(None, None, "t".into(), Timestamp::NotAvailable, 0, offset, Some(headers))
    }

    fn event(offset: i64, source: &str, timeline: u32, commit_lsn: u64) -> OwnedMessage {
        let sequence = Position { timeline, commit_lsn, index: 0 }.to_string();
        let id = offset.to_string();
        let (id, sequence) = ((header::CE_ID, id.as_str()), (header::CE_SEQUENCE, sequence.as_str()));
        record(offset, &[id, (header::CE_SOURCE, source), (header::CE_TIME, "10:00"), sequence])
    }

    /// The server left timeline 1 at 0x100, and the slot begins at 0x201.
    fn events_of(records: &[OwnedMessage], room: usize) -> Scan {
        let timelines = TimelineHistory::parse(2, "1\t0/100\n").unwrap();
        let lineage = Lineage::new(timelines, end(0x300));
        let own = OwnRecords { source: SOURCE.into(), lineage, server_started: KafkaTime(0) };
        let scope = Scope::Evidence { before: commit(0x200), room };
        let range = OffsetRange { from: Offset::ZERO, until: Offset(records.len() as i64) };
        let mut scan = Scan::new(&"t".into(), PartitionNumber(0), scope, range);
        let _ = records.iter().any(|record| scan.on_record(&own, record));
        scan
    }

    #[test]
    fn events_of_this_outbox_on_this_history_before_the_slot_count() {
        let records = [
            event(0, SOURCE, 1, 0xff),
            event(1, "/other/public.outbox", 1, 0xff),
            event(2, SOURCE, 1, 0x100),
            event(3, SOURCE, 2, 0x1ff),
            event(4, SOURCE, 2, 0x200),
            record(5, &[(header::CE_ID, "5"), (header::CE_SOURCE, SOURCE)]),
        ];
        let scan = events_of(&records, MAX_EVENTS);
        let key = |offset: &str| EventKey::new(offset.as_bytes(), b"10:00");
        assert_eq!(scan.events, [key("0"), key("3")]);
        assert_eq!(scan.refilled, [key("4")], "the row at 0x200 was sent by the refill itself");
        assert!(scan.is_done());
    }

    #[test]
    fn a_scan_ends_when_it_has_found_too_many_events() {
        let records: Vec<OwnedMessage> = (0..9).map(|offset| event(offset, SOURCE, 1, 0x10)).collect();
        let scan = events_of(&records, 3);
        assert_eq!((scan.events.len(), scan.is_done()), (4, true));
    }

    #[test]
    fn an_event_is_known_by_its_id_and_its_time() {
        let key = |id: &str, time: &str| EventKey::new(id.as_bytes(), time.as_bytes());
        let found = vec![key("a", "10:00"), key("b", "10:00"), key("a", "10:00")];
        let refilled = [key("b", "10:00"), key("b", "11:00"), key("c", "10:00")];
        let events = DeliveredEvents::new(found, &refilled, Ends::new());
        assert_eq!((events.count(), events.twice()), (2, 1));
        assert!(events.contains(key("a", "10:00")) && events.contains(key("b", "10:00")));
        assert!(!events.contains(key("a", "11:00")), "republished under its id");
        assert!(!events.contains(key("a1", "0:00")), "the parts are kept apart");
    }

    #[test]
    fn a_record_behind_the_end_of_the_scan_is_missed() {
        let ends = Ends::from([("t".to_owned(), BTreeMap::from([(PartitionNumber(1), Offset(7))]))]);
        let events = DeliveredEvents::new(Vec::new(), &[], ends);
        let misses = |topic, number, offset| {
            events.misses(PartitionName { topic, number: PartitionNumber(number) }, Offset(offset))
        };
        assert!(misses("t", 1, 7) && !misses("t", 1, 6));
        assert!(!misses("t", 0, 7) && !misses("u", 1, 7), "no relay has written there before the refill");
    }

    #[test]
    fn removed_records_make_the_evidence_incomplete() {
        let whole = RecordCollector::default();
        let (mut late, mut holes) = (whole.clone(), whole.clone());
        late.begins_late = true;
        holes.has_missing_offsets = true;
        for policy in [None, Some(false), Some(true)] {
            assert_eq!(incompleteness(&whole, Offset(7), policy), None);
            assert!(incompleteness(&late, Offset(7), policy).unwrap().contains("offset 7"));
        }
        assert_eq!(incompleteness(&holes, Offset(7), Some(false)), None, "control records");
        assert!(incompleteness(&holes, Offset(7), Some(true)).unwrap().contains("compacted"));
        assert!(incompleteness(&holes, Offset(7), None).unwrap().contains("may not read"));
    }
}
