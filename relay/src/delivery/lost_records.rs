//! Records that Kafka had acknowledged and has lost: one that was sent later came to lie before them.

use crate::topics::partitions::Offsets;

/// What the next session has to know of them.
#[derive(Clone, Debug)]
pub struct LostRecords {
    /// The topic.
    pub topic: String,
    /// The number of the partition.
    pub partition: i32,
    /// Where the record lies that showed the loss.
    pub offset: i64,
}

impl LostRecords {
    /// Lets a search of the partition begin behind that record. It has a higher position than the lost ones, which are to
    /// be sent again, and would make them seem delivered. Where confirmed records are lost as well nothing is changed: the
    /// inspection of the partition stops delivery.
    pub fn apply(&self, offsets: &mut Offsets) {
        let known = offsets.get_mut(&self.topic).and_then(|partitions| partitions.get_mut(&self.partition));
        if let Some(floor) = known.filter(|floor| floor.search <= self.offset) {
            floor.search = self.offset + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::topics::partitions::ScanStart;

    #[test]
    fn the_search_begins_behind_the_record_that_showed_the_loss_unless_confirmed_ones_are_lost() {
        let lost = LostRecords { topic: "t".into(), partition: 3, offset: 10 };
        for (search, expected) in [(10, 11), (7, 11), (11, 11), (20, 20)] {
            let floor = ScanStart { search, last: None };
            let mut offsets = Offsets::from([("t".into(), BTreeMap::from([(3, floor.clone()), (4, floor)]))]);
            lost.apply(&mut offsets);
            assert_eq!(offsets["t"][&3].search, expected);
            assert_eq!(offsets["t"][&4].search, search, "another partition");
        }
    }
}
