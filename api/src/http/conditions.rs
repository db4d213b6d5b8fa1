//! Conditional requests and content negotiation (RFC 9110): If-Match, If-None-Match, Accept. The entity tag of a
//! basket is its version.

use basket::domain::Version;
use warp::http::header::{ACCEPT, IF_MATCH, IF_NONE_MATCH};
use warp::http::{HeaderMap, HeaderName};

use super::problem::{Problem, kinds};

/// A tag this service never gave out matches no version.
const NEVER: Version = Version(0);

/// The version a caller expects. `*` means any, and a weak tag never matches.
pub fn if_match(headers: &HeaderMap, required: bool) -> Result<Option<Version>, Problem> {
    if headers.get_all(IF_MATCH).iter().count() > 1 {
        return Err(Problem::malformed("If-Match must be given once, with one entity tag"));
    }
    let Some(value) = headers.get(IF_MATCH) else {
        let demanded = || Problem::new(&kinds::PRECONDITION_REQUIRED, "send the basket's ETag as If-Match");
        return if required { Err(demanded()) } else { Ok(None) };
    };
    let value = value.to_str().unwrap_or_default().trim();
    if value == "*" {
        return Ok(None);
    }
    let (tag, weak) = value.strip_prefix("W/").map_or((value, false), |tag| (tag, true));
    let quoted = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).filter(|tag| !tag.contains('"'));
    let tag =
        quoted.ok_or_else(|| Problem::malformed("If-Match must be an entity tag such as \"3\", or *"))?;
    Ok(Some(tag.parse().map(Version).ok().filter(|_| !weak).unwrap_or(NEVER)))
}

/// Whether the caller has this version already. Weak comparison, as RFC 9110 asks for If-None-Match.
pub fn has_already(headers: &HeaderMap, Version(version): Version) -> Result<bool, Problem> {
    let current = format!("\"{version}\"");
    let mut known = false;
    for tag in elements(headers, IF_NONE_MATCH) {
        let strong = tag.strip_prefix("W/").unwrap_or(tag);
        let is_tag = strong.len() >= 2 && strong.starts_with('"') && strong.ends_with('"');
        if tag != "*" && !is_tag {
            return Err(Problem::malformed("If-None-Match must be entity tags such as \"3\", or *"));
        }
        known |= tag == "*" || strong == current;
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
        assert_eq!(expected("\"x\""), Some(Some(NEVER)));
        assert_eq!((expected("3"), expected("\"1\", \"2\"")), (None, None));
        assert!(if_match(&HeaderMap::new(), true).is_err() && if_match(&HeaderMap::new(), false).is_ok());
    }
}
