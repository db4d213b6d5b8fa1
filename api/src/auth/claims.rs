//! Finding claims, however an issuer names them.
//!
//! Keycloak has `realm_access.roles` and `resource_access.shop.roles`, Auth0 `permissions` and names that are URLs, Entra ID
//! `roles` and `scp`, Cognito `cognito:groups` and `scope`. So a name is first taken as it is, because it may contain dots,
//! and then as a path of members.

use serde_json::{Map, Value};

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// The claim of this name, or at this path.
pub fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    if let Some(claim) = claims.get(name) {
        return Some(claim);
    }
    let dots = name.match_indices('.');
    let mut nested = dots.filter_map(|(dot, _)| {
        let (member, rest) = (name.get(..dot)?, name.get(dot + 1..)?);
        find(claims.get(member)?.as_object()?, rest)
    });
    nested.next()
}

/// The texts of a claim: of a list, or the words of one text (as in `scope`, RFC 8693 section 4.2). None where the claim is
/// missing or has another type.
pub fn words<'a>(claims: &'a Claims, name: &str) -> Vec<&'a str> {
    match find(claims, name) {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn roles_are_found_where_common_issuers_put_them() {
        let tokens = [
            ("Keycloak, realm", "realm_access.roles", json!({"realm_access": {"roles": ["x", "auditor"]}})),
            (
                "Keycloak, client with a dot",
                "resource_access.shop.example.roles",
                json!({"resource_access": {"shop.example": {"roles": ["auditor"]}}}),
            ),
            (
                "Auth0, namespaced",
                "https://shop.example/roles",
                json!({"https://shop.example/roles": ["auditor"]}),
            ),
            ("Auth0, permissions", "permissions", json!({"permissions": ["auditor"]})),
            ("Entra ID, application", "roles", json!({"roles": ["auditor"]})),
            ("Entra ID, delegated", "scp", json!({"scp": "read auditor"})),
            ("Cognito, groups", "cognito:groups", json!({"cognito:groups": ["auditor"]})),
            ("OAuth 2.0", "scope", json!({"scope": "openid auditor"})),
        ];
        for (issuer, name, claims) in tokens {
            assert!(words(claims.as_object().unwrap(), name).contains(&"auditor"), "{issuer}");
        }
    }

    #[test]
    fn a_claim_of_another_type_has_no_words() {
        let claims = json!({"roles": 5, "a": {"b": {"c": "x"}}, "a.b": {"d": "y"}});
        let claims = claims.as_object().unwrap();
        assert!(words(claims, "roles").is_empty() && words(claims, "roles.x").is_empty());
        assert!(words(claims, "a.b").is_empty(), "an object");
        assert_eq!((words(claims, "a.b.c"), words(claims, "a.b.d")), (vec!["x"], vec!["y"]));
    }
}
