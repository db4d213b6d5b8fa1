//! The table of routes, and what every request goes through: id, authentication, metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use basket::application::Bus;
use basket::application::queries::BasketQueries;
use basket::domain::BasketId;
use bytes::Buf;
use futures::Stream;
use uuid::Uuid;
use warp::Filter;
use warp::http::{HeaderMap, HeaderValue, Method};
use warp::path::FullPath;
use warp::reply::Response;

use super::problem::Problem;
use super::request::{Request, request_id};
use super::{auth, baskets, body};
use crate::config::Authentication;
use crate::metrics::Metrics;

/// What the handlers need.
pub struct App {
    /// Commands.
    pub bus: Bus,
    /// Queries.
    pub queries: Arc<dyn BasketQueries>,
    /// How requests are authenticated.
    pub authentication: Authentication,
    /// Metrics.
    pub metrics: Metrics,
}

/// A resource of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Baskets,
    Basket(BasketId),
    Items(BasketId),
    Checkout(BasketId),
    Unknown,
}

impl Route {
    /// The resource at a path. An id that is none is as unknown as one that was never given out.
    fn of(path: &str) -> Result<Route, Problem> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let basket = |id: &str| {
            let hyphenated =
                Uuid::try_parse(id).ok().filter(|parsed| parsed.to_string().eq_ignore_ascii_case(id));
            hyphenated.map(BasketId).ok_or_else(Problem::basket_not_found)
        };
        match segments.as_slice() {
            ["v1", "baskets"] => Ok(Route::Baskets),
            ["v1", "baskets", id] => basket(id).map(Route::Basket),
            ["v1", "baskets", id, "items"] => basket(id).map(Route::Items),
            ["v1", "baskets", id, "checkout"] => basket(id).map(Route::Checkout),
            _ => Ok(Route::Unknown),
        }
    }

    /// The template, for metrics.
    fn template(self) -> &'static str {
        match self {
            Route::Baskets => "/v1/baskets",
            Route::Basket(_) => "/v1/baskets/{id}",
            Route::Items(_) => "/v1/baskets/{id}/items",
            Route::Checkout(_) => "/v1/baskets/{id}/checkout",
            Route::Unknown => "unknown",
        }
    }
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
    let route = Route::of(path.as_str());
    let template = route.as_ref().map_or("/v1/baskets/{id}", |route| route.template());
    let verb = method.clone();
    let handled = async {
        let principal = auth::authenticate(&app.authentication, &headers)?;
        let route = route?;
        let body = body::read(stream).await?;
        let request = Request { method, path: path.as_str().to_owned(), query, headers, body };
        handle(&app, route, &request, principal).await
    };
    let mut response = handled.await.unwrap_or_else(|problem| problem.into_response(&id));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    let status = response.status().as_u16();
    app.metrics.request(template, method_label(&verb), status, started.elapsed());
    tracing::info!(request.id = id, http.route = template, http.method = %verb, http.status = status, "answered");
    response
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

async fn handle(app: &App, route: Route, request: &Request, principal: &str) -> Result<Response, Problem> {
    match (route, &request.method) {
        (Route::Baskets, &Method::POST) => baskets::create(app, request, principal).await,
        (Route::Baskets, &Method::GET) => baskets::list(app, request).await,
        (Route::Baskets, _) => Err(Problem::method_not_allowed("GET, POST")),
        (Route::Basket(id), &Method::GET) => baskets::get(app, id).await,
        (Route::Basket(_), _) => Err(Problem::method_not_allowed("GET")),
        (Route::Items(id), &Method::POST) => baskets::add_item(app, request, principal, id).await,
        (Route::Items(_), _) => Err(Problem::method_not_allowed("POST")),
        (Route::Checkout(id), &Method::POST) => baskets::check_out(app, request, principal, id).await,
        (Route::Checkout(_), _) => Err(Problem::method_not_allowed("POST")),
        (Route::Unknown, _) => Err(Problem::not_found()),
    }
}
