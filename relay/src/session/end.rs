//! How a relay ended after it was asked to stop, and what its last line says of it. Procedures in docs/OPERATIONS.md rest
//! on these lines, so each says what is known and no more.

use std::fmt;
use std::time::Duration;

use pg_replication::Stream;

use crate::error::{ErrorKind, RelayError, chain};

/// How long the server may take to end the stream after everything was confirmed.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// How long the last word to a server that is stopping, or gone, may take.
const FINAL_STATUS_WITHIN: Duration = Duration::from_millis(500);

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
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

impl SessionEnd {
    /// Whether the checkpoint holds everything that this relay has read.
    pub fn is_clean(self) -> bool {
        matches!(self, SessionEnd::Drained | SessionEnd::Blocked | SessionEnd::Standby)
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SessionEnd::Drained => {
                "stopped cleanly: every row that was read is in Kafka, stored in the checkpoint, and confirmed"
            }
            SessionEnd::Blocked => {
                "stopped at a row that cannot be delivered yet: every row before it is in Kafka, and every transaction before \
                 its own is stored in the checkpoint and confirmed"
            }
            SessionEnd::Late => {
                "stopped at the deadline, before everything that was read was confirmed; the next start replays it"
            }
            SessionEnd::Interrupted => {
                "stopped by a problem, before everything that was read was confirmed; the next start replays it"
            }
            SessionEnd::NotStreaming => {
                "stopped while no stream was open: rows that were read earlier may be unconfirmed; the next start continues \
                 from the checkpoint"
            }
            SessionEnd::Standby => "stopped as a standby: another relay holds the slot and delivers",
        })
    }
}

/// A server that is stopping ends SQL connections first, and waits for its streams to confirm: it hears what is stored,
/// and that there is nothing more. In any other trouble the stream is only let go.
pub(super) async fn send_final_status(stream: Stream, error: &RelayError) {
    if error.kind == ErrorKind::DatabaseUnreachable {
        drop(stream.finish(FINAL_STATUS_WITHIN).await);
    }
}

/// The server answers the end of the stream after it has taken the last confirmation: without the answer nothing is known
/// to be confirmed.
pub(super) async fn finish(stream: Stream, ended: SessionEnd) -> SessionEnd {
    match stream.finish(FINISH_WITHIN).await {
        Ok(finished) => {
            tracing::info!(confirmed = %finished.confirmed, "the stream is closed");
            ended
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "PostgreSQL did not answer to the end of the stream");
            SessionEnd::Interrupted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drained_relay_says_that_it_stopped_cleanly() {
        use SessionEnd::{Blocked, Drained, Interrupted, Late, NotStreaming, Standby};
        for ended in [Drained, Blocked, Late, Interrupted, NotStreaming, Standby] {
            assert_eq!(ended.to_string().contains("cleanly"), ended == Drained, "{ended}");
        }
    }
}
