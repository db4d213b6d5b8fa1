//! The accept loop: hyper's connections around warp's service, with the limits warp's own server lacks.
//!
//! A slow client cannot keep a connection, in either direction; many connections of some cannot keep out others; and a
//! stop serves until load balancers have noticed it, and then takes no longer than it was given. What a request's body
//! and its execution may take is the service's business.

mod activity;
mod connection;
mod stream;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use warp::Filter;
use warp::reply::Response;

pub use activity::Timeouts;
use activity::{Activity, Waiting};
use connection::End;

use crate::metrics::Metrics;

/// How long to wait after an accept that failed: mostly the process has no file descriptor left, and only time helps.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// What is served.
pub trait Handler:
    Filter<Extract = (Response,), Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<F> Handler for F where
    F: Filter<Extract = (Response,), Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. One more closes the one that has waited the longest for its client; while none waits, it
    /// stays in the kernel's queue.
    pub connections: usize,
    /// How long a client may keep a connection waiting.
    pub timeouts: Timeouts,
    /// How long to accept connections after the stop: load balancers send requests until they have noticed it.
    pub stop_delay: Duration,
    /// How long requests in flight may take to end after that.
    pub drain: Duration,
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because their request had not ended in time.
    pub cut: usize,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Answers ask their clients to connect elsewhere next time.
    Leaving,
    /// Requests in flight are finished; no connection takes another one.
    Draining,
}

/// Serves `filter` until `stop` completes, and then as [`Limits`] say.
pub async fn serve<F: Handler>(
    listener: TcpListener,
    filter: F,
    limits: Limits,
    metrics: Metrics,
    stop: impl Future<Output = ()>,
) -> Drained {
    let (stage, current) = watch::channel(Stage::Serving);
    let mut open = Connections::new(limits, metrics, current);
    {
        let mut accepting = std::pin::pin!(async {
            loop {
                let stream = accept(&listener).await;
                open.make_room().await;
                open.start(stream, filter.clone());
            }
        });
        tokio::select! {
            () = accepting.as_mut() => {}
            () = stop => {}
        }
        stage.send_replace(Stage::Leaving);
        tokio::select! {
            () = accepting => {}
            () = sleep(limits.stop_delay) => {}
        }
    }
    drop(listener);
    stage.send_replace(Stage::Draining);
    open.drain().await
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

/// The open connections.
struct Connections {
    limits: Limits,
    metrics: Metrics,
    stage: watch::Receiver<Stage>,
    tasks: JoinSet<()>,
    open: Vec<Open>,
    /// Told when a connection begins to wait for its client, and so could be closed.
    waits: Arc<Notify>,
}

struct Open {
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Connections {
    fn new(limits: Limits, metrics: Metrics, stage: watch::Receiver<Stage>) -> Connections {
        Connections { limits, metrics, stage, tasks: JoinSet::new(), open: Vec::new(), waits: Arc::default() }
    }

    /// Returns when one more connection is within the limit.
    async fn make_room(&mut self) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.open.retain(|open| !open.task.is_finished());
            if self.open.len() < self.limits.connections {
                return;
            }
            if let Some(longest) = self.longest_waiting() {
                self.open.swap_remove(longest).task.abort();
                self.metrics.connection_closed("limit");
                return;
            }
            tokio::select! {
                _ = self.tasks.join_next() => {}
                () = self.waits.notified() => {}
            }
        }
    }

    /// The connection whose client deserves it the least: one that is slow before one that is idle, and of these the
    /// one that has waited the longest.
    fn longest_waiting(&self) -> Option<usize> {
        let waiting = self.open.iter().enumerate();
        let waiting = waiting.filter_map(|(index, open)| Some((open.activity.waiting()?, index)));
        let is_idle = |waiting| waiting == Waiting::Idle;
        waiting.min_by_key(|((waiting, since), _)| (is_idle(*waiting), *since)).map(|(_, index)| index)
    }

    fn start<F: Handler>(&mut self, stream: TcpStream, filter: F) {
        let activity = Arc::new(Activity::new(Arc::clone(&self.waits)));
        let connection = connection::serve(
            stream,
            filter,
            Arc::clone(&activity),
            self.limits.timeouts,
            self.stage.clone(),
        );
        let metrics = self.metrics.clone();
        let counted = metrics.connection_opened();
        let task = self.tasks.spawn(async move {
            match connection.await {
                End::TooSlow(Waiting::Reader) => metrics.connection_closed("send_timeout"),
                End::TooSlow(Waiting::Head) => metrics.connection_closed("header_timeout"),
                End::TooSlow(Waiting::Idle) => metrics.connection_closed("idle_timeout"),
                End::Closed => {}
            }
            drop(counted);
        });
        self.open.push(Open { activity, task });
    }

    /// Lets requests in flight end, and cuts those that do not within the limit.
    async fn drain(mut self) -> Drained {
        let tasks = &mut self.tasks;
        let ended = timeout(self.limits.drain, async { while tasks.join_next().await.is_some() {} }).await;
        let cut = if ended.is_ok() { 0 } else { self.tasks.len() };
        if cut > 0 {
            tracing::warn!(
                cut,
                "requests did not end in time and were cut; their clients repeat them by their keys"
            );
        }
        self.tasks.shutdown().await;
        Drained { cut }
    }
}
