//! A request as the handlers see it.

use bytes::Bytes;
use uuid::Uuid;
use warp::http::{HeaderMap, Method};

/// Longest request id taken from a client.
const MAX_REQUEST_ID: usize = 100;

/// A request, its body read.
#[derive(Debug)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path, as it was sent.
    pub path: String,
    /// Query string without the question mark.
    pub query: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// The name under which a request is found in the log: the client's, if it is one, or a new one.
pub fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(legal)
    };
    given.filter(usable).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}
