//! Failpoints: places where a test makes the relay die, one at each boundary where something becomes durable or leaves
//! the process. The test `killpoints` kills a relay at each.
//!
//! Compiled only with the feature `failpoints`, which no release build has; without it [`pass`] does nothing. A test
//! sets them in the environment variable `FAILPOINTS` of the real program, in the syntax of the crate `fail`:
//! `all-sent=17*off->return(300)` is the 18th pass. `return` ends the process like kill -9, without unwinding, flushing
//! or closing; `return(300)` lets its other threads run for 300 ms before. `panic`, `sleep` and `pause` are those of
//! the crate.

named! {
    /// A boundary of the event path.
    pub enum Boundary {
        /// Bytes were read from the socket, and none of them is decoded.
        AfterRead = "after-read",
        /// A row is decoded and not sent.
        AfterDecode = "after-decode",
        /// Some rows of a transaction are sent, and more were read.
        InTransaction = "in-transaction",
        /// All rows of a transaction are sent, and no acknowledgement was processed since the last one.
        AllSent = "all-sent",
        /// Some rows of a transaction are acknowledged.
        PartlyAcknowledged = "partly-acknowledged",
        /// All rows of a transaction are acknowledged, and no checkpoint contains it.
        AllAcknowledged = "all-acknowledged",
        /// A checkpoint is stored and not yet confirmed to PostgreSQL.
        CheckpointStored = "checkpoint-stored",
        /// Everything in the last checkpoint is confirmed to PostgreSQL.
        StatusSent = "status-sent",
        /// A scan has read a record.
        InSearch = "in-search",
        /// The slot exists, and the checkpoint does not contain its start yet.
        SlotCreated = "slot-created",
        /// A gap is recorded in the checkpoint, and the lost slot is not dropped yet.
        GapRecorded = "gap-recorded",
        /// The lost slot is dropped, and no other one is created.
        LostSlotDropped = "lost-slot-dropped",
        /// The checkpoint has the start of the new slot and the rows of the refill, and none of them is sent.
        RefillBegun = "refill-begun",
        /// All rows of a refill are acknowledged, and the checkpoint does not say so yet.
        RefillAcknowledged = "refill-acknowledged",
        /// A stop was requested, and what is in flight is not completed.
        InDrain = "in-drain",
        /// A dead letter is sent, and its acknowledgement was not processed.
        DeadLetterSent = "dead-letter-sent",
        /// librdkafka calls back, on its own thread.
        InCallback = "in-callback",
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
