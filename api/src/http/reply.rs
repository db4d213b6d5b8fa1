//! Answers with a body.

use serde::Serialize;
use warp::http::HeaderValue;
use warp::http::header::CONTENT_TYPE;
use warp::reply::{Reply, Response};

/// 200 with a JSON body.
pub fn json(body: &impl Serialize) -> Response {
    warp::reply::json(body).into_response()
}

/// 200 with a body of a media type.
pub fn typed(media_type: &'static str, body: String) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
