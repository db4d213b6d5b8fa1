//! Who acts.

use std::fmt;

use super::validation::ValidationError;

/// How the name of a part of this service begins. No caller can have such a name.
const SERVICE: &str = "service:";

/// The sender of a command or a query: a caller, who sees its own baskets only, or a part of this service, which works
/// on all baskets. The two are told apart by name, so the name alone can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal(String);

impl Principal {
    /// A caller, under the name that the issuer of its token gave it.
    pub fn caller(name: impl Into<String>) -> Result<Principal, ValidationError> {
        let name = name.into();
        if name.starts_with(SERVICE) {
            return Err(ValidationError::new("principal", format!("must not begin with '{SERVICE}'")));
        }
        Ok(Principal(name))
    }

    /// A part of this service.
    pub fn service(part: &str) -> Principal {
        Principal(format!("{SERVICE}{part}"))
    }

    /// The principal of a stored name.
    pub fn from_stored(name: String) -> Principal {
        Principal(name)
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether baskets of `owner` exist for this principal.
    pub fn can_access(&self, owner: &Principal) -> bool {
        self.0.starts_with(SERVICE) || self == owner
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_passes_for_a_part_of_the_service() {
        assert!(Principal::caller("service:expiry").is_err());
        let ann = Principal::caller("ann").unwrap();
        assert!(ann.can_access(&ann));
        assert!(!ann.can_access(&Principal::caller("bob").unwrap()));
        assert!(Principal::service("expiry").can_access(&ann));
    }
}
