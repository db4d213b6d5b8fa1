//! Reading a body: limited in size and time.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};

use super::json::{self, FromObject};
use super::problem::{Problem, kinds};
use super::request::Request;

/// The largest request is an item of a few hundred bytes.
pub const MAX_BYTES: usize = 64 * 1024;
/// How long a body may take to arrive.
const WITHIN: Duration = Duration::from_secs(10);

/// Reads a body to its end, or to the limit. One that says that it is too large is not read at all.
pub async fn read<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(&kinds::TOO_LARGE, format!("a body has at most {MAX_BYTES} bytes"));
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BYTES as u64) {
        return Err(too_large());
    }
    let mut body = std::pin::pin!(body);
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|_| Problem::malformed("the body ended before its end"))?;
            if bytes.len() + chunk.remaining() > MAX_BYTES {
                return Err(too_large());
            }
            let all = chunk.remaining();
            bytes.extend_from_slice(&chunk.copy_to_bytes(all));
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(WITHIN, read)
        .await
        .unwrap_or_else(|_| Err(Problem::new(&kinds::TOO_SLOW, "the request's body did not arrive in time")))
}

/// The body as a `T`, strictly read.
pub fn json<T: FromObject>(request: &Request) -> Result<T, Problem> {
    check_type(&request.headers)?;
    json::read(&request.body)
}

/// A second header line of either name could be the one that a proxy believed.
fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut types = headers.get_all(CONTENT_TYPE).iter().map(|value| value.to_str().unwrap_or_default());
    let essence = |value: &str| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json =
        types.next().is_some_and(|value| essence(value) == "application/json") && types.next().is_none();
    let is_plain = headers.get_all(CONTENT_ENCODING).iter().all(|encoding| encoding == "identity");
    if is_json && is_plain {
        return Ok(());
    }
    let detail = "send the body as Content-Type: application/json, without Content-Encoding";
    Err(Problem::new(&kinds::NOT_JSON, detail))
}
