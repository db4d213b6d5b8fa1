//! What the process remembers from one session to the next.

use pg_replication::EndLsn;

use super::slot_wait::SlotMemory;
use crate::delivery::{LostRecords, Refusal};
use crate::error::ErrorKind;
use crate::postgres::checkpoint::ClusterTimeline;

#[derive(Debug, Default)]
pub struct Memory {
    /// The position its sessions have confirmed, and on which timeline.
    pub reached: Option<(ClusterTimeline, EndLsn)>,
    /// The record that Kafka refused, if that ended the last session.
    pub refusal: Option<Refusal>,
    /// The records that Kafka lost, if that ended the last session.
    pub lost: Option<LostRecords>,
    /// A row arrived whose table has a column that is read in text form. From then on streams use the text form. The
    /// catalog cannot decide this: it may show a later table.
    pub text_form: bool,
    /// What ended the last session. A gap is counted once: when it is reported, or when its refill begins.
    pub ended_by: Option<ErrorKind>,
    /// The holders of the slot.
    pub slot: SlotMemory,
}
