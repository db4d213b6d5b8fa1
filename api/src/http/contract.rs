//! What says how to use the service: its OpenAPI document, and a page for each problem type.

use std::sync::LazyLock;

use warp::http::header::CONTENT_TYPE;
use warp::http::{HeaderMap, HeaderValue};
use warp::reply::{Reply, Response};

use super::conditions::check_accept;
use super::openapi;
use super::problem::{Problem, kinds};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| openapi::document().to_string());

/// `GET /openapi.json`
pub fn document(headers: &HeaderMap) -> Result<Response, Problem> {
    check_accept(headers, &["application/json"])?;
    Ok(typed("application/json", DOCUMENT.clone()))
}

/// `GET /problems/{type}`
pub fn problem_page(slug: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let kind = kinds::ALL.iter().find(|kind| kind.slug == Some(slug));
    let kind =
        kind.ok_or_else(|| Problem::new(&kinds::NOT_FOUND, "there is no problem type of this name"))?;
    check_accept(headers, &["text/html"])?;
    let (title, status) = (kind.title, kind.status.as_u16());
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n\
         <h1>{title}</h1>\n<p>HTTP status {status}</p>\n<p>{}</p>\n</html>\n",
        kind.meaning
    );
    Ok(typed("text/html; charset=utf-8", page))
}

fn typed(media_type: &'static str, body: String) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
