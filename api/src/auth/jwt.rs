//! Access tokens: JSON Web Tokens signed by the issuer (RFC 7519, RFC 9068, RFC 8725).
//!
//! What is checked never depends on what the token asks for: the algorithm follows from the issuer's key, and every
//! claim that matters must be there and have its type.

use std::sync::Arc;

use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::{Found, KeySource, Keys, SetUpError};

/// Longest token: larger ones do not fit into a header anyway.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far the issuer's clock and ours may be apart.
const LEEWAY_SECONDS: u64 = 30;
/// Longest subject: it becomes part of rows and logs.
const MAX_SUBJECT: usize = 200;

/// What a token must say.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// Its `iss`, exactly.
    pub issuer: String,
    /// One of its `aud`.
    pub audience: String,
    /// The claim with the roles: a list, or words in one text. Dots lead into objects.
    pub roles_claim: String,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The issuer's name for the caller.
    pub subject: String,
    /// What the caller may do.
    pub roles: Vec<String>,
}

/// Why a token says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not valid, with the reason; nothing of the token itself.
    #[error("the token is not valid: {0}")]
    Invalid(&'static str),
    /// The issuer's keys could not be read yet.
    #[error("the token issuer's keys are not known yet")]
    KeysUnavailable,
}

/// Verifies tokens.
pub struct TokenVerifier {
    rules: TokenRules,
    keys: Keys,
}

/// Times have to be numbers: the library takes a text for a claim that is not there.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "exp")]
    _exp: u64,
    #[serde(default, rename = "nbf")]
    _nbf: Option<u64>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl TokenVerifier {
    /// Tokens that follow `rules`, signed by keys of `source`.
    pub fn new(rules: TokenRules, source: KeySource) -> Result<TokenVerifier, SetUpError> {
        Ok(TokenVerifier { rules, keys: Keys::new(source)? })
    }

    /// Reads the issuer's keys from time to time, for ever.
    pub async fn keep_fresh(self: Arc<TokenVerifier>) {
        self.keys.keep_fresh().await;
    }

    /// Whose the token is.
    pub async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid("it is too long"));
        }
        let header = decode_header(token).map_err(|_| TokenError::Invalid("it is not a signed JWT"))?;
        let is_access_token =
            |typ: &String| typ.eq_ignore_ascii_case("jwt") || typ.eq_ignore_ascii_case("at+jwt");
        if !header.typ.as_ref().is_none_or(is_access_token) {
            return Err(TokenError::Invalid("it is not an access token"));
        }
        if header.crit.is_some() {
            return Err(TokenError::Invalid("it has critical extensions"));
        }
        let key = match self.keys.find(header.kid.as_deref()).await {
            Found::Key(key) => key,
            Found::Unknown => return Err(TokenError::Invalid("its key is unknown")),
            Found::NoKeys => return Err(TokenError::KeysUnavailable),
        };
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[&self.rules.issuer]);
        validation.set_audience(&[&self.rules.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let token = decode::<Claims>(token, &key.key, &validation).map_err(|error| reason(&error))?;
        self.identity(token.claims)
    }

    fn identity(&self, claims: Claims) -> Result<Identity, TokenError> {
        let subject = claims.sub;
        let usable = (1..=MAX_SUBJECT).contains(&subject.len()) && !subject.chars().any(char::is_control);
        if !usable {
            return Err(TokenError::Invalid("its subject cannot be used"));
        }
        Ok(Identity { subject, roles: roles(&claims.others, &self.rules.roles_claim) })
    }
}

/// No roles where the claim is missing or something else.
fn roles(claims: &Map<String, Value>, path: &str) -> Vec<String> {
    let mut names = path.split('.');
    let mut claim = names.next().and_then(|name| claims.get(name));
    for name in names {
        claim = claim.and_then(|claim| claim.get(name));
    }
    match claim {
        Some(Value::Array(roles)) => roles.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(roles)) => roles.split(' ').map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn reason(error: &jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind as E;
    TokenError::Invalid(match error.kind() {
        E::ExpiredSignature => "it has expired",
        E::ImmatureSignature => "it is not valid yet",
        E::InvalidIssuer => "it is another issuer's",
        E::InvalidAudience => "it is for another audience",
        E::InvalidSignature => "its signature is wrong",
        E::InvalidAlgorithm | E::InvalidAlgorithmName => "its algorithm is not that of its key",
        E::MissingRequiredClaim(_) => "a claim is missing",
        _ => "it cannot be read",
    })
}
