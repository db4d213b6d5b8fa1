//! Who acts.

use std::fmt;

/// Whoever sends a command or asks a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A caller, by the name the issuer of its token gave it. It sees its own baskets and no others.
    Caller(String),
    /// A part of this service, which works on everybody's baskets.
    Service(&'static str),
}

impl Principal {
    /// Whether baskets of `owner` exist for this principal.
    pub fn can_access(&self, owner: &str) -> bool {
        match self {
            Principal::Caller(name) => name == owner,
            Principal::Service(_) => true,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Caller(name) => f.write_str(name),
            Principal::Service(part) => write!(f, "service:{part}"),
        }
    }
}
