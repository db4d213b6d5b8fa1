//! Bearer tokens of an OpenID Connect issuer: [`TokenVerifier`] says whose a token is, by the issuer's published keys.

mod jwt;
mod keys;

pub use jwt::{Identity, TokenError, TokenRules, TokenVerifier};
pub use keys::{KeySource, SetUpError};
