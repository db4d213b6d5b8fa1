//! One connection, to its end.

use std::error::Error;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::activity::{Activity, Timeouts, Waiting};
use super::stream::{ClientStream, TooSlow};
use super::{Handler, Stage};

/// Room for a request's head. Above the size that the service refuses itself, so that clients get its answer;
/// what does not even fit in here gets hyper's empty 431.
const HEAD_BYTES: usize = 64 * 1024;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By either side, between requests or not. An error is the client's: a cut line, or something that is not HTTP.
    Closed,
    /// The client was too slow.
    TooSlow(Waiting),
}

/// Serves the connection until it ends.
pub async fn serve<F: Handler>(
    stream: TcpStream,
    filter: F,
    activity: Arc<Activity>,
    timeouts: Timeouts,
    mut stage: watch::Receiver<Stage>,
) -> End {
    // Answers are small and complete: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    let stream = ClientStream::new(stream, Arc::clone(&activity), timeouts);
    let routed = TowerToHyperService::new(warp::service(filter));
    let current = stage.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        activity.on_request();
        // warp takes it for granted that a URI has a path, and panics at "CONNECT host:443".
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("/");
        }
        let answer = routed.call(request);
        let (activity, current) = (Arc::clone(&activity), current.clone());
        async move {
            let answer = answer.await;
            activity.on_answer();
            answer.map(|mut response| {
                if *current.borrow() != Stage::Serving {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            })
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { let _ = stage.wait_for(|stage| *stage == Stage::Draining).await; } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let Err(error) = ended else { return End::Closed };
    tracing::debug!(error = &error as &dyn Error, "a connection ended");
    too_slow(&error).map_or(End::Closed, End::TooSlow)
}

fn too_slow(error: &hyper::Error) -> Option<Waiting> {
    let error = error.source()?.downcast_ref::<std::io::Error>()?;
    error.get_ref()?.downcast_ref::<TooSlow>().map(|TooSlow(waiting)| *waiting)
}
