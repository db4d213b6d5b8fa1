//! How a relay ended after a shutdown request, and its last log line. Procedures in docs/OPERATIONS.md rely on these
//! lines, so each states only what is certain.

use std::fmt;
use std::time::Duration;

use pg_replication::Stream;

use crate::error::{ErrorKind, RelayError, chain};

/// Time allowed for the server to close the stream after everything was confirmed.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// Time allowed for the final status update to a server that is shutting down or gone.
const FINAL_STATUS_WITHIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// Every row that was read is acknowledged by Kafka, stored in the checkpoint, and confirmed to PostgreSQL.
    Drained,
    /// Delivery was blocked by a row. The same is true of every row before it.
    Blocked,
    /// The shutdown deadline was reached before everything that was read was confirmed.
    Late,
    /// An error ended the session before everything that was read was confirmed.
    Interrupted,
    /// No stream was open. Rows that an earlier session or process read may be unconfirmed.
    NotStreaming,
    /// This was a standby relay: another relay held the slot and delivered.
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
                "stopped at a row that cannot be delivered yet: every row before it is in Kafka, and every \
                 transaction before its own is stored in the checkpoint and confirmed"
            }
            SessionEnd::Late => {
                "stopped at the deadline, before everything that was read was confirmed; the next start \
                 reads it again"
            }
            SessionEnd::Interrupted => {
                "stopped by an error, before everything that was read was confirmed; the next start reads it again"
            }
            SessionEnd::NotStreaming => {
                "stopped while no stream was open: rows that were read earlier may be unconfirmed; the next start \
                 continues from the checkpoint"
            }
            SessionEnd::Standby => "stopped as a standby relay: another relay holds the slot and delivers",
        })
    }
}

/// Confirms the stored position to a server that is shutting down: it closes SQL connections first, then waits for its
/// walsenders' clients to confirm. After any other error the stream is only dropped.
pub(super) async fn send_final_status(stream: Stream, error: &RelayError) {
    if error.kind == ErrorKind::DatabaseUnreachable {
        drop(stream.finish(FINAL_STATUS_WITHIN).await);
    }
}

/// Closes the stream. The server acknowledges the end of the stream after it has processed the last confirmation.
/// Without that acknowledgement it is unknown whether the position is confirmed.
pub(super) async fn finish(stream: Stream, ended: SessionEnd) -> SessionEnd {
    match stream.finish(FINISH_WITHIN).await {
        Ok(finished) => {
            tracing::info!(confirmed = %finished.confirmed, "the stream is closed");
            ended
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "PostgreSQL did not acknowledge the end of the stream");
            SessionEnd::Interrupted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drained_relay_reports_a_clean_stop() {
        use SessionEnd::{Blocked, Drained, Interrupted, Late, NotStreaming, Standby};
        for ended in [Drained, Blocked, Late, Interrupted, NotStreaming, Standby] {
            assert_eq!(ended.to_string().contains("cleanly"), ended == Drained, "{ended}");
        }
    }
}
