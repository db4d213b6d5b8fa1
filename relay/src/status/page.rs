//! The status page: what `/status` and `/metrics` say, for a person with a browser and nothing else.

use process::Page;

/// The page at `/` of the admin listener.
pub fn page() -> Page {
    Page::new("outbox-relay", include_str!("page/content.html"), include_str!("page/draw.js"))
}
