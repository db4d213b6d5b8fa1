//! Serves the OpenAPI document and the problem-type pages.

use warp::http::header::CACHE_CONTROL;
use warp::http::{HeaderMap, HeaderValue};
use warp::reply::Response;

use super::conditions::check_accept;
use super::problem::{Problem, kinds};
use super::reply;

/// `GET /openapi.json`
pub fn document(document: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    check_accept(headers, &["application/json"])?;
    Ok(cached(reply::typed("application/json", document.to_owned())))
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
    Ok(cached(reply::typed("text/html; charset=utf-8", page)))
}

/// It changes with the version of the service only.
fn cached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}
