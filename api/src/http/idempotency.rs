//! What identifies a command: its key, its fingerprint, and the context it came in.
//!
//! Idempotency-Key follows the IETF draft "The Idempotency-Key HTTP Header Field": a quoted string; a bare token is
//! taken too, because most clients send one.

use basket::application::{BasketCommand, CommandContext, CommandEnvelope, CommandId, IdempotencyKey};
use basket::domain::Principal;
use chrono::{SubsecRound, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use warp::http::HeaderMap;
use warp::http::header::IF_MATCH;

use super::problem::{Problem, kinds};
use super::request::Request;

const KEY: &str = "idempotency-key";
const CORRELATION_ID: &str = "correlation-id";
/// Longest key and correlation id.
const MAX_TEXT: usize = 255;
/// Longest trace state that is carried on (W3C Trace Context asks for 512 at least).
const MAX_TRACESTATE: usize = 512;

/// Whether a command needs a key from its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// It does: repeated by chance it would be executed again.
    Required,
    /// It does not: repeated it changes nothing more, or is refused.
    Optional,
}

/// The command of a request, with what identifies it.
pub fn envelope(
    request: &Request,
    principal: Principal,
    command: BasketCommand,
    key: Key,
) -> Result<CommandEnvelope, Problem> {
    let headers = &request.headers;
    let id = CommandId(Uuid::now_v7());
    let traceparent = traceparent(headers);
    let tracestate = tracestate(headers);
    let context = CommandContext {
        principal,
        correlation_id: text(headers, CORRELATION_ID)?.unwrap_or_else(|| id.to_string()),
        tracestate: traceparent.as_ref().and(tracestate),
        traceparent,
    };
    let idempotency_key = idempotency_key(headers, key)?;
    let idempotency_key =
        idempotency_key.map(|key| IdempotencyKey { key, fingerprint: fingerprint(request) });
    Ok(CommandEnvelope {
        id,
        command,
        context,
        idempotency_key,
        // What PostgreSQL keeps: an answer must not change when it is read back.
        received_at: Utc::now().trunc_subsecs(6),
    })
}

fn idempotency_key(headers: &HeaderMap, key: Key) -> Result<Option<String>, Problem> {
    if !headers.contains_key(KEY) {
        let detail =
            "send the header Idempotency-Key with a name for this request that you have not used before";
        return if key == Key::Required { Err(Problem::new(&kinds::KEY_MISSING, detail)) } else { Ok(None) };
    }
    let text = single(headers, KEY);
    let text = text.and_then(|text| if text.starts_with('"') { unquoted(&text) } else { bare(text) });
    let wrong = || {
        let detail = format!(
            "Idempotency-Key must be one string of 1 to {MAX_TEXT} ASCII characters, quoted if it contains white space"
        );
        Problem::malformed(detail)
    };
    text.filter(|key| (1..=MAX_TEXT).contains(&key.len())).map(Some).ok_or_else(wrong)
}

/// A string of structured fields (RFC 9651, section 3.3.3).
fn unquoted(text: &str) -> Option<String> {
    let mut characters = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut key = String::new();
    while let Some(character) = characters.next() {
        match character {
            '\\' => key.push(characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            '"' => return None,
            ' '..='~' => key.push(character),
            _ => return None,
        }
    }
    Some(key)
}

fn bare(text: String) -> Option<String> {
    text.bytes().all(|b| b.is_ascii_graphic() && b != b'"').then_some(text)
}

/// SHA-256 over everything that distinguishes this request: method, path, If-Match, and the body in a form in
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

/// W3C Trace Context: a value of version 00, or what is known of a later one. Anything else starts no trace.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = single(headers, "traceparent")?;
    let mut fields = value.split('-');
    let mut field = |width: usize| {
        let is_hex = |field: &&str| field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fields.next().filter(|field| field.len() == width).filter(is_hex)
    };
    let (version, trace, parent, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let is_zero = |id: &str| id.bytes().all(|b| b == b'0');
    let has_more = fields.next().is_some();
    if version == "ff" || is_zero(trace) || is_zero(parent) || (version == "00" && has_more) {
        return None;
    }
    Some(format!("00-{trace}-{parent}-{flags}"))
}

/// All lines of it together: a list may be spread over several.
fn tracestate(headers: &HeaderMap) -> Option<String> {
    let lines: Result<Vec<&str>, _> =
        headers.get_all("tracestate").iter().map(|line| line.to_str()).collect();
    Some(lines.ok()?.join(",")).filter(|state| (1..=MAX_TRACESTATE).contains(&state.len()))
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

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_key_is_taken_quoted_and_bare_and_nothing_else() {
        let key = |values: &[&str]| idempotency_key(&headers(KEY, values), Key::Required);
        assert_eq!(key(&["abc-1"]).unwrap().as_deref(), Some("abc-1"));
        assert_eq!(key(&["\"abc-1\""]).unwrap().as_deref(), Some("abc-1"));
        assert_eq!(key(&["\"a b \\\" \\\\\""]).unwrap().as_deref(), Some("a b \" \\"));
        let longest = "k".repeat(255);
        for text in [longest.clone(), format!("\"{longest}\"")] {
            assert_eq!(key(&[text.as_str()]).unwrap().as_deref(), Some(longest.as_str()));
        }
        let too_long = "k".repeat(256);
        for bad in [
            &["\"\""][..],
            &[""],
            &["a b"],
            &["a", "b"],
            &["a\"b"],
            &["\"a"],
            &["\"a\\n\""],
            &["\"\\\""],
            &[too_long.as_str()],
        ] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
        assert!(key(&[]).is_err());
        assert_eq!(idempotency_key(&HeaderMap::new(), Key::Optional).unwrap(), None);
    }

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&headers("traceparent", &[good])).as_deref(), Some(good));
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let later = format!("01-{trace}-{parent}-01-more");
        assert_eq!(
            traceparent(&headers("traceparent", &[later.as_str()])).as_deref(),
            Some(good),
            "what is known of it"
        );
        let zeros = "0".repeat(32);
        let bad = [
            "00-xyz-1-01".to_owned(),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{zeros}-{parent}-01"),
            format!("00-{trace}-{}-01", &zeros[..16]),
            format!("00-{trace}-{parent}-01-more"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
        ];
        for bad in bad {
            assert_eq!(traceparent(&headers("traceparent", &[bad.as_str()])), None);
        }
    }

    #[test]
    fn the_lines_of_a_tracestate_are_one_list() {
        assert_eq!(tracestate(&headers("tracestate", &["a=1", "b=2"])).as_deref(), Some("a=1,b=2"));
        assert_eq!(tracestate(&HeaderMap::new()), None);
    }
}
