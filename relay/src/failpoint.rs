//! Failpoints: places where a test makes the relay die, one at each boundary where something becomes durable or leaves
//! the process. The test `killpoints` kills a relay at each.
//!
//! Compiled only with the feature `failpoints`, which no release build has; without it [`pass`] does nothing. A test
//! sets them in the environment variable `FAILPOINTS` of the real program, in the syntax of the crate `fail`:
//! `all-sent=17*off->return(300)` is the 18th pass. `return` ends the process like kill -9, without unwinding, flushing
//! or closing; `return(300)` lets its other threads run for 300 ms before. `panic`, `sleep` and `pause` are those of
//! the crate.

/// A boundary of the event path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// Bytes were read from the socket, and none of them is decoded.
    AfterRead,
    /// A row is decoded and not sent.
    AfterDecode,
    /// Some rows of a transaction are sent, and more were read.
    InTransaction,
    /// All rows of a transaction are sent, and no acknowledgement was processed since the last one.
    AllSent,
    /// Some rows of a transaction are acknowledged.
    PartlyAcknowledged,
    /// All rows of a transaction are acknowledged, and no checkpoint contains it.
    AllAcknowledged,
    /// A checkpoint is stored and not yet confirmed to PostgreSQL.
    CheckpointStored,
    /// Everything in the last checkpoint is confirmed to PostgreSQL.
    StatusSent,
    /// A scan has read a record.
    InSearch,
    /// The slot exists, and the checkpoint does not contain its start yet.
    SlotCreated,
    /// A gap is recorded in the checkpoint, and the lost slot is not dropped yet.
    GapRecorded,
    /// The lost slot is dropped, and no other one is created.
    LostSlotDropped,
    /// The checkpoint has the start of the new slot and the rows of the refill, and none of them is sent.
    RefillBegun,
    /// All rows of a refill are acknowledged, and the checkpoint does not say so yet.
    RefillAcknowledged,
    /// A stop was requested, and what is in flight is not completed.
    InDrain,
    /// A dead letter is sent, and its acknowledgement was not processed.
    DeadLetterSent,
    /// librdkafka calls back, on its own thread.
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
            Boundary::GapRecorded => "gap-recorded",
            Boundary::LostSlotDropped => "lost-slot-dropped",
            Boundary::RefillBegun => "refill-begun",
            Boundary::RefillAcknowledged => "refill-acknowledged",
            Boundary::InDrain => "in-drain",
            Boundary::DeadLetterSent => "dead-letter-sent",
            Boundary::InCallback => "in-callback",
        }
    }
}

/// Reads the environment; called once, first of all.
pub fn arm() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}

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
