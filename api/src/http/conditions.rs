//! Conditional requests and content negotiation (RFC 9110): If-Match, If-None-Match, Accept. The entity tag of a
//! basket is its version.

use basket::domain::Version;
use warp::http::header::{ACCEPT, IF_MATCH, IF_NONE_MATCH};
use warp::http::{HeaderMap, HeaderName};

use super::problem::{Problem, kinds};

/// A tag this service never gave out matches no version.
const NEVER: Version = Version(0);

/// The version a caller expects: of a list, the one that can match. `*` means any, and a weak tag never matches.
pub fn if_match(headers: &HeaderMap, required: bool) -> Result<Option<Version>, Problem> {
    if !headers.contains_key(IF_MATCH) {
        let demanded = || Problem::new(&kinds::PRECONDITION_REQUIRED, "send the basket's ETag as If-Match");
        return if required { Err(demanded()) } else { Ok(None) };
    }
    let tags: Vec<&str> = elements(headers, IF_MATCH).filter(|tag| !tag.is_empty()).collect();
    if tags == ["*"] {
        return Ok(None);
    }
    if tags.is_empty() || !tags.iter().all(|tag| is_entity_tag(tag)) {
        return Err(Problem::malformed("If-Match must be an entity tag such as \"3\", or *"));
    }
    let mut versions: Vec<Version> = tags.iter().filter_map(|tag| version(tag)).collect();
    versions.dedup();
    match versions.as_slice() {
        [] => Ok(Some(NEVER)),
        [version] => Ok(Some(*version)),
        // A command names one version. Which of several is the current one, only the client's next read tells.
        _ => Err(Problem::malformed("If-Match must name one version")),
    }
}

/// The version of a strong tag as this service writes it: `"+3"` and `"03"` are other tags (RFC 9110, section 8.8.3.2).
fn version(tag: &str) -> Option<Version> {
    let number = tag.strip_prefix('"')?.strip_suffix('"')?;
    number.parse().ok().filter(|version: &i64| version.to_string() == number).map(Version)
}

fn is_entity_tag(tag: &str) -> bool {
    let strong = tag.strip_prefix("W/").unwrap_or(tag);
    let opaque = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    opaque.is_some_and(|opaque| !opaque.contains('"'))
}

/// Whether the caller has this version already. Weak comparison, as RFC 9110 asks for If-None-Match.
pub fn has_already(headers: &HeaderMap, Version(version): Version) -> Result<bool, Problem> {
    let current = format!("\"{version}\"");
    let mut known = false;
    for tag in elements(headers, IF_NONE_MATCH) {
        if tag != "*" && !is_entity_tag(tag) {
            return Err(Problem::malformed("If-None-Match must be entity tags such as \"3\", or *"));
        }
        known |= tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == current;
    }
    Ok(known)
}

/// Refuses a caller that takes none of the media types there are.
pub fn check_accept(headers: &HeaderMap, types: &[&str]) -> Result<(), Problem> {
    if !headers.contains_key(ACCEPT) {
        return Ok(());
    }
    let takes = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts
            .any(|parameter| matches!(parameter.strip_prefix("q="), Some("0" | "0.0" | "0.00" | "0.000")));
        let covers = |media_type: &&str| match range.split_once('/') {
            Some(("*", "*")) => true,
            Some((kind, "*")) => media_type.split_once('/').is_some_and(|(own, _)| own == kind),
            _ => range == **media_type,
        };
        !refused && types.iter().any(covers)
    };
    if elements(headers, ACCEPT).any(takes) {
        return Ok(());
    }
    Err(Problem::new(&kinds::NOT_ACCEPTABLE, format!("this resource is {} only", types.join(" or "))))
}

/// The elements of a header that is a list.
fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn a_caller_that_takes_json_in_any_way_gets_it() {
        for accepted in ["*/*", "application/*", "Application/JSON", "text/html, application/json;q=0.5", ""]
        {
            let headers = if accepted.is_empty() { HeaderMap::new() } else { with(ACCEPT, accepted) };
            assert!(check_accept(&headers, &["application/json"]).is_ok(), "{accepted}");
        }
        for refused in ["text/html", "application/json;q=0", "application/xml, text/*"] {
            assert!(check_accept(&with(ACCEPT, refused), &["application/json"]).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_version_that_is_known_is_found_in_any_list() {
        for known in ["\"3\"", "W/\"3\"", "\"1\", \"3\"", "*"] {
            assert!(has_already(&with(IF_NONE_MATCH, known), Version(3)).unwrap(), "{known}");
        }
        assert!(!has_already(&with(IF_NONE_MATCH, "\"2\""), Version(3)).unwrap());
        assert!(has_already(&with(IF_NONE_MATCH, "\"2\", 3"), Version(3)).is_err());
    }

    #[test]
    fn if_match_names_one_version_or_any() {
        let expected = |value: &str| if_match(&with(IF_MATCH, value), true).ok();
        assert_eq!(expected("\"3\""), Some(Some(Version(3))));
        assert_eq!(expected("*"), Some(None));
        assert_eq!(expected("W/\"3\""), Some(Some(NEVER)));
        for other in ["\"x\"", "\"+3\"", "\"03\"", "\"\""] {
            assert_eq!(expected(other), Some(Some(NEVER)), "{other}");
        }
        assert_eq!(expected("W/\"2\", \"x\", \"3\""), Some(Some(Version(3))));
        for malformed in ["3", "\"1\", \"2\"", "\"1\", *", "", "\"3", "\"3\" \"4\""] {
            assert_eq!(expected(malformed), None, "{malformed}");
        }
        assert!(if_match(&HeaderMap::new(), true).is_err() && if_match(&HeaderMap::new(), false).is_ok());
    }
}
