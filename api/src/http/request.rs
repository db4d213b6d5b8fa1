//! A request as the handlers see it, and the bounds of its head.

use bytes::Bytes;
use url::form_urlencoded;
use uuid::Uuid;
use warp::http::header::{HOST, TRANSFER_ENCODING};
use warp::http::{HeaderMap, Method};

use super::problem::{Problem, kinds};

/// Longest request id taken from a client.
const MAX_REQUEST_ID: usize = 100;
/// Longest path and query: filters and a page token need a few hundred bytes.
const MAX_URI_BYTES: usize = 8 * 1024;
/// Most bytes of headers: a token of 8 KiB and as much again.
const MAX_HEADER_BYTES: usize = 16 * 1024;

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

impl Request {
    /// The query's parameters; none may be given twice.
    pub fn parameters(&self) -> Result<Vec<(String, String)>, Problem> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        // The parser below replaces what is not UTF-8, and the list would be of something else.
        if percent_decoded(&self.query).is_none() {
            return Err(Problem::malformed("the query must be percent-encoded UTF-8"));
        }
        for (name, value) in form_urlencoded::parse(self.query.as_bytes()) {
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Problem::malformed("a query parameter is given twice"));
            }
            parameters.push((name.into_owned(), value.into_owned()));
        }
        Ok(parameters)
    }
}

/// A part of a URI, decoded once.
pub fn percent_decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        let digit =
            |digit: Option<u8>| char::from(digit?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(if byte == b'%' { digit(rest.next())? * 16 + digit(rest.next())? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

/// Refuses a head that is larger than any honest one, or that two servers could read in two ways.
pub fn check_head(method: &Method, path: &str, query: &str, headers: &HeaderMap) -> Result<(), Problem> {
    if method == Method::CONNECT {
        return Err(Problem::malformed("CONNECT is for proxies; a request names a path"));
    }
    if path.len() + query.len() > MAX_URI_BYTES {
        return Err(Problem::new(&kinds::URI_TOO_LONG, format!("a URI has at most {MAX_URI_BYTES} bytes")));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > MAX_HEADER_BYTES {
        let detail = format!("a request has at most {MAX_HEADER_BYTES} bytes of headers");
        return Err(Problem::new(&kinds::HEADERS_TOO_LARGE, detail));
    }
    if headers.get_all(HOST).iter().count() != 1 {
        return Err(Problem::malformed("send the header Host, once"));
    }
    Ok(())
}

/// Whether the connection must end with this request: one that came in chunks may have had a Content-Length, too, which
/// hyper has removed by now, and an intermediary may have honoured it (RFC 9112, section 6.1).
pub fn is_last(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
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
