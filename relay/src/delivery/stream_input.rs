//! Messages of the stream on their way into delivery, and the message that is blocked.

use bytes::Bytes;
use pg_replication::Frame;

use super::{Broker, Delivery, Flow};
use crate::error::{ErrorKind, RelayError};
use crate::routing::mapping::Revision;
use crate::status::Status;

/// Messages processed before timers and acknowledgements get their turn.
pub const BURST: usize = 512;

/// Why the processing of messages stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputStop {
    /// All buffered messages are processed.
    Empty,
    /// There are more; a burst has ended.
    BurstEnded,
    /// The in-flight budget is used up.
    NoRoom,
    Blocked,
}

pub struct StreamInput {
    /// It is decoded and routed again at each turn of the loop until it can be sent, which keeps no half-processed
    /// state.
    blocked: Option<Bytes>,
    /// The next row can never be delivered.
    is_poisoned: bool,
    status: Status,
}

impl StreamInput {
    /// Nothing is blocked yet.
    pub fn new(status: Status) -> StreamInput {
        StreamInput { blocked: None, is_poisoned: false, status }
    }

    /// Processes the messages that `next` returns, at most a burst.
    pub fn process<B: Broker>(
        &mut self,
        delivery: &mut Delivery<B>,
        committed_revision: Revision,
        mut next: impl FnMut() -> Result<Option<Frame>, RelayError>,
    ) -> Result<InputStop, RelayError> {
        for _ in 0..BURST {
            if !delivery.has_room() {
                return Ok(InputStop::NoRoom);
            }
            let data = match self.blocked.take() {
                Some(data) => data,
                None => match next()? {
                    None => return Ok(InputStop::Empty),
                    Some(Frame::Keepalive { wal_end, .. }) => {
                        delivery.on_keepalive(wal_end);
                        continue;
                    }
                    Some(Frame::XLogData { data, .. }) => data,
                },
            };
            let flow = delivery.on_message(&data, committed_revision);
            if self.block_on_poison(flow)? == Flow::Blocked {
                self.blocked = Some(data);
                return Ok(InputStop::Blocked);
            }
        }
        Ok(InputStop::BurstEnded)
    }

    /// A row that can never be delivered blocks the rows after it and nothing else: rows sent before it are still
    /// acknowledged, stored in the checkpoint and confirmed.
    pub fn block_on_poison(&mut self, flow: Result<Flow, RelayError>) -> Result<Flow, RelayError> {
        match flow {
            Err(error) if error.kind == ErrorKind::PoisonRow => {
                if !std::mem::replace(&mut self.is_poisoned, true) {
                    tracing::error!(reason = error.kind.name(), "delivery stopped: {error}");
                    self.status.set_poison(Some(error));
                }
                Ok(Flow::Blocked)
            }
            Ok(Flow::Next) => {
                if std::mem::take(&mut self.is_poisoned) {
                    tracing::info!("the poison row can be delivered now; delivery continues");
                    self.status.set_poison(None);
                }
                Ok(Flow::Next)
            }
            flow => flow,
        }
    }

    /// Whether a message is blocked.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Whether the next row can never be delivered.
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }
}
