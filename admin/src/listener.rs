//! The listener itself.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use warp::http::StatusCode;
use warp::reply::{self, Reply, Response};
use warp::{Filter, hyper::body::Bytes};

use crate::LogLevel;

/// A log filter is a short line; anything longer is a mistake.
const MAX_LOG_FILTER_BYTES: u64 = 4096;

/// Whether the program can do its work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can; the text names the role or state.
    Ready(String),
    /// It cannot; the text is one sentence for the person on call.
    NotReady(String),
}

type ReadinessProbe = Arc<dyn Fn() -> Readiness + Send + Sync>;
type StatusProbe = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// The address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the admin endpoints; choose another admin address")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the listener shows. Probes are called at each request and must not block.
#[derive(Clone)]
pub struct Admin {
    registry: Registry,
    readiness: ReadinessProbe,
    status: StatusProbe,
    log_level: LogLevel,
}

impl Admin {
    /// Shows `registry` under `/metrics`; ready, with an empty status, until told otherwise.
    pub fn new(registry: Registry, log_level: LogLevel) -> Self {
        Admin {
            registry,
            readiness: Arc::new(|| Readiness::Ready("ok".into())),
            status: Arc::new(|| serde_json::json!({})),
            log_level,
        }
    }

    /// Asks `probe` for `/readyz`.
    #[must_use]
    pub fn readiness(mut self, probe: impl Fn() -> Readiness + Send + Sync + 'static) -> Self {
        self.readiness = Arc::new(probe);
        self
    }

    /// Asks `probe` for `/status`.
    #[must_use]
    pub fn status(mut self, probe: impl Fn() -> serde_json::Value + Send + Sync + 'static) -> Self {
        self.status = Arc::new(probe);
        self
    }

    /// Binds `address` and returns the bound address with the future that serves it. Dropping the future stops
    /// the listener.
    pub async fn bind(
        self,
        address: SocketAddr,
    ) -> Result<(SocketAddr, impl Future<Output = ()> + Send + use<>), BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok((bound, warp::serve(self.routes()).incoming(listener).run()))
    }

    fn routes(
        self,
    ) -> impl Filter<Extract = (impl Reply + use<>,), Error = Infallible> + Clone + Send + Sync + use<> {
        let Admin { registry, readiness, status, log_level } = self;
        let livez = warp::path!("livez").and(warp::get()).map(|| text(StatusCode::OK, "ok"));
        let readyz = warp::path!("readyz").and(warp::get()).map(move || match readiness() {
            Readiness::Ready(role) => text(StatusCode::OK, &role),
            Readiness::NotReady(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &reason),
        });
        let metrics = warp::path!("metrics").and(warp::get()).map(move || render(&registry));
        let status =
            warp::path!("status").and(warp::get()).map(move || reply::json(&status()).into_response());
        let read_level = log_level.clone();
        let get_level =
            warp::path!("log-level").and(warp::get()).map(move || text(StatusCode::OK, &read_level.get()));
        let put_level = warp::path!("log-level")
            .and(warp::put())
            .and(warp::body::content_length_limit(MAX_LOG_FILTER_BYTES))
            .and(warp::body::bytes())
            .map(move |body: Bytes| set_level(&log_level, &body));
        let routes = livez.or(readyz).unify().or(metrics).unify().or(status).unify();
        routes.or(get_level).unify().or(put_level).unify().recover(refuse)
    }
}

fn text(status: StatusCode, line: &str) -> Response {
    reply::with_status(format!("{line}\n"), status).into_response()
}

fn render(registry: &Registry) -> Response {
    let mut body = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut body) {
        Ok(()) => reply::with_header(body, "content-type", prometheus::TEXT_FORMAT).into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn set_level(log_level: &LogLevel, body: &[u8]) -> Response {
    let Ok(filter) = std::str::from_utf8(body) else {
        return text(StatusCode::BAD_REQUEST, "the log filter must be UTF-8 text such as 'info'");
    };
    match log_level.set(filter.trim()) {
        Ok(()) => text(StatusCode::OK, &log_level.get()),
        Err(error) => text(StatusCode::BAD_REQUEST, &format!("not a log filter: {error}")),
    }
}

async fn refuse(rejection: warp::Rejection) -> Result<Response, Infallible> {
    let status = if rejection.is_not_found() {
        StatusCode::NOT_FOUND
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        StatusCode::METHOD_NOT_ALLOWED
    } else {
        StatusCode::BAD_REQUEST
    };
    Ok(text(status, "the admin listener serves /livez /readyz /metrics /status /log-level"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogFormat, init_logging};

    fn admin() -> Admin {
        Admin::new(Registry::new(), init_logging("info", LogFormat::Text))
    }

    #[tokio::test]
    async fn readiness_is_503_with_its_reason_while_liveness_stays_200() {
        let routes = admin().readiness(|| Readiness::NotReady("Kafka is away".into())).routes();
        let ready = warp::test::request().path("/readyz").reply(&routes).await;
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.body(), "Kafka is away\n");
        assert_eq!(warp::test::request().path("/livez").reply(&routes).await.status(), 200);
    }

    #[tokio::test]
    async fn the_log_level_changes_at_run_time_and_a_bad_one_changes_nothing() {
        let routes = admin().routes();
        let put = |body: &'static str| warp::test::request().method("PUT").path("/log-level").body(body);
        assert_eq!(put("warn").reply(&routes).await.status(), 200);
        assert_eq!(put("no such=[level").reply(&routes).await.status(), 400);
        assert_eq!(warp::test::request().path("/log-level").reply(&routes).await.body(), "warn\n");
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text_and_other_paths_are_404() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("a_total", "help").unwrap();
        registry.register(Box::new(counter)).unwrap();
        let routes = Admin::new(registry, init_logging("info", LogFormat::Text)).routes();
        let metrics = warp::test::request().path("/metrics").reply(&routes).await;
        assert!(std::str::from_utf8(metrics.body()).unwrap().contains("a_total 0"));
        assert_eq!(warp::test::request().path("/secrets").reply(&routes).await.status(), 404);
    }
}
