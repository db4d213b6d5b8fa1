//! The accept loop: hyper's connections around warp's service, with the bounds warp's own server lacks.
//!
//! Nobody can hold a connection by being slow, nobody can open any number of them, and a stop takes no longer than it
//! was given. What a request's body and its answer may take is the service's business.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use warp::Filter;
use warp::reply::Response;

use crate::http::Problem;

/// Room for a request's head. Above what the service refuses with an answer of its own, so that its answers are seen;
/// what does not even fit in here gets hyper's empty 431.
const HEAD_BYTES: usize = 64 * 1024;
/// How long to wait after an accept that failed: mostly the process has no file descriptor left, and only time helps.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. Others wait in the kernel's queue until one closes.
    pub connections: usize,
    /// How long a request's head may take to arrive, counted from the connection's start or the answer before: also how
    /// long a connection may be idle.
    pub header_read: Duration,
    /// How long requests under way may take to end once the server is stopped.
    pub drain: Duration,
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because their request had not ended in time.
    pub cut: usize,
}

/// Serves `filter` until `stop` completes; then accepts nothing more, lets requests under way end, and returns.
pub async fn serve<F>(
    listener: TcpListener,
    filter: F,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Drained
where
    F: Filter<Extract = (Response,), Error = std::convert::Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    let accepting = async {
        loop {
            // Before the accept: a connection that cannot be served is better off in the queue.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = accept(&listener).await;
            let connection = connection(stream, filter.clone(), limits.header_read, stopped.clone());
            connections.spawn(async move {
                connection.await;
                drop(permit);
            });
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop => {}
    }
    drop(listener);
    stopping.send_replace(true);
    let ended = timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
    let cut = if ended.is_ok() { 0 } else { connections.len() };
    if cut > 0 {
        tracing::warn!(
            cut,
            "requests did not end in time and were cut; their clients repeat them by their keys"
        );
    }
    connections.shutdown().await;
    Drained { cut }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; is the limit of open files too low?");
                sleep(AFTER_FAILED_ACCEPT).await;
            }
        }
    }
}

/// One connection, to its end. Its errors are its client's: a cut line, or something that is not HTTP.
async fn connection<F>(
    stream: TcpStream,
    filter: F,
    header_read: Duration,
    mut stopped: watch::Receiver<bool>,
) where
    F: Filter<Extract = (Response,), Error = std::convert::Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    // Answers are small and complete: there is nothing to wait for.
    drop(stream.set_nodelay(true));
    let routed = TowerToHyperService::new(warp::service(filter));
    let service = service_fn(move |request: Request<Incoming>| {
        // warp takes it for granted that a URI has a path, and panics at "CONNECT host:443".
        let has_path = request.uri().path_and_query().is_some();
        let answer = has_path.then(|| routed.call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(Problem::malformed("a request names a path").into_response("none")),
            }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_read)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
