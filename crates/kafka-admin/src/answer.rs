//! A request to Kafka with its result: the objects of librdkafka that have to be destroyed.

use std::ffi::{CStr, c_char, c_int};
use std::time::Duration;

use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};

use crate::Error;

/// Added to the request's own timeout, so that librdkafka times out first and reports why.
const GRACE: Duration = Duration::from_secs(1);

/// An object of librdkafka that is destroyed when this value is dropped.
pub struct Owned<T> {
    pointer: *mut T,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// # Safety
    /// This value must own `pointer`, to be destroyed with `destroy`, or `pointer` is NULL.
    pub unsafe fn new(pointer: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Owned<T> {
        Owned { pointer, destroy }
    }

    /// Valid while this value exists.
    pub fn pointer(&self) -> *mut T {
        self.pointer
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.pointer.is_null() {
            // SAFETY: owned by this value, as its constructor requires, and not used after this.
            unsafe { (self.destroy)(self.pointer) }
        }
    }
}

/// A request with a dedicated queue, which receives only its result.
pub struct AdminRequest {
    options: Owned<ffi::rd_kafka_AdminOptions_t>,
    queue: Owned<ffi::rd_kafka_queue_t>,
    within: Duration,
}

impl AdminRequest {
    /// A request of this kind.
    pub fn new<C: ClientContext>(
        client: &Client<C>,
        kind: ffi::rd_kafka_admin_op_t,
        within: Duration,
    ) -> Result<AdminRequest, Error> {
        // SAFETY: the client exists; the new objects are owned by this value.
        let (options, queue) = unsafe {
            let options = ffi::rd_kafka_AdminOptions_new(client.native_ptr(), kind);
            let queue = ffi::rd_kafka_queue_new(client.native_ptr());
            let options = Owned::new(options, ffi::rd_kafka_AdminOptions_destroy);
            (options, Owned::new(queue, ffi::rd_kafka_queue_destroy))
        };
        let mut message = [0; 256];
        // SAFETY: the buffer has the given length, and outlives the call.
        let code = unsafe {
            ffi::rd_kafka_AdminOptions_set_request_timeout(
                options.pointer(),
                milliseconds(within),
                message.as_mut_ptr(),
                message.len(),
            )
        };
        if code != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            // SAFETY: librdkafka terminates the text with a NUL.
            let message = unsafe { text(message.as_ptr()) };
            return Err(Error::Refused { code: code.into(), message });
        }
        Ok(AdminRequest { options, queue, within })
    }

    /// Sends the request and waits for its result, an event without an error.
    pub fn send(
        &self,
        send: impl FnOnce(*const ffi::rd_kafka_AdminOptions_t, *mut ffi::rd_kafka_queue_t),
    ) -> Result<Owned<ffi::rd_kafka_event_t>, Error> {
        send(self.options.pointer(), self.queue.pointer());
        // SAFETY: the queue belongs to this request; the caller owns the event.
        let event = unsafe {
            let event = ffi::rd_kafka_queue_poll(self.queue.pointer(), milliseconds(self.within + GRACE));
            Owned::new(event, ffi::rd_kafka_event_destroy)
        };
        if event.pointer().is_null() {
            return Err(Error::Timeout(self.within));
        }
        // SAFETY: the event exists until this function ends, or longer.
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

/// A text owned by librdkafka.
///
/// # Safety
/// `text` ends with a NUL, or is NULL.
pub unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: guaranteed by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
