//! What CloudEvents 1.0 allows as the value of an attribute. Rows whose values follow it can be delivered.

/// Whether `text` may be an attribute: not empty, without control characters and without Unicode noncharacters.
pub fn is_text(text: &str) -> bool {
    let printable = |byte: u8| (b' '..=b'~').contains(&byte);
    !text.is_empty()
        && (text.bytes().all(printable) || text.chars().all(|c| !c.is_control() && is_character(c)))
}

/// Unicode's noncharacters are U+FDD0 to U+FDEF, and the last two of each plane.
fn is_character(c: char) -> bool {
    let code = u32::from(c);
    !(0xFDD0..=0xFDEF).contains(&code) && code & 0xFFFE != 0xFFFE
}

/// Whether `text` is a non-empty URI-reference of RFC 3986, as `source` must be.
pub fn is_uri_reference(text: &str) -> bool {
    let (text, fragment) = text.split_once('#').map_or((text, ""), |(text, fragment)| (text, fragment));
    let empty = text.is_empty() && fragment.is_empty();
    !empty && consists_of(fragment, b":@/?") && (is_uri(text) || is_relative(text))
}

/// Whether `text` is an absolute URI of RFC 3986, as `dataschema` must be.
pub fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let well_formed = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let begins = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    begins && scheme.bytes().all(well_formed) && !rest.is_empty() && is_hierarchy(rest)
}

/// The first segment of a relative reference has no colon: the part before it would be a scheme.
fn is_relative(text: &str) -> bool {
    let first = text.split(['/', '?']).next().unwrap_or_default();
    !first.contains(':') && is_hierarchy(text)
}

/// Authority, path and query.
fn is_hierarchy(text: &str) -> bool {
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    let (authority, path) = match text.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", text),
    };
    is_authority(authority) && consists_of(path, b":@/") && consists_of(query, b":@/?")
}

fn is_authority(text: &str) -> bool {
    let (user, host) = text.rsplit_once('@').unwrap_or(("", text));
    let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').or(port.is_empty().then_some(""))),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("")),
        },
    };
    // Only an address in brackets has colons.
    let colon: &[u8] = if host.starts_with('[') { b":" } else { b"" };
    let port = port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    port && consists_of(user, b":") && consists_of(name, colon)
}

/// Whether `text` has only unreserved characters, sub-delimiters, percent-encoded ones, and those of `more`.
fn consists_of(text: &str, more: &[u8]) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
        let legal = match byte {
            b'%' => hex(bytes.next()) && hex(bytes.next()),
            _ => is_unreserved(byte) || b"!$&'()*+,;=".contains(&byte) || more.contains(&byte),
        };
        if !legal {
            return false;
        }
    }
    true
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// `text` with everything but unreserved characters percent-encoded: a segment of a URI's path.
pub fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if is_unreserved(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Whether `text` is a media type of RFC 2046, with or without parameters, as `datacontenttype` must be.
/// `application/cloudevents` is rejected: a consumer would take the record for a whole event in structured mode.
pub fn is_content_type(text: &str) -> bool {
    let mut parts = text.split(';');
    let media_type = parts.next().unwrap_or_default().trim_end_matches([' ', '\t']);
    let named = media_type.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype));
    let structured = media_type.to_ascii_lowercase().starts_with("application/cloudevents");
    // A quoted value may contain a semicolon.
    let parameters = text.get(media_type.len()..).unwrap_or_default();
    named && !structured && are_parameters(parameters)
}

fn are_parameters(mut rest: &str) -> bool {
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return true;
        }
        let Some((name, value)) = rest.strip_prefix(';').and_then(|parameter| parameter.split_once('='))
        else {
            return false;
        };
        if !is_token(name.trim_matches([' ', '\t'])) {
            return false;
        }
        let Some(behind) = behind_value(value) else { return false };
        rest = behind;
    }
}

/// The text after a parameter's value; `None` if there is no valid value.
fn behind_value(text: &str) -> Option<&str> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return is_token(value).then_some(rest);
    };
    let mut escaped = false;
    let end = quoted.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    let (value, rest) = quoted.split_at(end);
    value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)).then(|| rest.get(1..))?
}

fn is_token(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_attribute_is_not_empty_and_has_no_control_characters() {
        for text in ["a", " ", "basket.created.v1", "büro", "🛒", "\u{10FFFD}"] {
            assert!(is_text(text), "{text:?}");
        }
        for text in
            ["", "\0", "a\nb", "a\tb", "\u{7f}", "a\u{85}", "\u{9f}", "\u{FDD0}", "\u{FFFE}", "\u{10FFFF}"]
        {
            assert!(!is_text(text), "{text:?}");
        }
    }

    #[test]
    fn a_source_is_a_uri_reference() {
        for text in [
            "/shop/public.outbox",
            "shop",
            "//shop/x",
            "https://shop.example:8080/a?b=c#d",
            "urn:example:shop",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "mailto:a@b.example",
            "http://[2001:db8::1]:80/",
            "/b%C3%BCro",
            "#part",
            "?q",
            "a/b:c",
            "1-555-123-4567",
        ] {
            assert!(is_uri_reference(text), "{text}");
        }
        for text in [
            "",
            "basket service",
            "/büro",
            "/a\nb",
            "/100%",
            "/a%2",
            "/a%GG",
            "a:b c",
            "1a:b",
            ":a",
            "a\\b",
            "/a[b]",
            "http://[::1",
            "http://a:b/",
            "a#b#c",
            "<a>",
            "^",
            "{a}",
        ] {
            assert!(!is_uri_reference(text), "{text}");
        }
    }

    #[test]
    fn a_schema_is_an_absolute_uri() {
        for text in ["https://shop.example/basket.json", "urn:example:basket:1", "apicurio:7"] {
            assert!(is_uri(text), "{text}");
        }
        for text in ["", "/basket.json", "basket.json", "https:", "https://a b", "https://a/b#c"] {
            assert!(!is_uri(text), "{text}");
        }
    }

    #[test]
    fn a_content_type_is_a_media_type_and_not_cloudevents() {
        for text in [
            "application/avro",
            "text/plain; charset=utf-8",
            "application/vnd.shop.v1+json",
            "multipart/mixed; boundary=\"a;b \\\" c\" ; x=y",
            "application/x-protobuf;messageType=shop.Basket",
        ] {
            assert!(is_content_type(text), "{text}");
        }
        for text in [
            "",
            "avro",
            "application/",
            "/avro",
            "a/b/c",
            "text/plain;",
            "text/plain; charset",
            "text/plain; charset=",
            "text/plain; charset=\"utf-8",
            "text/plain\n",
            "text /plain",
            "application/cloudevents",
            "Application/CloudEvents+json; charset=utf-8",
        ] {
            assert!(!is_content_type(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_a_uri_reference(text in ".{1,40}") {
            prop_assert!(is_uri_reference(&percent_encoded(&text)));
        }
    }
}
