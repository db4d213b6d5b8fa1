//! Access tokens: JSON Web Tokens signed by the issuer (RFC 7519, RFC 9068, RFC 8725).
//!
//! What is checked never depends on what the token asks for: the algorithm follows from the issuer's key, and every
//! claim that matters must be present and have its type.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Header, Validation, decode, decode_header};

use super::claims::{self, Claims};
use super::key_source::{KeySource, SetUpError};
use super::keys::{Found, Keys};
use crate::metrics::Metrics;

/// Longest token: larger ones do not fit into a header anyway.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Longest subject: it becomes part of rows and logs.
const MAX_SUBJECT: usize = 200;

/// What a token must say.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// Its `iss`, exactly.
    pub issuer: String,
    /// One of the values of its audience claim.
    pub audience: String,
    /// Which claims say what.
    pub claims: ClaimNames,
    /// Only tokens whose type is `at+jwt` (RFC 9068): an ID token can have the same audience.
    pub require_at_jwt: bool,
    /// How far the issuer's clock and ours may be apart.
    pub leeway: Duration,
}

/// Names of claims, or paths with dots.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// Whom the token is for: `aud`, or `client_id` with issuers that put no audience into access tokens (Cognito).
    pub audience: String,
    /// Who the caller is.
    pub subject: String,
    /// What the caller may do: lists, or words in a text.
    pub roles: Vec<String>,
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

impl TokenVerifier {
    /// Tokens that follow `rules`, signed by keys of `source`.
    pub fn new(rules: TokenRules, source: KeySource) -> Result<TokenVerifier, SetUpError> {
        Ok(TokenVerifier { rules, keys: Keys::new(source)? })
    }

    /// Reads the issuer's keys now and again, without end.
    pub async fn keep_fresh(self: Arc<TokenVerifier>, metrics: Metrics) {
        self.keys.keep_fresh(&metrics).await;
    }

    /// Whether any token can be verified.
    pub fn has_keys(&self) -> bool {
        self.keys.are_known()
    }

    /// Whose the token is.
    pub async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid("it is too long"));
        }
        let header = decode_header(token).map_err(|_| TokenError::Invalid("it is not a signed JWT"))?;
        self.check_header(&header)?;
        let key = match self.keys.find(header.kid.as_deref()).await {
            Found::Key(key) => key,
            Found::Unknown => return Err(TokenError::Invalid("its key is unknown")),
            Found::NotYet => return Err(TokenError::KeysUnavailable),
        };
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[&self.rules.issuer]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        validation.validate_nbf = true;
        // Here, because it may have another name.
        validation.validate_aud = false;
        validation.leeway = self.rules.leeway.as_secs();
        let token = decode::<Claims>(token, &key.key, &validation).map_err(|error| reason(&error))?;
        self.identity(&token.claims)
    }

    fn check_header(&self, header: &Header) -> Result<(), TokenError> {
        if header.crit.is_some() {
            return Err(TokenError::Invalid("it has critical extensions"));
        }
        let media_type = header.typ.as_deref().map(str::to_ascii_lowercase);
        // "application/" may be left out (RFC 7515, section 4.1.9).
        let media_type = media_type.as_deref().map(|typ| typ.strip_prefix("application/").unwrap_or(typ));
        match media_type {
            Some("at+jwt") => Ok(()),
            None | Some("jwt") if !self.rules.require_at_jwt => Ok(()),
            _ => Err(TokenError::Invalid("it is not an access token")),
        }
    }

    fn identity(&self, claims: &Claims) -> Result<Identity, TokenError> {
        let names = &self.rules.claims;
        let text = |name: &str| claims::find(claims, name).and_then(|claim| claim.as_str());
        // A list, or one text as it is: an audience may contain white space.
        let is_audience = text(&names.audience) == Some(&self.rules.audience)
            || claims::find(claims, &names.audience)
                .and_then(|claim| claim.as_array())
                .is_some_and(|list| list.iter().any(|entry| entry.as_str() == Some(&self.rules.audience)));
        if !is_audience {
            return Err(TokenError::Invalid("it is for another audience"));
        }
        let subject = text(&names.subject).unwrap_or_default();
        if !(1..=MAX_SUBJECT).contains(&subject.len()) || subject.chars().any(char::is_control) {
            return Err(TokenError::Invalid("its subject is missing or cannot be used"));
        }
        let roles = names.roles.iter().flat_map(|name| claims::words(claims, name)).map(str::to_owned);
        Ok(Identity { subject: subject.to_owned(), roles: roles.collect() })
    }
}

fn reason(error: &jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind as E;
    TokenError::Invalid(match error.kind() {
        E::ExpiredSignature => "it has expired",
        E::ImmatureSignature => "it is not valid yet",
        E::InvalidIssuer => "it is another issuer's",
        E::InvalidSignature => "its signature is wrong",
        E::InvalidAlgorithm | E::InvalidAlgorithmName => "its algorithm is not that of its key",
        E::MissingRequiredClaim(_) => "a claim is missing",
        _ => "it cannot be read",
    })
}
