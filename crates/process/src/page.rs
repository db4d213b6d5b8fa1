//! The status page at `/`: one document that needs nothing besides the listener it comes from, so that it works through
//! `kubectl port-forward` on a machine without Internet access.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use warp::reply::{self, Reply, Response};

/// The frame of all pages.
const STYLE: &str = include_str!("page/style.css");
const FRAME: &str = include_str!("page/frame.js");
/// The elements that the frame's script fills.
const HEAD: &str = include_str!("page/head.html");

/// A status page: the program's part in the frame that all programs share.
#[derive(Clone, Debug)]
pub struct Page {
    document: String,
    policy: String,
}

impl Page {
    /// `content` is HTML of the program's own. `script` shows the values in it, with the functions of `page/frame.js`.
    pub fn new(title: &str, content: &str, script: &str) -> Page {
        let script = format!("{FRAME}\n{script}");
        let head = HEAD.replace("{title}", title);
        let document = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n{head}{content}<script>{script}</script>\n</body>\n</html>\n"
        );
        // By hash, not 'unsafe-inline': markup in a value could not run even if it got into the page.
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            source_hash(&script),
            source_hash(STYLE)
        );
        Page { document, policy }
    }

    pub(crate) fn reply(&self) -> Response {
        let reply = reply::html(self.document.clone());
        let reply = reply::with_header(reply, "content-security-policy", self.policy.as_str());
        let reply = reply::with_header(reply, "x-content-type-options", "nosniff");
        let reply = reply::with_header(reply, "referrer-policy", "no-referrer");
        // The next release has another page, perhaps behind the same forwarded port.
        reply::with_header(reply, "cache-control", "no-store").into_response()
    }
}

/// An inline script or style sheet as the Content-Security-Policy names it.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_script_and_style_of_the_page_and_nothing_else() {
        let page = Page::new("t", "<main></main>", "draw();");
        let inside = |tag: &str| {
            let (_, rest) = page.document.split_once(&format!("<{tag}>")).unwrap();
            rest.split_once(&format!("</{tag}>")).unwrap().0
        };
        assert!(inside("script").ends_with("draw();"));
        for tag in ["script", "style"] {
            let allowed = format!("{tag}-src '{}';", source_hash(inside(tag)));
            assert!(page.policy.contains(&allowed), "{allowed} {}", page.policy);
        }
        assert!(page.policy.starts_with("default-src 'none';") && !page.policy.contains("unsafe"));
    }

    #[test]
    fn the_frame_parses_no_html_and_loads_nothing() {
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "://"] {
            assert!(!FRAME.contains(forbidden), "{forbidden} in the frame's script");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
