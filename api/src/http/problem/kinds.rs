//! Every problem type of the service, with what its page under `/problems/` says. A type that only repeats its HTTP
//! status is `about:blank`, as RFC 9457 recommends, and has no page.

use warp::http::StatusCode;

/// A problem type.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Last segment of its URI; none for `about:blank`.
    pub slug: Option<&'static str>,
    /// HTTP status of every problem of this type.
    pub status: StatusCode,
    /// Title of every problem of this type.
    pub title: &'static str,
    /// What it means and what to do.
    pub meaning: &'static str,
}

impl Kind {
    const fn named(
        slug: &'static str,
        status: StatusCode,
        title: &'static str,
        meaning: &'static str,
    ) -> Kind {
        Kind { slug: Some(slug), status, title, meaning }
    }

    const fn blank(status: StatusCode, title: &'static str, meaning: &'static str) -> Kind {
        Kind { slug: None, status, title, meaning }
    }

    /// Its URI, relative to the service.
    pub fn uri(&self) -> String {
        self.slug.map_or_else(|| "about:blank".to_owned(), |slug| format!("/problems/{slug}"))
    }
}

type S = StatusCode;

/// A request that cannot be read.
pub static MALFORMED: Kind = Kind::named(
    "malformed-request",
    S::BAD_REQUEST,
    "Malformed request",
    "A header, a parameter or the body cannot be read. The detail says which, and what is allowed.",
);
/// A command that needs a key and has none.
pub static KEY_MISSING: Kind = Kind::named(
    "idempotency-key-missing",
    S::BAD_REQUEST,
    "Idempotency-Key is missing",
    "Every POST needs its own idempotency key, so that it can be repeated safely. Send the header Idempotency-Key with a \
     new UUID, and the same one when you repeat the request.",
);
/// No or a wrong token.
pub static UNAUTHENTICATED: Kind =
    Kind::blank(S::UNAUTHORIZED, "Unauthorized", "Send the header Authorization: Bearer with a valid token.");
/// A token that does not allow this.
pub static FORBIDDEN: Kind =
    Kind::blank(S::FORBIDDEN, "Forbidden", "The token is valid, but does not allow this.");
/// Nothing at this path.
pub static NOT_FOUND: Kind = Kind::blank(S::NOT_FOUND, "Not Found", "There is nothing at this path.");
/// No such basket, or another caller's.
pub static BASKET_NOT_FOUND: Kind = Kind::named(
    "basket-not-found",
    S::NOT_FOUND,
    "Basket not found",
    "There is no such basket, or it belongs to another principal: the answer is the same.",
);
/// No such item.
pub static ITEM_NOT_FOUND: Kind = Kind::named(
    "item-not-found",
    S::NOT_FOUND,
    "Item not found",
    "The basket has no item with this sku. The basket itself is there.",
);
/// No such command, or another caller's.
pub static COMMAND_NOT_FOUND: Kind = Kind::named(
    "command-not-found",
    S::NOT_FOUND,
    "Command not found",
    "There is no such command, or it was sent by another principal and the token has no auditor role.",
);
/// Wrong method.
pub static METHOD_NOT_ALLOWED: Kind = Kind::blank(
    S::METHOD_NOT_ALLOWED,
    "Method Not Allowed",
    "The header Allow lists the methods of this resource.",
);
/// Nothing the caller accepts.
pub static NOT_ACCEPTABLE: Kind =
    Kind::blank(S::NOT_ACCEPTABLE, "Not Acceptable", "This resource is application/json only.");
/// The body did not arrive.
pub static TOO_SLOW: Kind =
    Kind::blank(S::REQUEST_TIMEOUT, "Request Timeout", "The request's body did not arrive in time.");
