//! How a relay ended after it was asked to stop, and what its last line says of it. Procedures in docs/OPERATIONS.md rest
//! on these lines, so each says what is known and no more.

use std::fmt;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every row that was read is acknowledged, stored in the checkpoint, and confirmed.
    Drained,
    /// The same of every row before one that cannot be delivered yet.
    Blocked,
    /// The deadline came before everything that was read was confirmed.
    Late,
    /// A problem ended the session before everything that was read was confirmed.
    Interrupted,
    /// No stream was open: what an earlier session or process read may not be confirmed.
    NotStreaming,
    /// Another relay held the slot, and delivers.
    Standby,
}

impl Ended {
    /// Whether the checkpoint holds everything that this relay has read.
    pub fn is_clean(self) -> bool {
        matches!(self, Ended::Drained | Ended::Blocked | Ended::Standby)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ended::Drained => {
                "stopped cleanly: every row that was read is in Kafka, stored in the checkpoint, and confirmed"
            }
            Ended::Blocked => {
                "stopped at a row that cannot be delivered yet: every row before it is in Kafka, and every transaction before \
                 its own is stored in the checkpoint and confirmed"
            }
            Ended::Late => {
                "stopped at the deadline, before everything that was read was confirmed; the next start replays it"
            }
            Ended::Interrupted => {
                "stopped by a problem, before everything that was read was confirmed; the next start replays it"
            }
            Ended::NotStreaming => {
                "stopped while no stream was open: rows that were read earlier may be unconfirmed; the next start continues \
                 from the checkpoint"
            }
            Ended::Standby => "stopped as a standby: another relay holds the slot and delivers",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drained_relay_says_that_it_stopped_cleanly() {
        use Ended::{Blocked, Drained, Interrupted, Late, NotStreaming, Standby};
        for ended in [Drained, Blocked, Late, Interrupted, NotStreaming, Standby] {
            assert_eq!(ended.to_string().contains("cleanly"), ended == Drained, "{ended}");
        }
    }
}
