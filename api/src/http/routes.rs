//! The table of routes, and what every request goes through: id, bounds, authentication, limits, metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basket::application::queries::{BasketQueries, CommandQueries};
use basket::application::{CommandId, Dispatch};
use basket::domain::{BasketId, Sku};
use bytes::Buf;
use futures::Stream;
use serde::Serialize;
use uuid::Uuid;
use warp::Filter;
use warp::http::header::CONNECTION;
use warp::http::{HeaderMap, HeaderValue, Method};
use warp::path::FullPath;
use warp::reply::{Reply, Response};

use super::auth::Authentication;
use super::baskets::Call;
use super::conditions::check_accept;
use super::limits::RequestLimits;
use super::problem::{Problem, kinds};
use super::request::{Request, check_head, is_last, request_id};
use super::{body, commands, contract};
use crate::metrics::Metrics;

/// What the handlers need.
pub struct App {
    /// Commands.
    pub bus: Arc<dyn Dispatch>,
    /// Baskets.
    pub baskets: Arc<dyn BasketQueries>,
    /// The log of commands.
    pub log: Arc<dyn CommandQueries>,
    /// How requests are authenticated.
    pub authentication: Authentication,
    /// How much may be asked for.
    pub limits: RequestLimits,
    /// What else is asked of requests.
    pub rules: Rules,
    /// Metrics.
    pub metrics: Metrics,
}

/// What is asked of requests.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A change of a basket needs If-Match.
    pub require_if_match: bool,
    /// A request that takes longer is answered 503; its command may still be executed or not.
    pub timeout: Duration,
}

/// A resource of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Baskets,
    Basket(BasketId),
    Items(BasketId),
    Item(BasketId, Sku),
    Checkout(BasketId),
    Commands,
    Command(CommandId),
    OpenApi,
    ProblemPage(String),
}

impl Route {
    /// The resource at a path, with its template for metrics; an id that is none is as unknown as one that was never
    /// given out.
    fn of(path: &str) -> (&'static str, Result<Route, Problem>) {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let basket = |id: &str| uuid(id).map(BasketId).ok_or_else(Problem::basket_not_found);
        match segments.as_slice() {
            ["v1", "baskets"] => ("/v1/baskets", Ok(Route::Baskets)),
            ["v1", "baskets", id] => ("/v1/baskets/{id}", basket(id).map(Route::Basket)),
            ["v1", "baskets", id, "items"] => ("/v1/baskets/{id}/items", basket(id).map(Route::Items)),
            ["v1", "baskets", id, "items", sku] => {
                let item = basket(id).and_then(|id| Ok(Route::Item(id, self::sku(sku)?)));
                ("/v1/baskets/{id}/items/{sku}", item)
            }
            ["v1", "baskets", id, "checkout"] => {
                ("/v1/baskets/{id}/checkout", basket(id).map(Route::Checkout))
            }
            ["v1", "commands"] => ("/v1/commands", Ok(Route::Commands)),
            ["v1", "commands", id] => {
                let id = uuid(id).map(CommandId).ok_or_else(commands::not_found);
                ("/v1/commands/{id}", id.map(Route::Command))
            }
            ["openapi.json"] => ("/openapi.json", Ok(Route::OpenApi)),
            ["problems", slug] => ("/problems/{type}", Ok(Route::ProblemPage((*slug).to_owned()))),
            _ => ("unknown", Err(Problem::new(&kinds::NOT_FOUND, "there is nothing at this path"))),
        }
    }

    /// Methods, as the header Allow lists them.
    fn methods(&self) -> &'static str {
        match self {
            Route::Baskets => "GET, HEAD, POST",
            Route::Basket(_) => "DELETE, GET, HEAD",
            Route::Items(_) => "DELETE, POST",
            Route::Item(..) => "DELETE, PATCH",
            Route::Checkout(_) => "POST",
            Route::Commands | Route::Command(_) | Route::OpenApi | Route::ProblemPage(_) => "GET, HEAD",
        }
    }

    /// What says how to use the service can be read before one has a token.
    fn is_public(&self) -> bool {
        matches!(self, Route::OpenApi | Route::ProblemPage(_))
    }
}

