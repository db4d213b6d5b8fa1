//! Who is asking, and what for.

use std::fmt;
use std::sync::Arc;

use basket::domain::Principal;
use warp::http::HeaderMap;
use warp::http::header::AUTHORIZATION;

use super::problem::{Problem, kinds};
use crate::auth::{TokenError, TokenVerifier};

/// The principal of the development token.
const DEVELOPER: &str = "developer";
/// The principal without authentication.
const ANONYMOUS: &str = "anonymous";

/// How requests are authenticated.
#[derive(Clone)]
pub enum Authentication {
    /// By OIDC access tokens.
    Tokens {
        /// Verifies them.
        verifier: Arc<TokenVerifier>,
        /// The role that may read the commands of all principals.
        auditor_role: String,
    },
    /// By one bearer token for all callers: for development.
    StaticToken(String),
    /// Not at all.
    Anonymous,
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Authentication::Tokens { .. } => "Tokens",
            Authentication::StaticToken(_) => "StaticToken([redacted])",
            Authentication::Anonymous => "Anonymous",
        })
    }
}

/// The sender of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The principal it acts as.
    pub principal: Principal,
    /// Its name.
    pub name: String,
    /// Whether it may read the commands of all principals.
    pub auditor: bool,
}

impl Caller {
    /// A name of a part of the service is refused: its commands are not the caller's.
    fn new(name: &str, auditor: bool) -> Result<Caller, Problem> {
        let refused = |_| Problem::unauthenticated(Some("its subject cannot be used"));
        let principal = Principal::caller(name).map_err(refused)?;
        Ok(Caller { principal, name: name.to_owned(), auditor })
    }
}

impl Authentication {
    /// Whether any caller can be recognised.
    pub fn is_ready(&self) -> bool {
        match self {
            Authentication::Tokens { verifier, .. } => verifier.has_keys(),
            Authentication::StaticToken(_) | Authentication::Anonymous => true,
        }
    }

    /// The caller of a request.
    pub async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        match self {
            Authentication::Anonymous => Caller::new(ANONYMOUS, false),
            Authentication::StaticToken(expected) => {
                let right = same(bearer(headers)?.as_bytes(), expected.as_bytes());
                if !right {
                    return Err(Problem::unauthenticated(Some("the token is not valid")));
                }
                Caller::new(DEVELOPER, false)
            }
            Authentication::Tokens { verifier, auditor_role } => {
                match verifier.verify(bearer(headers)?).await {
                    Ok(identity) => {
                        let auditor = identity.roles.iter().any(|role| role == auditor_role);
                        Caller::new(&identity.subject, auditor)
                    }
                    Err(TokenError::Invalid(reason)) => {
                        tracing::info!(reason, "a token was refused");
                        Err(Problem::unauthenticated(Some(reason)))
                    }
                    Err(TokenError::KeysUnavailable) => {
                        let detail =
                            "the keys of the token issuer have not been read yet; repeat it in a moment";
                        Err(Problem::later(&kinds::UNAVAILABLE, detail))
                    }
                }
            }
        }
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (value, another) = (given.next(), given.next());
    let token = value
        .filter(|_| another.is_none())
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    token.map(|(_, token)| token.trim()).ok_or_else(|| Problem::unauthenticated(None))
}

/// Takes the same time wherever the first difference is, so that a token cannot be guessed byte by byte.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given.iter().zip(expected).fold(0, |seen, (a, b)| seen | (a ^ b));
    given.len() == expected.len() && differences == 0
}
