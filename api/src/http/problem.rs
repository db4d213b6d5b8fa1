//! Errors as RFC 9457 problem details: the one place where an error of the application becomes a status.
//!
//! A body says what the client can do about it. It never holds SQL, a path, or anything of another client; the log
//! has the rest, under the request's id.

use basket::application::BusError;
use basket::application::ports::PortError;
use basket::domain::Refusal;
use serde::Serialize;
use warp::http::header::{ALLOW, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::{Reply, Response};

/// How long a client should wait for a twin of its command to end, or for the database to come back.
const RETRY_AFTER_SECONDS: &str = "1";

/// An error answer.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    kind: Option<&'static str>,
    title: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What is wrong with one field.
#[derive(Debug, Serialize)]
pub struct FieldError {
    /// What is wrong and what is allowed.
    pub detail: String,
    /// JSON pointer to the field.
    pub pointer: String,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    fn new(
        status: StatusCode,
        kind: Option<&'static str>,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Problem {
        Problem { status, kind, title, detail: detail.into(), errors: Vec::new(), headers: Vec::new() }
    }

    fn with_header(mut self, name: HeaderName, value: &str) -> Problem {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// 400: a header, parameter or body that cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, Some("malformed-request"), "Malformed request", detail)
    }

    /// 400: a command that needs a key and has none.
    pub fn key_missing() -> Problem {
        let detail =
            "send the header Idempotency-Key with a name for this request that you have not used before";
        Problem::new(
            StatusCode::BAD_REQUEST,
            Some("idempotency-key-missing"),
            "Idempotency-Key is missing",
            detail,
        )
    }

    /// 401.
    pub fn unauthenticated() -> Problem {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            None,
            "Unauthorized",
            "send the header Authorization: Bearer with a valid token",
        )
        .with_header(WWW_AUTHENTICATE, "Bearer")
    }

    /// 404 for a path.
    pub fn not_found() -> Problem {
        Problem::new(StatusCode::NOT_FOUND, None, "Not Found", "there is nothing at this path")
    }

    /// 404 for a basket. The same for one that never was and one that is somebody else's.
    pub fn basket_not_found() -> Problem {
        Problem::from(&Refusal::BasketNotFound)
    }

    /// 405.
    pub fn method_not_allowed(allowed: &str) -> Problem {
        let detail = format!("this resource allows {allowed}");
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, None, "Method Not Allowed", detail)
            .with_header(ALLOW, allowed)
    }

    /// 408.
    pub fn too_slow() -> Problem {
        Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            None,
            "Request Timeout",
            "the request's body did not arrive in time",
        )
    }

    /// 413.
    pub fn too_large(limit: usize) -> Problem {
        let detail = format!("a request's body has at most {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, None, "Content Too Large", detail)
    }

    /// 415.
    pub fn not_json() -> Problem {
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            None,
            "Unsupported Media Type",
            "send the body as Content-Type: application/json",
        )
    }

    /// 422: a value that is not allowed.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Problem {
        let mut problem = Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            Some("validation-failed"),
            "Validation failed",
            "a value of the request is not allowed",
        );
        problem.errors.push(FieldError { detail: detail.into(), pointer: pointer.into() });
        problem
    }

    /// As an answer; `request_id` lets an operator find the log lines.
    pub fn into_response(self, request_id: &str) -> Response {
        let body = Body {
            r#type: self.kind.map_or_else(|| "about:blank".to_owned(), |kind| format!("/problems/{kind}")),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            instance: format!("/requests/{request_id}"),
            errors: &self.errors,
        };
        let text = serde_json::to_string(&body).unwrap_or_default();
        let mut response = warp::reply::with_status(text, self.status).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
            .headers_mut()
            .extend(self.headers.into_iter().map(|(name, value)| (Some(name), value)).collect::<Vec<_>>());
        response
    }
}

impl From<&Refusal> for Problem {
    fn from(refusal: &Refusal) -> Problem {
        use StatusCode as S;
        let (status, kind, title) = match refusal {
            Refusal::BasketNotFound => (S::NOT_FOUND, "basket-not-found", "Basket not found"),
            Refusal::BasketClosed => (S::CONFLICT, "basket-closed", "Basket is closed"),
            Refusal::BasketEmpty => (S::CONFLICT, "basket-empty", "Basket is empty"),
            Refusal::PriceMismatch => (S::CONFLICT, "price-mismatch", "Article has another price"),
            Refusal::CurrencyMismatch => (S::UNPROCESSABLE_ENTITY, "currency-mismatch", "Another currency"),
            Refusal::TooManyLines | Refusal::TooManyPieces | Refusal::TotalTooLarge => {
                (S::UNPROCESSABLE_ENTITY, "basket-limit", "Basket is at its limit")
            }
            Refusal::VersionMismatch { .. } => {
                (S::PRECONDITION_FAILED, "version-mismatch", "Basket has changed")
            }
        };
        let problem = Problem::new(status, Some(kind), title, refusal.to_string());
        match refusal {
            Refusal::VersionMismatch { current } => problem.with_header(ETAG, &format!("\"{current}\"")),
            _ => problem,
        }
    }
}

impl From<BusError> for Problem {
    fn from(error: BusError) -> Problem {
        match error {
            BusError::InProgress => Problem::new(
                StatusCode::CONFLICT,
                Some("idempotency-key-in-progress"),
                "The same request is being executed",
                "a request with this Idempotency-Key is under way; repeat it in a moment to get its answer",
            )
            .with_header(RETRY_AFTER, RETRY_AFTER_SECONDS),
            BusError::KeyReused => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                Some("idempotency-key-reused"),
                "Idempotency-Key was used for another request",
                "use a new Idempotency-Key for a request that is not a repetition",
            ),
            BusError::Port(error) => Problem::from(error),
        }
    }
}

impl From<PortError> for Problem {
    fn from(error: PortError) -> Problem {
        let mut chain = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            chain = format!("{chain}: {cause}");
            source = cause.source();
        }
        match error {
            PortError::Unavailable(_) => {
                tracing::warn!(error = chain, "the database is not available");
                let detail =
                    "the service cannot reach its database; nothing was changed that is not shown; try again";
                Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    Some("unavailable"),
                    "Service unavailable",
                    detail,
                )
                .with_header(RETRY_AFTER, RETRY_AFTER_SECONDS)
            }
            PortError::Failed(_) => {
                tracing::error!(error = chain, "bug: a command or query failed");
                let detail = "this is a bug; report it with the request's id";
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, None, "Internal Server Error", detail)
            }
        }
    }
}
