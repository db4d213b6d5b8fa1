//! Records that Kafka acknowledged and then lost: a record sent later got a lower offset than they had.

use crate::progress::offset::Offset;
use crate::topics::partitions::{PartitionNumber, ScanStarts};

/// What the next session has to know about the loss.
#[derive(Clone, Debug)]
pub struct LostRecords {
    pub topic: String,
    pub partition: PartitionNumber,
    /// The offset of the record that revealed the loss.
    pub offset: Offset,
}

impl LostRecords {
    /// Makes the next scan of the partition start after that record. Its position is higher than that of the lost
    /// records, so a scan that found it would treat them as delivered, although they must be sent again. If confirmed
    /// records are lost as well, nothing changes: the verification of the partition stops delivery.
    pub fn apply(&self, offsets: &mut ScanStarts) {
        let known = offsets.get_mut(&self.topic).and_then(|partitions| partitions.get_mut(&self.partition));
        if let Some(start) = known.filter(|start| start.offset <= self.offset) {
            start.offset = self.offset.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::topics::partitions::ScanStart;

    #[test]
    fn the_scan_starts_after_the_record_that_revealed_the_loss_unless_confirmed_records_are_lost() {
        let (partition, another) = (PartitionNumber(3), PartitionNumber(4));
        let lost = LostRecords { topic: "t".into(), partition, offset: Offset(10) };
        for (known, expected) in [(10, 11), (7, 11), (11, 11), (20, 20)] {
            let start = ScanStart { offset: Offset(known), last: None };
            let mut offsets = ScanStarts::from([(
                "t".into(),
                BTreeMap::from([(partition, start.clone()), (another, start)]),
            )]);
            lost.apply(&mut offsets);
            assert_eq!(offsets["t"][&partition].offset, Offset(expected));
            assert_eq!(offsets["t"][&another].offset, Offset(known), "another partition");
        }
    }
}
