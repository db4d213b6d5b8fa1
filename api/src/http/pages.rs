//! Lists in portions: page tokens and the links between pages.
//!
//! A token holds the last entry that was shown and a digest of whose list it is and how it is filtered, so that it is
//! of no use for another list. It is not secret: it gives access to nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use basket::application::queries::{DEFAULT_PAGE, MAX_PAGE, PageRequest};
use sha2::{Digest, Sha256};
use url::form_urlencoded;
use uuid::Uuid;
use warp::http::HeaderValue;
use warp::http::header::LINK;
use warp::reply::Response;

use super::problem::Problem;
use super::request::Request;

const LIMIT: &str = "limit";
const PAGE_TOKEN: &str = "page_token";
/// Bytes of the digest: enough to tell lists apart.
const DIGEST_BYTES: usize = 8;

/// A list that was asked for: its filters and the portion of it.
pub struct Listing {
    /// Parameters that are neither limit nor token.
    pub filters: Vec<(String, String)>,
    /// Which portion.
    pub portion: PageRequest<Uuid>,
    list: [u8; DIGEST_BYTES],
}

impl Listing {
    /// Takes the query of a list of `principal` apart.
    pub fn of(request: &Request, principal: &str) -> Result<Listing, Problem> {
        let parameters = request.parameters()?;
        let (paging, filters): (Vec<_>, Vec<_>) =
            parameters.into_iter().partition(|(name, _)| name == LIMIT || name == PAGE_TOKEN);
        let list = digest(&request.path, principal, &filters);
        let mut portion = PageRequest { after: None, limit: DEFAULT_PAGE };
        for (name, value) in paging {
            if name == LIMIT {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                let wrong = || Problem::malformed(format!("limit must be 1 to {MAX_PAGE}"));
                portion.limit = limit.ok_or_else(wrong)?;
            } else {
                let wrong =
                    || Problem::malformed("page_token must be one that this service gave out for this list");
                portion.after = Some(opened(&value, list).ok_or_else(wrong)?);
            }
        }
        Ok(Listing { filters, portion, list })
    }

    /// The token of the page behind `last`.
    pub fn token(&self, last: Uuid) -> String {
        URL_SAFE_NO_PAD.encode([last.as_bytes().as_slice(), &self.list].concat())
    }

    /// Adds the links to the first and the next page (RFC 8288), relative to the address of the request: it may have a prefix that
    /// only an ingress knows.
    pub fn link(&self, response: &mut Response, next: Option<&str>) {
        let mut links = format!("<{}>; rel=\"first\"", self.address(None));
        if let Some(token) = next {
            links = format!("{links}, <{}>; rel=\"next\"", self.address(Some(token)));
        }
        if let Ok(links) = HeaderValue::from_str(&links) {
            response.headers_mut().insert(LINK, links);
        }
    }

    fn address(&self, token: Option<&str>) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.filters).append_pair(LIMIT, &self.portion.limit.to_string());
        if let Some(token) = token {
            query.append_pair(PAGE_TOKEN, token);
        }
        format!("?{}", query.finish())
    }
}

fn opened(token: &str, list: [u8; DIGEST_BYTES]) -> Option<Uuid> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (id, digest) = bytes.split_at_checked(16)?;
    (digest == list).then(|| Uuid::from_slice(id).ok()).flatten()
}

fn digest(path: &str, principal: &str, filters: &[(String, String)]) -> [u8; DIGEST_BYTES] {
    let mut filters: Vec<&(String, String)> = filters.iter().collect();
    filters.sort();
    let filters = filters.into_iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    let mut hash = Sha256::new();
    for part in [path, principal].into_iter().chain(filters) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut short = [0; DIGEST_BYTES];
    short.iter_mut().zip(hash.finalize()).for_each(|(short, byte)| *short = byte);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use warp::http::{HeaderMap, Method};

    fn listing(query: &str, principal: &str) -> Result<Listing, Problem> {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let request = Request {
            method,
            path: "/v1/baskets".into(),
            query: query.into(),
            headers,
            body: Default::default(),
        };
        Listing::of(&request, principal)
    }

    #[test]
    fn a_token_opens_its_own_list_only() {
        let (id, first) = (Uuid::now_v7(), listing("buyer_id=ann&limit=2", "shop").unwrap());
        let token = first.token(id);
        let query = format!("limit=5&page_token={token}&buyer_id=ann");
        assert_eq!(listing(&query, "shop").unwrap().portion, PageRequest { after: Some(id), limit: 5 });
        assert!(listing(&query, "another").is_err());
        assert!(listing(&format!("page_token={token}"), "shop").is_err());
        for forged in ["", "x", &token[1..], &format!("{token}A"), &token.to_lowercase()] {
            assert!(listing(&format!("buyer_id=ann&page_token={forged}"), "shop").is_err(), "{forged}");
        }
    }

    #[test]
    fn limits_have_bounds_and_parameters_are_given_once() {
        for wrong in ["limit=0", "limit=-1", "limit=1000000000", "limit=x", "limit=1&limit=2"] {
            assert!(listing(wrong, "shop").is_err(), "{wrong}");
        }
    }
}
