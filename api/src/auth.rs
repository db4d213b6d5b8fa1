//! Who callers are: access tokens of an OIDC issuer, and the issuer's keys.

mod claims;
mod jwt;
mod key_set;
mod key_source;
mod keys;

pub use jwt::{ClaimNames, Identity, TokenError, TokenRules, TokenVerifier};
pub use key_source::{KeySource, SetUpError};
