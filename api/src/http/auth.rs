//! Who is asking.

use warp::http::HeaderMap;
use warp::http::header::AUTHORIZATION;

use super::problem::Problem;
use crate::config::Authentication;

/// The principal of the development token.
const DEVELOPER: &str = "developer";
/// The principal without authentication.
const ANONYMOUS: &str = "anonymous";

/// The principal of a request.
pub fn authenticate(how: &Authentication, headers: &HeaderMap) -> Result<&'static str, Problem> {
    let Authentication::StaticToken(expected) = how else { return Ok(ANONYMOUS) };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) if same(token.trim().as_bytes(), expected.as_bytes()) => Ok(DEVELOPER),
        _ => Err(Problem::unauthenticated()),
    }
}

/// Takes the same time wherever the first difference is, so that a token cannot be guessed byte by byte.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given.iter().zip(expected).fold(0, |seen, (a, b)| seen | (a ^ b));
    given.len() == expected.len() && differences == 0
}