/// One spelling of an id: hyphenated, as this service writes it.
fn uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|id| id.to_string().eq_ignore_ascii_case(text))
}

fn sku(segment: &str) -> Result<Sku, Problem> {
    let decoded = percent_decoded(segment).and_then(|text| Sku::try_from(text).ok());
    decoded.ok_or_else(|| Problem::new(&kinds::ITEM_NOT_FOUND, "the basket has no item with this sku"))
}

fn percent_decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        let digit =
            |digit: Option<u8>| char::from(digit?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(if byte == b'%' { digit(rest.next())? * 16 + digit(rest.next())? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

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
    let (template, route) = Route::of(path.as_str());
    let verb = method.clone();
    let last = is_last(&headers);
    let handled = async {
        check_head(path.as_str(), &query, &headers)?;
        let _room = app.limits.room()?;
        let request = |body| Request { method, path: path.as_str().to_owned(), query, headers, body };
        handle(&app, route, request, stream).await
    };
    let handled = tokio::time::timeout(app.rules.timeout, handled).await.unwrap_or_else(|_| Err(timed_out()));
    let mut response = handled.unwrap_or_else(|problem| problem.into_response(&id));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    if last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16();
    app.metrics.request(template, method_label(&verb), status, started.elapsed());
    tracing::info!(request.id = id, http.route = template, http.method = %verb, http.status = status, "answered");
    response
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
    route: Result<Route, Problem>,
    request: impl FnOnce(bytes::Bytes) -> Request,
    stream: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Result<Response, Problem> {
    let mut request = request(bytes::Bytes::new());
    if let Ok(route) = &route
        && route.is_public()
    {
        allowed(route, &request.method)?;
        return contract(route, &request);
    }
    let caller = app.authentication.caller(&request.headers).await?;
    app.limits.count(&caller.name, Instant::now())?;
    let route = route?;
    allowed(&route, &request.method)?;
    check_accept(&request.headers, &["application/json"])?;
    request.body = body::read(stream).await?;
    let call = Call { app, request: &request, caller: &caller };
    match (route, &request.method) {
        (Route::Baskets, &Method::POST) => call.create_basket().await,
        (Route::Baskets, _) => call.list_baskets().await,
        (Route::Basket(id), &Method::DELETE) => call.abandon(id).await,
        (Route::Basket(id), _) => call.get_basket(id).await,
        (Route::Items(id), &Method::POST) => call.add_item(id).await,
        (Route::Items(id), _) => call.clear(id).await,
        (Route::Item(id, sku), &Method::PATCH) => call.change_quantity(id, sku).await,
        (Route::Item(id, sku), _) => call.remove_item(id, sku).await,
        (Route::Checkout(id), _) => call.check_out(id).await,
        (Route::Commands, _) => call.list_commands().await,
        (Route::Command(id), _) => call.get_command(id).await,
        (route @ (Route::OpenApi | Route::ProblemPage(_)), _) => contract(&route, &request),
    }
}

fn allowed(route: &Route, method: &Method) -> Result<(), Problem> {
    let methods = route.methods();
    if methods.split(", ").any(|allowed| allowed == method.as_str()) {
        return Ok(());
    }
    Err(Problem::method_not_allowed(methods))
}

fn contract(route: &Route, request: &Request) -> Result<Response, Problem> {
    match route {
        Route::ProblemPage(slug) => contract::problem_page(slug, &request.headers),
        _ => contract::document(&request.headers),
    }
}

/// 200 with a JSON body.
pub fn json(body: &impl Serialize) -> Response {
    warp::reply::json(body).into_response()
}
