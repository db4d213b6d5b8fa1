//! Reading a body: bounded in size and time, strictly JSON.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::problem::{Problem, kinds};
use super::request::Request;

/// The largest request is an item of a few hundred bytes.
pub const MAX_BYTES: usize = 64 * 1024;
/// How long a body may take to arrive.
const WITHIN: Duration = Duration::from_secs(10);

/// Reads a body to its end, or to the limit.
pub async fn read<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>>) -> Result<Bytes, Problem> {
    let mut body = std::pin::pin!(body);
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|_| Problem::malformed("the body ended before its end"))?;
            if bytes.len() + chunk.remaining() > MAX_BYTES {
                return Err(Problem::new(&kinds::TOO_LARGE, format!("a body has at most {MAX_BYTES} bytes")));
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

/// The body as a `T`: text that is not JSON, or JSON that two readers could understand differently, is malformed (400);
/// JSON that is not a `T` is invalid (422) and the answer points at the place.
pub fn json<T: DeserializeOwned>(request: &Request) -> Result<T, Problem> {
    check_type(&request.headers)?;
    let body = request.body.trim_ascii();
    if !body.starts_with(b"{") {
        return Err(Problem::malformed("the body must be a JSON object"));
    }
    let mut text = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut text).map_err(|error| {
        let pointer = pointer(error.path());
        let error = error.into_inner();
        match error.classify() {
            Category::Data if is_duplicate(&error) => Problem::malformed(without_place(&error.to_string())),
            Category::Data => Problem::invalid(pointer, without_place(&error.to_string())),
            Category::Syntax | Category::Eof | Category::Io => Problem::malformed(format!(
                "the body is not JSON (line {}, column {})",
                error.line(),
                error.column()
            )),
        }
    })?;
    text.end().map_err(|_| Problem::malformed("there is something after the JSON value"))?;
    Ok(value)
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let plain = headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
    if essence.eq_ignore_ascii_case("application/json") && plain {
        return Ok(());
    }
    let detail = "send the body as Content-Type: application/json, without Content-Encoding";
    Err(Problem::new(&kinds::NOT_JSON, detail))
}

/// serde tells a member that is there twice from other data errors by its text alone.
fn is_duplicate(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("duplicate field")
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let segments = path.iter().map(|segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { variant } => format!("/{variant}"),
        Segment::Unknown => String::new(),
    });
    segments.collect()
}

/// serde_json ends its messages with a place in the text; the pointer says it better.
fn without_place(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message)
}
