//! A question to Kafka with its answer: what belongs to librdkafka and has to be given back.

use std::ffi::{CStr, c_char, c_int};
use std::time::Duration;

use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};

use crate::Error;

/// The library gives up first, and says why.
const GRACE: Duration = Duration::from_secs(1);

/// Something of the library's that is given back when it is dropped.
pub struct Owned<T> {
    pointer: *mut T,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// # Safety
    /// `pointer` is this value's to give back by `destroy`, or NULL.
    pub unsafe fn new(pointer: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Owned<T> {
        Owned { pointer, destroy }
    }

    /// Valid while this value lives.
    pub fn pointer(&self) -> *mut T {
        self.pointer
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.pointer.is_null() {
            // SAFETY: it is this value's, by the promise of its maker, and nobody has it after this.
            unsafe { (self.destroy)(self.pointer) }
        }
    }
}

/// A question with a queue of its own, on which nothing but its answer comes.
pub struct AdminRequest {
    options: Owned<ffi::rd_kafka_AdminOptions_t>,
    queue: Owned<ffi::rd_kafka_queue_t>,
    within: Duration,
}

impl AdminRequest {
    /// One of this kind.
    pub fn new<C: ClientContext>(
        client: &Client<C>,
        kind: ffi::rd_kafka_admin_op_t,
        within: Duration,
    ) -> Result<AdminRequest, Error> {
        // SAFETY: the client lives; what is made is this value's to give back.
        let (options, queue) = unsafe {
            let options = ffi::rd_kafka_AdminOptions_new(client.native_ptr(), kind);
            let queue = ffi::rd_kafka_queue_new(client.native_ptr());
            let options = Owned::new(options, ffi::rd_kafka_AdminOptions_destroy);
            (options, Owned::new(queue, ffi::rd_kafka_queue_destroy))
        };
        let mut message = [0; 256];
        // SAFETY: the buffer is as long as is said, and outlives the call.
        let code = unsafe {
            ffi::rd_kafka_AdminOptions_set_request_timeout(
                options.pointer(),
                milliseconds(within),
                message.as_mut_ptr(),
                message.len(),
            )
        };
        if code != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            // SAFETY: the library ends what it writes there with a NUL.
            let message = unsafe { text(message.as_ptr()) };
            return Err(Error::Refused { code: code.into(), message });
        }
        Ok(AdminRequest { options, queue, within })
    }

    /// Asks, and waits for the answer, which is an event without error.
    pub fn send(
        &self,
        send: impl FnOnce(*const ffi::rd_kafka_AdminOptions_t, *mut ffi::rd_kafka_queue_t),
    ) -> Result<Owned<ffi::rd_kafka_event_t>, Error> {
        send(self.options.pointer(), self.queue.pointer());
        // SAFETY: the queue is this question's; the event is the caller's to give back.
        let event = unsafe {
            let event = ffi::rd_kafka_queue_poll(self.queue.pointer(), milliseconds(self.within + GRACE));
            Owned::new(event, ffi::rd_kafka_event_destroy)
        };
        if event.pointer().is_null() {
            return Err(Error::Timeout(self.within));
        }
        // SAFETY: the event lives until this function ends, or longer.
        unsafe {
            let code = ffi::rd_kafka_event_error(event.pointer());
            if code != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                let message = text(ffi::rd_kafka_event_error_string(event.pointer()));
                return Err(Error::Refused { code: code.into(), message });
            }
        }
        Ok(event)
    }
}

fn milliseconds(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

/// Text of the library's.
///
/// # Safety
/// `text` ends with a NUL, or is NULL.
pub unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
