//! Errors as RFC 9457 problem details: the one place where what went wrong becomes an HTTP answer.
//!
//! A detail tells the client what to do. It never holds SQL, a path, a secret, or what a source said: that is logged,
//! once, here.

pub mod kinds;

use basket::application::DispatchError;
use basket::application::ports::PortError;
use basket::domain::Refusal;
use kinds::Kind;
use schemars::JsonSchema;
use serde::Serialize;
use warp::http::header::{ALLOW, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

/// How long a client should wait for a concurrent duplicate of its command to end, for room, or for the database to come back.
const RETRY_AFTER_SECONDS: &str = "1";

/// An error answer.
#[derive(Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: String,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FieldError {
    /// What is wrong and what is allowed.
    pub detail: String,
    /// JSON pointer (RFC 6901) to the field.
    pub pointer: String,
}

/// A problem (RFC 9457).
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct Body<'a> {
    /// What kind of problem: a URI, relative to the service, with a page that explains it.
    #[schemars(extend("format" = "uri-reference"))]
    r#type: String,
    /// Title of the type.
    title: &'a str,
    /// HTTP status.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// What to do about this one.
    detail: &'a str,
    /// This one: the request's id finds it in the service's log.
    instance: String,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schemars(with = "Vec<FieldError>")]
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem of a kind.
    pub fn new(kind: &'static Kind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), errors: Vec::new(), headers: Vec::new() }
    }

    /// A problem that passes: with the time after which to try again.
    pub fn later(kind: &'static Kind, detail: impl Into<String>) -> Problem {
        Problem::new(kind, detail).with_header(RETRY_AFTER, RETRY_AFTER_SECONDS)
    }

    fn with_header(mut self, name: HeaderName, value: &str) -> Problem {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// 400: a header, parameter or body that cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new(&kinds::MALFORMED, detail)
    }

    /// 401; `error` as RFC 6750 has it, where a token was sent.
    pub fn unauthenticated(error: Option<&str>) -> Problem {
        let challenge = match error {
            None => "Bearer".to_owned(),
            Some(error) => format!("Bearer error=\"invalid_token\", error_description=\"{error}\""),
        };
        Problem::new(&kinds::UNAUTHENTICATED, "send the header Authorization: Bearer with a valid token")
            .with_header(WWW_AUTHENTICATE, &challenge)
    }

    /// 404 for a basket. The same for one that does not exist and for another caller's.
    pub fn basket_not_found() -> Problem {
        Problem::from(&Refusal::BasketNotFound)
    }

    /// 404 for a command. The same for one that does not exist and one of another principal.
    pub fn command_not_found() -> Problem {
        Problem::new(&kinds::COMMAND_NOT_FOUND, "there is no command with this id")
    }

    /// 405.
    pub fn method_not_allowed(allowed: &str) -> Problem {
        Problem::new(&kinds::METHOD_NOT_ALLOWED, format!("this resource allows {allowed}"))
            .with_header(ALLOW, allowed)
    }

    /// 422: values that are not allowed.
    pub fn invalid(errors: Vec<FieldError>) -> Problem {
        let detail = "values of the request are not allowed; see errors";
        Problem { errors, ..Problem::new(&kinds::INVALID, detail) }
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.kind.status
    }

    /// What is wrong with which field.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// The body; `request_id` lets an operator find the log lines.
    pub fn body(&self, request_id: &str) -> Body<'_> {
        Body {
            r#type: self.kind.uri(),
            title: self.kind.title,
            status: self.kind.status.as_u16(),
            detail: &self.detail,
            instance: format!("/requests/{request_id}"),
            errors: &self.errors,
        }
    }

    /// As an answer.
    pub fn into_response(self, request_id: &str) -> Response {
        let text = serde_json::to_string(&self.body(request_id)).unwrap_or_default();
        let mut response = warp::reply::with_status(text, self.kind.status).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

impl From<&Refusal> for Problem {
    fn from(refusal: &Refusal) -> Problem {
        let kind = match refusal {
            Refusal::BasketNotFound => &kinds::BASKET_NOT_FOUND,
            Refusal::ItemNotFound => &kinds::ITEM_NOT_FOUND,
            Refusal::BasketClosed => &kinds::BASKET_CLOSED,
            Refusal::BasketEmpty => &kinds::BASKET_EMPTY,
            Refusal::PriceMismatch => &kinds::PRICE_MISMATCH,
            Refusal::CurrencyMismatch => &kinds::CURRENCY_MISMATCH,
            Refusal::TooManyLines | Refusal::TooManyPieces => &kinds::BASKET_LIMIT,
            Refusal::VersionMismatch { .. } => &kinds::VERSION_MISMATCH,
        };
        let problem = Problem::new(kind, refusal.to_string());
        match refusal {
            Refusal::VersionMismatch { current } => problem.with_header(ETAG, &format!("\"{current}\"")),
            _ => problem,
        }
    }
}

impl From<DispatchError> for Problem {
    fn from(error: DispatchError) -> Problem {
        match error {
            DispatchError::InProgress => Problem::later(
                &kinds::KEY_IN_PROGRESS,
                "a request with this Idempotency-Key is in progress; repeat it in a moment to get its answer",
            ),
            DispatchError::KeyReused => Problem::new(
                &kinds::KEY_REUSED,
                "use a new Idempotency-Key for a request that is not a repetition",
            ),
            DispatchError::Port(PortError::Conflict(_)) => {
                Problem::later(&kinds::UNAVAILABLE, "too many commands change this basket at once; repeat it")
            }
            DispatchError::Port(error) => Problem::from(error),
            DispatchError::SerializationFailed(error) => bug(&error),
        }
    }
}

impl From<PortError> for Problem {
    fn from(error: PortError) -> Problem {
        match error {
            PortError::Unavailable(_) | PortError::Conflict(_) => {
                tracing::warn!(error = chain(&error), "the database is not available");
                let detail =
                    "the database is down or overloaded; repeat the request with the same Idempotency-Key";
                Problem::later(&kinds::UNAVAILABLE, detail)
            }
            PortError::TimedOut(_) => {
                tracing::warn!(error = chain(&error), "the database did not finish in time");
                let detail = "the database did not finish in time, mostly because another request holds what this one \
                              needs; repeat the request with the same Idempotency-Key";
                Problem::later(&kinds::UNAVAILABLE, detail)
            }
            PortError::Failed(_) => bug(&error),
        }
    }
}

fn bug(error: &dyn std::error::Error) -> Problem {
    tracing::error!(error = chain(error), "bug: a command or query failed");
    Problem::new(&kinds::BUG, "this is a bug; report it with the request's id")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    chain
}
