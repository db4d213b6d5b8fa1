use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::ORIGIN;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use warp::http::StatusCode;
use warp::path::FullPath;
use warp::reply::{self, Reply, Response};
use warp::{Filter, hyper::body::Bytes};

use crate::LogLevel;
use crate::bind::listen;
use crate::page::Page;

/// A log filter is a short line; anything longer is a mistake.
const MAX_LOG_FILTER_BYTES: u64 = 4096;
/// Concurrent connections: a kubelet, a Prometheus or two, and people. At the limit the oldest connection is closed, so
/// that idle clients cannot lock out the kubelet's probes, which would restart the pod.
const CONNECTIONS: usize = 64;
/// Time for a request's head to arrive, and for a connection to be idle: longer than the usual scrape interval.
const HEADER_READ: Duration = Duration::from_secs(75);
/// Pause after a failed accept: usually the process has run out of file descriptors.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// Size limit of an action's request body: a selection, not a document.
const MAX_ACTION_BYTES: u64 = 1024 * 1024;

/// Whether the program can work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can; the text is the role or state.
    Ready(String),
    /// It cannot; the text is one sentence for the on-call engineer.
    NotReady(String),
}

type ReadinessProbe = Arc<dyn Fn() -> Readiness + Send + Sync>;
type StatusProbe = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// The response to an action: values that are sent as lines of JSON as they come.
pub type Lines = mpsc::Receiver<serde_json::Value>;
type Action = Arc<dyn Fn(&[u8]) -> Result<Lines, ActionRefused> + Send + Sync>;

/// An action was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionRefused {
    /// HTTP status.
    pub status: StatusCode,
    /// One sentence with the reason.
    pub message: String,
}

/// The address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the admin endpoints; choose another admin address")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the listener serves. Probes are called at each request and must not block.
#[derive(Clone)]
pub struct Admin {
    registry: Registry,
    readiness: ReadinessProbe,
    status: StatusProbe,
    page: Option<Page>,
    log_level: LogLevel,
    actions: Arc<HashMap<&'static str, Action>>,
}

impl Admin {
    /// Serves `registry` under `/metrics`; ready, with an empty status, until probes are set.
    pub fn new(registry: Registry, log_level: LogLevel) -> Self {
        Admin {
            registry,
            readiness: Arc::new(|| Readiness::Ready("ok".into())),
            status: Arc::new(|| serde_json::json!({})),
            page: None,
            log_level,
            actions: Arc::default(),
        }
    }

    /// Answers `POST path` with the result of `action` for the request's body. It is called on the listener's task and
    /// must not block: slow work runs elsewhere and sends lines.
    #[must_use]
    pub fn action(
        mut self,
        path: &'static str,
        action: impl Fn(&[u8]) -> Result<Lines, ActionRefused> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.actions).insert(path, Arc::new(action));
        self
    }

    /// Calls `probe` for `/readyz`.
    #[must_use]
    pub fn readiness(mut self, probe: impl Fn() -> Readiness + Send + Sync + 'static) -> Self {
        self.readiness = Arc::new(probe);
        self
    }

    /// Calls `probe` for `/status`.
    #[must_use]
    pub fn status(mut self, probe: impl Fn() -> serde_json::Value + Send + Sync + 'static) -> Self {
        self.status = Arc::new(probe);
        self
    }

    /// Serves `page` at `/`.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = Some(page);
        self
    }

    /// Binds `address` and returns the bound address with the future that serves it. Dropping the future stops
    /// the listener.
    pub async fn bind(
        self,
        address: SocketAddr,
    ) -> Result<(SocketAddr, impl Future<Output = ()> + Send + use<>), BindError> {
        let failed = |source| BindError { address, source };
        let listener = listen(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok((bound, serve(listener, self.routes())))
    }

    fn routes(
        self,
    ) -> impl Filter<Extract = (impl Reply + use<>,), Error = Infallible> + Clone + Send + Sync + use<> {
        let Admin { registry, readiness, status, page, log_level, actions } = self;
        // The server leaves out the body of an answer to HEAD.
        let read = warp::get().or(warp::head()).unify();
        let livez = warp::path!("livez").and(read).map(|| text(StatusCode::OK, "ok"));
        let readyz = warp::path!("readyz").and(read).map(move || match readiness() {
            Readiness::Ready(role) => text(StatusCode::OK, &role),
            Readiness::NotReady(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &reason),
        });
        let metrics = warp::path!("metrics").and(read).map(move || render(&registry));
        let status = warp::path!("status").and(read).map(move || reply::json(&status()).into_response());
        let page = warp::path::end()
            .and_then(move || std::future::ready(page.clone().ok_or_else(warp::reject::not_found)))
            .and(read)
            .map(|page: Page| page.reply());
        let read_level = log_level.clone();
        let get_level =
            warp::path!("log-level").and(read).map(move || text(StatusCode::OK, &read_level.get()));
        let put_level = warp::path!("log-level")
            .and(warp::put())
            .and(warp::body::content_length_limit(MAX_LOG_FILTER_BYTES))
            .and(warp::body::bytes())
            .map(move |body: Bytes| set_level(&log_level, &body));
        let action = warp::path::full()
            .and_then(move |path: FullPath| {
                let action = actions.get(path.as_str()).cloned();
                std::future::ready(action.ok_or_else(warp::reject::not_found))
            })
            .and(warp::post())
            .and(warp::body::content_length_limit(MAX_ACTION_BYTES))
            .and(warp::body::bytes())
            .map(|action: Action, body: Bytes| act(&action, &body));
        let routes = livez.or(readyz).unify().or(metrics).unify().or(status).unify().or(page).unify();
        routes.or(get_level).unify().or(put_level).unify().or(action).unify().recover(refuse)
    }
}

