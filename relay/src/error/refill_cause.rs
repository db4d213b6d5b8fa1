//! The gaps that a refill closes.

use super::ErrorKind;

/// Why a slot is replaced and its gap refilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefillCause {
    /// The slot is gone or invalidated.
    SlotLost,
    /// The slot was recreated or advanced by another client.
    SlotAhead,
}

impl RefillCause {
    pub const ALL: [RefillCause; 2] = [RefillCause::SlotLost, RefillCause::SlotAhead];

    /// The cause of this kind, if a refill can close the gap.
    pub fn of(kind: ErrorKind) -> Option<RefillCause> {
        RefillCause::ALL.into_iter().find(|cause| cause.kind() == kind)
    }

    /// The kind of error that stops delivery without a refill.
    pub const fn kind(self) -> ErrorKind {
        match self {
            RefillCause::SlotLost => ErrorKind::SlotLost,
            RefillCause::SlotAhead => ErrorKind::SlotAhead,
        }
    }

    /// The name in the checkpoint, in metrics and in the header of a refilled record.
    pub const fn name(self) -> &'static str {
        self.kind().name()
    }

    pub fn from_name(name: &str) -> Option<RefillCause> {
        RefillCause::ALL.into_iter().find(|cause| cause.name() == name)
    }
}
