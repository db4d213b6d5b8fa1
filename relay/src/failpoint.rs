//! Places where a test makes the relay die: one at each boundary behind which something lasts.
//!
//! Compiled only with the feature `failpoints`, which no normal build has; without it [`pass`] is nothing. A test sets
//! them by the environment variable `FAILPOINTS` of the real program, in the words of the crate `fail`:
//! `all-sent=17*off->return(300)` is the 18th pass. `return` ends the process as kill -9 would, with nothing unwound,
//! flushed or closed; `return(300)` lets its other threads go on for 300 ms before. `panic`, `sleep` and `pause` are
//! what they say.

/// A boundary, with the kill point it is. K11 (refill), K13 and K14 (transactional producer) belong to parts that do
/// not exist; K16 to K20 are the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// K1: bytes were read from the socket, and none of them is decoded.
    AfterRead,
    /// K2: a row is decoded and not sent.
    AfterDecode,
    /// K3: a transaction is sent in part, and more of its rows are here.
    InTransaction,
    /// K4: all rows of a transaction are sent, and no acknowledgement has been looked at since its last one.
    AllSent,
    /// K5: a transaction is acknowledged in part.
    PartlyAcknowledged,
    /// K6: a transaction is acknowledged as a whole, and nothing stored knows of it.
    AllAcknowledged,
    /// K7: a checkpoint is stored, and Postgres is not told.
    CheckpointStored,
    /// K8: Postgres was told all that the last checkpoint says.
    StatusSent,
    /// K9: a search has seen a record.
    InSearch,
    /// K10: the slot exists, and the checkpoint does not know where it begins.
    SlotCreated,
    /// K12: a stop is asked for, and what is under way is not finished.
    InDrain,
    /// K15: a dead letter is sent, and its acknowledgement has not been looked at.
    DeadLetterSent,
    /// A7: librdkafka calls back, on a thread of its own.
    InCallback,
}

impl Boundary {
    #[cfg(feature = "failpoints")]
    fn name(self) -> &'static str {
        match self {
            Boundary::AfterRead => "after-read",
            Boundary::AfterDecode => "after-decode",
            Boundary::InTransaction => "in-transaction",
            Boundary::AllSent => "all-sent",
            Boundary::PartlyAcknowledged => "partly-acknowledged",
            Boundary::AllAcknowledged => "all-acknowledged",
            Boundary::CheckpointStored => "checkpoint-stored",
            Boundary::StatusSent => "status-sent",
            Boundary::InSearch => "in-search",
            Boundary::SlotCreated => "slot-created",
            Boundary::InDrain => "in-drain",
            Boundary::DeadLetterSent => "dead-letter-sent",
            Boundary::InCallback => "in-callback",
        }
    }
}

/// Reads the environment; called once, before anything else.
pub fn arm() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}

/// Passes a boundary.
#[inline(always)]
pub fn pass(boundary: Boundary) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(boundary.name(), |pause: Option<String>| {
        let pause = pause.and_then(|millis| millis.parse().ok()).unwrap_or(0);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        std::process::abort()
    });
    #[cfg(not(feature = "failpoints"))]
    let _ = boundary;
}
