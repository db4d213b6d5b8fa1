//! Stops a producer from sending.

use std::ffi::CStr;

use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};

const REASON: &CStr = c"halted by the application";

/// Makes a producer send nothing more. Requests in flight are still answered; nothing is sent again. It cannot be
/// undone.
///
/// Purging the queue is not enough. Of two requests in flight the first may be rejected temporarily, and wait in the
/// queue to be sent again. If it is purged there, librdkafka sends the second one again under a new epoch, and the
/// broker appends it: the partition has a gap, although `enable.gapless.guarantee` is set.
pub fn halt<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client exists as long as the reference, and librdkafka copies the text.
    unsafe {
        ffi::rd_kafka_test_fatal_error(
            client.native_ptr(),
            ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__STATE,
            REASON.as_ptr(),
        );
    }
}

/// Whether a log line of librdkafka only says that a producer was halted.
pub fn is_halt(line: &str) -> bool {
    REASON.to_str().is_ok_and(|reason| line.contains(reason))
}
