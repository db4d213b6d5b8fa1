//! What every request goes through: id, limits, authentication, its handler, metrics, log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};
use futures::Stream;
use http_body_util::{BodyExt, Collected};
use warp::Filter;
use warp::http::header::{CACHE_CONTROL, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use warp::http::{HeaderMap, HeaderValue, Method};
use warp::path::FullPath;
use warp::reply::Response;

use super::app::App;
use super::body;
use super::conditions::check_accept;
use super::context::RequestContext;
use super::limits::Admission;
use super::problem::{Problem, kinds};
use super::request::{Request, check_head, is_last, request_id};
use super::routes::{Handler, Resource, Route};

/// The label of paths that are none of the service's: a client can invent any number of them.
const UNKNOWN: &str = "unknown";

/// The service as a warp filter.
pub fn filter(
    app: Arc<App>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + use<> {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .and(warp::any().map(move || Arc::clone(&app)))
        .then(answer)
        .recover(async |_| {
            Ok::<_, Infallible>(Problem::malformed("the request cannot be read").into_response("none"))
        })
        .unify()
}

async fn answer<B: Buf>(
    method: Method,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    stream: impl Stream<Item = Result<B, warp::Error>> + Send,
    app: Arc<App>,
) -> Response {
    let started = Instant::now();
    let id = request_id(&headers);
    let resource = Resource::at(path.as_str());
    let template = resource.as_ref().map_or(UNKNOWN, |resource| resource.template);
    let verb = method.clone();
    let last = is_last(&headers);
    let mut admission = None;
    let handled = async {
        check_head(&method, path.as_str(), &query, &headers)?;
        let admission = admission.insert(app.limits.admit()?);
        let request = Request { method, path: path.as_str().to_owned(), query, headers, body: Bytes::new() };
        handle(&app, admission, resource.as_ref(), request, stream).await
    };
    let handled = tokio::time::timeout(app.rules.timeout, handled).await.unwrap_or_else(|_| Err(timed_out()));
    let mut response = handled.unwrap_or_else(|problem| problem.into_response(&id));
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A cache may keep an answer for its own caller, and asks before each use. What is open to all says otherwise.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    if last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let (status, took) = (response.status().as_u16(), started.elapsed());
    app.metrics.request(template, method_label(&verb), status, took);
    let milliseconds = took.as_secs_f64() * 1000.0;
    tracing::info!(
        request.id = id,
        http.route = template,
        http.method = %verb,
        http.status = status,
        duration_ms = milliseconds,
        "answered"
    );
    hold_until_sent(response, admission).await
}

/// An answer that its client reads slowly keeps its place among the requests in flight: it takes memory.
async fn hold_until_sent(response: Response, admission: Option<Admission>) -> Response {
    struct Held(Bytes, #[expect(dead_code, reason = "dropped with the bytes")] Option<Admission>);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let (head, body) = response.into_parts();
    // Answers are complete: there is nothing to wait for, and nothing that can fail.
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    Response::from_parts(head, Bytes::from_owner(Held(body, admission)).into())
}

fn timed_out() -> Problem {
    let detail = "the request took too long; repeat it with the same Idempotency-Key";
    Problem::later(&kinds::UNAVAILABLE, detail)
}

/// A client can invent methods; a metric must not.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

async fn handle<B: Buf>(
    app: &App,
    admission: &mut Admission,
    resource: Option<&Resource<'_>>,
    request: Request,
    stream: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Result<Response, Problem> {
    let caller = if resource.is_some_and(Resource::is_public) {
        None
    } else {
        let caller = app.authentication.caller(&request.headers).await?;
        app.limits.admit_principal(admission, &caller.name)?;
        Some(caller)
    };
    let nothing = || Problem::new(&kinds::NOT_FOUND, "there is nothing at this path");
    let resource = resource.ok_or_else(nothing)?;
    let Route { handler, operation, .. } = resource.route(&request.method)?;
    match (handler, &caller) {
        (Handler::Public(handler), _) => handler(app, &request, &resource.path),
        (Handler::Authenticated(_), None) => Err(Problem::unauthenticated(None)),
        (Handler::Authenticated(handler), Some(caller)) => {
            check_accept(&request.headers, &["application/json"])?;
            let body = body::read(&request.headers, stream).await?;
            let request = &Request { body, ..request };
            let changed = if operation.class.is_command() { resource.path.basket().ok() } else { None };
            let _turn = app.limits.turn(&caller.name, changed).await?;
            handler(&RequestContext { app, request, path: &resource.path, operation, caller }).await
        }
    }
}