/// Serves until it is dropped. Not with warp's own loop: warp assumes that every URI has a path, and panics at `CONNECT
/// host:443`, which would end the process.
async fn serve<F>(listener: TcpListener, routes: F)
where
    F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
    F::Future: Send,
{
    let mut connections = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, near) = match listener.accept().await {
            Ok((stream, peer)) => {
                let own = stream.local_addr().map_or(peer.ip(), |own| own.ip());
                (stream, is_local(peer.ip(), own))
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                sleep(AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS {
            open.pop_front().iter().for_each(AbortHandle::abort);
        }
        open.push_back(connections.spawn(connection(stream, near, routes.clone())));
    }
}

async fn connection<F>(stream: TcpStream, near: bool, routes: F)
where
    F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
    F::Future: Send,
{
    let routed = TowerToHyperService::new(warp::service(routes));
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = match refusal(&request, near) {
            Some(refusal) => Err(refusal),
            None => Ok(routed.call(request)),
        };
        async move {
            match answer {
                Ok(answer) => answer.await,
                Err(refusal) => Ok(refusal),
            }
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended");
    }
}

/// Rejected before routing.
fn refusal<B>(request: &Request<B>, near: bool) -> Option<Response> {
    if request.uri().path_and_query().is_none() {
        return Some(text(StatusCode::BAD_REQUEST, "the request has no path"));
    }
    (!may_ask(request.method(), request.headers(), near)).then(|| {
        let how = "requests that change something are accepted only from this machine or pod (kubectl exec, kubectl port-forward), and not from a web page";
        text(StatusCode::FORBIDDEN, how)
    })
}

/// The listener has no authentication, and probes and Prometheus reach it over the network: so every peer there may
/// read, and nothing more. A web page could send a form to the machine of its viewer; the browser marks such a request
/// with an Origin.
fn may_ask(method: &Method, headers: &HeaderMap, near: bool) -> bool {
    method == Method::GET || method == Method::HEAD || (near && !headers.contains_key(ORIGIN))
}

/// Whether the peer of a connection is on this machine: only then can both ends have this address.
fn is_local(peer: IpAddr, own: IpAddr) -> bool {
    peer.to_canonical().is_loopback() || peer == own
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

fn act(action: &Action, body: &[u8]) -> Response {
    let mut lines = match action(body) {
        Ok(lines) => lines,
        Err(refused) => return text(refused.status, &refused.message),
    };
    let lines = futures::stream::poll_fn(move |context| {
        lines.poll_recv(context).map(|line| line.map(|line| Ok::<_, Infallible>(format!("{line}\n"))))
    });
    reply::with_header(reply::stream(lines), "content-type", "application/x-ndjson").into_response()
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn admin() -> Admin {
        Admin::new(Registry::new(), init_logging("info", LogFormat::Text))
    }

    #[tokio::test]
    async fn readiness_is_503_with_its_reason_while_liveness_stays_200() {
        let routes = admin().readiness(|| Readiness::NotReady("Kafka is down".into())).routes();
        let ready = warp::test::request().path("/readyz").reply(&routes).await;
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.body(), "Kafka is down\n");
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
    async fn an_action_returns_lines_or_the_reason_of_its_rejection() {
        let routes = admin()
            .action("/count", |body| {
                if body == b"no" {
                    return Err(ActionRefused { status: StatusCode::CONFLICT, message: "busy".into() });
                }
                let (sender, lines) = mpsc::channel(2);
                sender.try_send(serde_json::json!(1)).unwrap();
                sender.try_send(serde_json::json!({"two": 2})).unwrap();
                Ok(lines)
            })
            .routes();
        let post = |path: &'static str, body: &'static str| {
            warp::test::request().method("POST").path(path).body(body).reply(&routes)
        };
        assert_eq!(post("/count", "go").await.body(), "1\n{\"two\":2}\n");
        let refused = post("/count", "no").await;
        assert_eq!((refused.status(), refused.body().as_ref()), (StatusCode::CONFLICT, &b"busy\n"[..]));
        assert_eq!(post("/other", "").await.status(), 404);
        assert_eq!(warp::test::request().path("/count").reply(&routes).await.status(), 405);
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

    #[tokio::test]
    async fn a_program_with_a_page_serves_it_at_the_root_and_one_without_does_not() {
        let routes = admin().page(Page::new("A title", "<main></main>", "draw();")).routes();
        let page = warp::test::request().path("/").reply(&routes).await;
        assert_eq!(
            (page.status(), &page.headers()["content-type"]),
            (StatusCode::OK, &"text/html; charset=utf-8".parse().unwrap())
        );
        assert!(
            page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'")
        );
        assert!(std::str::from_utf8(page.body()).unwrap().contains("<title>A title</title>"));
        assert_eq!(warp::test::request().path("/index.html").reply(&routes).await.status(), 404);
        assert_eq!(warp::test::request().method("POST").path("/").reply(&routes).await.status(), 405);
        assert_eq!(warp::test::request().path("/livez").reply(&routes).await.body(), "ok\n");
        assert_eq!(warp::test::request().path("/").reply(&admin().routes()).await.status(), 404);
    }

    #[tokio::test]
    async fn head_is_answered_as_get_without_a_body() {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::IntCounter::new("a_total", "help").unwrap())).unwrap();
        let admin = Admin::new(registry, init_logging("info", LogFormat::Text)).page(Page::new("t", "", ""));
        let (address, listener) = admin.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let serving = tokio::spawn(listener);
        for path in ["/", "/livez", "/readyz", "/metrics", "/status", "/log-level"] {
            let ask = async |method: &str| {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                let answer = answer(address, &request).await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let (status, length) = (head.lines().next().unwrap(), head.to_lowercase());
                let length =
                    length.lines().find(|line| line.starts_with("content-length")).map(str::to_owned);
                (status.to_owned(), length, body.is_empty())
            };
            let (get, head) = (ask("GET").await, ask("HEAD").await);
            assert_eq!((&get.0, &get.1), (&head.0, &head.1), "{path}");
            assert!(head.0.contains("200") && head.2, "{path}: {head:?}");
        }
        serving.abort();
    }

    async fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_without_a_path_is_rejected_and_the_listener_survives() {
        let (address, listener) = admin().bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let serving = tokio::spawn(listener);
        let rest = "Host: x\r\nConnection: close\r\n\r\n";
        let refused = answer(address, &format!("CONNECT x:443 HTTP/1.1\r\n{rest}")).await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
        let alive = answer(address, &format!("GET /livez HTTP/1.1\r\n{rest}")).await;
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        serving.abort();
    }

    #[tokio::test]
    async fn idle_connections_do_not_lock_out_others() {
        let (address, listener) = admin().bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let serving = tokio::spawn(listener);
        let mut left_open = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            left_open.push(TcpStream::connect(address).await.unwrap());
        }
        let probe = "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        // Much less than the timeout of idle connections.
        let alive = tokio::time::timeout(HEADER_READ / 5, answer(address, probe)).await.unwrap();
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        assert_eq!(left_open[0].read(&mut [0]).await.unwrap_or_default(), 0, "the oldest was ended");
        serving.abort();
    }

    #[tokio::test]
    async fn a_web_page_can_read_and_change_nothing() {
        let (address, listener) = admin().bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let serving = tokio::spawn(listener);
        let ask = async |method: &str, more: &str| {
            let head = format!("{method} /log-level HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
            let answer = answer(address, &format!("{head}{more}Content-Length: 4\r\n\r\ninfo")).await;
            answer.split(' ').nth(1).unwrap().to_owned()
        };
        let page = "Origin: https://shop.example\r\n";
        assert_eq!((ask("PUT", "").await.as_str(), ask("PUT", page).await.as_str()), ("200", "403"));
        assert_eq!((ask("GET", page).await.as_str(), ask("POST", page).await.as_str()), ("200", "403"));
        serving.abort();
    }

    #[test]
    fn a_remote_peer_can_read_and_change_nothing() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(is_local(ip("127.0.0.1"), ip("127.0.0.1")), "kubectl port-forward, and exec");
        assert!(is_local(ip("::ffff:127.0.0.1"), ip("::ffff:127.0.0.1")) && is_local(ip("::1"), ip("::1")));
        assert!(is_local(ip("10.0.0.7"), ip("10.0.0.7")), "by its own address");
        assert!(!is_local(ip("10.0.0.8"), ip("10.0.0.7")) && !is_local(ip("fd00::8"), ip("fd00::7")));
        let may = |method: Method, near| may_ask(&method, &HeaderMap::new(), near);
        assert!(may(Method::GET, false) && may(Method::HEAD, false));
        for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
            assert!(!may(method.clone(), false) && may(method, true));
        }
    }
}