/// The basket never changes again.
pub static BASKET_CLOSED: Kind = Kind::named(
    "basket-closed",
    S::CONFLICT,
    "Basket is closed",
    "The basket was checked out or abandoned and never changes again. Create a new one.",
);
/// Nothing to order.
pub static BASKET_EMPTY: Kind = Kind::named(
    "basket-empty",
    S::CONFLICT,
    "Basket is empty",
    "A basket needs at least one item to be checked out.",
);
/// The article is there at another price.
pub static PRICE_MISMATCH: Kind = Kind::named(
    "price-mismatch",
    S::CONFLICT,
    "Article has another price",
    "The basket has this article at another price, which is frozen on its line. Remove the item and add it again.",
);
/// Items in another currency.
pub static CURRENCY_MISMATCH: Kind = Kind::named(
    "currency-mismatch",
    S::CONFLICT,
    "Another currency",
    "All items of a basket have one currency: that of the first one.",
);
/// A bound of the basket.
pub static BASKET_LIMIT: Kind = Kind::named(
    "basket-limit",
    S::CONFLICT,
    "Basket is at its limit",
    "The basket cannot take more lines, or more pieces of this article.",
);
/// A concurrent duplicate is in progress.
pub static KEY_IN_PROGRESS: Kind = Kind::named(
    "idempotency-key-in-progress",
    S::CONFLICT,
    "The same request is being executed",
    "A request with this Idempotency-Key is in progress. Repeat it after Retry-After to get its answer.",
);
/// A stale version.
pub static VERSION_MISMATCH: Kind = Kind::named(
    "version-mismatch",
    S::PRECONDITION_FAILED,
    "Basket has changed",
    "If-Match does not name the basket's current version, which is in the header ETag. Read the basket and decide again.",
);
/// Too large a body.
pub static TOO_LARGE: Kind = Kind::blank(S::PAYLOAD_TOO_LARGE, "Content Too Large", "The body is too large.");
/// Too long a URI.
pub static URI_TOO_LONG: Kind = Kind::blank(S::URI_TOO_LONG, "URI Too Long", "The URI is too long.");
/// Not JSON.
pub static NOT_JSON: Kind = Kind::blank(
    S::UNSUPPORTED_MEDIA_TYPE,
    "Unsupported Media Type",
    "Send the body as Content-Type: application/json, without Content-Encoding.",
);
/// A value that is not allowed.
pub static INVALID: Kind = Kind::named(
    "validation-failed",
    S::UNPROCESSABLE_ENTITY,
    "Validation failed",
    "The body is JSON, but a value is not allowed. The member errors says which, as a JSON pointer, and why.",
);
/// The key was used for something else.
pub static KEY_REUSED: Kind = Kind::named(
    "idempotency-key-reused",
    S::UNPROCESSABLE_ENTITY,
    "Idempotency-Key was used for another request",
    "This key was sent before with another path, body or If-Match. Use a new key for a new request.",
);
/// If-Match is demanded.
pub static PRECONDITION_REQUIRED: Kind = Kind::named(
    "precondition-required",
    S::PRECONDITION_REQUIRED,
    "If-Match is required",
    "This service is configured to change a basket only for callers that know its version: send it as If-Match.",
);
/// Too many requests.
pub static TOO_MANY: Kind = Kind::blank(
    S::TOO_MANY_REQUESTS,
    "Too Many Requests",
    "Too many requests of this principal, per second or in flight. Repeat after Retry-After.",
);
/// Too large a header.
pub static HEADERS_TOO_LARGE: Kind = Kind::blank(
    S::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "Request Header Fields Too Large",
    "The request's headers are too large.",
);
/// A bug.
pub static BUG: Kind = Kind::blank(
    S::INTERNAL_SERVER_ERROR,
    "Internal Server Error",
    "This is a bug. Report it with the request's id.",
);
/// Not now.
pub static UNAVAILABLE: Kind = Kind::named(
    "unavailable",
    S::SERVICE_UNAVAILABLE,
    "Service unavailable",
    "The service cannot do its work now, usually because its database is down or overloaded. A command may or may not have \
     been executed: repeat it with the same Idempotency-Key after Retry-After to learn which.",
);

/// All of them, in the order of their statuses.
pub static ALL: [&Kind; 28] = [
    &MALFORMED,
    &KEY_MISSING,
    &UNAUTHENTICATED,
    &FORBIDDEN,
    &NOT_FOUND,
    &BASKET_NOT_FOUND,
    &ITEM_NOT_FOUND,
    &COMMAND_NOT_FOUND,
    &METHOD_NOT_ALLOWED,
    &NOT_ACCEPTABLE,
    &TOO_SLOW,
    &BASKET_CLOSED,
    &BASKET_EMPTY,
    &PRICE_MISMATCH,
    &CURRENCY_MISMATCH,
    &BASKET_LIMIT,
    &KEY_IN_PROGRESS,
    &VERSION_MISMATCH,
    &TOO_LARGE,
    &URI_TOO_LONG,
    &NOT_JSON,
    &INVALID,
    &KEY_REUSED,
    &PRECONDITION_REQUIRED,
    &TOO_MANY,
    &HEADERS_TOO_LARGE,
    &BUG,
    &UNAVAILABLE,
];
