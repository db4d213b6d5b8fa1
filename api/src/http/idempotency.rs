//! What identifies a command: its key, its fingerprint, and the context it came in.
//!
//! Idempotency-Key follows the IETF draft "The Idempotency-Key HTTP Header Field": a quoted string; a bare token is
//! taken too, because most clients send one.

use basket::application::{Cause, Command, CommandId, Identified};
use basket::domain::Version;
use chrono::{SubsecRound, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use warp::http::HeaderMap;
use warp::http::header::IF_MATCH;

use super::problem::Problem;
use super::request::Request;

const KEY: &str = "idempotency-key";
const CORRELATION_ID: &str = "correlation-id";
/// Longest key and correlation id.
const MAX_TEXT: usize = 255;

/// The command a request means, identified.
pub fn identify<C: Command>(
    request: &Request,
    principal: &str,
    command: C,
) -> Result<Identified<C>, Problem> {
    let id = CommandId(Uuid::now_v7());
    let cause = Cause {
        command: id,
        principal: principal.to_owned(),
        correlation_id: text(&request.headers, CORRELATION_ID)?.unwrap_or_else(|| id.to_string()),
        traceparent: traceparent(&request.headers),
        tracestate: traceparent(&request.headers)
            .and(single(&request.headers, "tracestate"))
            .filter(|s| s.len() <= 512),
    };
    Ok(Identified {
        command,
        cause,
        idempotency_key: Some(key(&request.headers)?),
        fingerprint: fingerprint(request),
        // What Postgres keeps: an answer must not change when it is read back.
        received_at: Utc::now().trunc_subsecs(6),
    })
}

fn key(headers: &HeaderMap) -> Result<String, Problem> {
    let key = text(headers, KEY)?.ok_or_else(Problem::key_missing)?;
    let unquoted = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(&key);
    if unquoted.is_empty() || unquoted.contains('"') {
        return Err(Problem::malformed(
            "Idempotency-Key must be one string of 1 to 255 visible ASCII characters",
        ));
    }
    Ok(unquoted.to_owned())
}

/// The version a caller expects. `*` means any, and a weak tag never matches.
pub fn if_match(headers: &HeaderMap) -> Result<Option<Version>, Problem> {
    if headers.get_all(IF_MATCH).iter().count() > 1 {
        return Err(Problem::malformed("If-Match must be given once, with one entity tag"));
    }
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let value = value.to_str().unwrap_or_default().trim();
    if value == "*" {
        return Ok(None);
    }
    let (tag, weak) = value.strip_prefix("W/").map_or((value, false), |tag| (tag, true));
    let quoted = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).filter(|tag| !tag.contains('"'));
    let tag =
        quoted.ok_or_else(|| Problem::malformed("If-Match must be an entity tag such as \"3\", or *"))?;
    // A tag this service never gave out matches no version.
    let never = Version(0);
    Ok(Some(tag.parse().map(Version).ok().filter(|_| !weak).unwrap_or(never)))
}

/// SHA-256 over everything that makes this wish another one: method, path, If-Match, and the body in a form in
/// which white space and the order of members do not count.
fn fingerprint(request: &Request) -> String {
    let body =
        serde_json::from_slice::<Value>(&request.body).map(|value| value.to_string()).unwrap_or_default();
    let if_match = request.headers.get(IF_MATCH).map(|value| value.as_bytes()).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [request.method.as_str().as_bytes(), request.path.as_bytes(), if_match, body.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// W3C Trace Context, version 00; anything else starts no trace.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = single(headers, "traceparent")?;
    let fields: Vec<&str> = value.split('-').collect();
    let widths: Vec<usize> = fields.iter().map(|field| field.len()).collect();
    let hex = fields.iter().all(|field| field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    (widths == [2, 32, 16, 2] && hex).then_some(value)
}

fn single(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.to_owned();
    values.next().is_none().then_some(value)
}

fn text(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Problem> {
    if headers.get(name).is_none() {
        return Ok(None);
    }
    let value = single(headers, name).filter(|value| {
        !value.is_empty() && value.len() <= MAX_TEXT && value.bytes().all(|b| b.is_ascii_graphic())
    });
    let wrong = || {
        Problem::malformed(format!("{name} must be one string of 1 to {MAX_TEXT} visible ASCII characters"))
    };
    value.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, warp::http::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_key_is_taken_quoted_and_bare_and_nothing_else() {
        assert_eq!(key(&headers(KEY, &["abc-1"])).unwrap(), "abc-1");
        assert_eq!(key(&headers(KEY, &["\"abc-1\""])).unwrap(), "abc-1");
        for bad in [&["\"\""][..], &[""], &["a b"], &["a", "b"], &["a\"b"]] {
            assert!(key(&headers(KEY, bad)).is_err(), "{bad:?}");
        }
        assert!(key(&HeaderMap::new()).is_err());
    }

    #[test]
    fn if_match_knows_any_strong_weak_and_nonsense() {
        let version = |value| if_match(&headers("if-match", &[value])).map_err(drop);
        assert_eq!(version("*"), Ok(None));
        assert_eq!(version("\"3\""), Ok(Some(Version(3))));
        assert_eq!(version("W/\"3\""), Ok(Some(Version(0))));
        assert_eq!(version("\"abc\""), Ok(Some(Version(0))));
        assert!(version("3").is_err() && version("\"1\", \"2\"").is_err());
    }

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&headers("traceparent", &[good])).as_deref(), Some(good));
        assert_eq!(traceparent(&headers("traceparent", &["00-xyz-1-01"])), None);
    }
}
