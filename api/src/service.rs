//! The wiring: what is plugged into what.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use basket::application::Dispatch;
use process::{Admin, BindError, LogLevel, Readiness};
use tokio::sync::watch;

use crate::bus::bus;
use crate::config::{ConfigError, Serve};
use crate::housekeeping;
use crate::http::{App, Authentication, RequestLimits, Rules, filter, openapi};
use crate::metrics::Metrics;
use crate::postgres::{Database, PostgresBaskets, PostgresCommandLog, Probe, Servers, State};
use crate::server;

/// How long closing the connections to the database may take at a stop.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The admin address cannot be bound.
    #[error(transparent)]
    Admin(#[from] BindError),
    /// The service's address cannot be bound.
    #[error("cannot listen on {address}; choose another address with --listen")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A metric is defined twice: a bug.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

/// Serves until `stop` completes, then finishes requests in progress.
pub async fn serve(
    options: Serve,
    servers: Servers,
    log_level: LogLevel,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), StartError> {
    let authentication = options.access.authentication()?;
    options.retention.check()?;
    let metrics = Metrics::new()?;
    let database = Database::new(&servers, options.bounds.database_connections);
    let bus = bus(&database, &metrics, options.unit_of_work);
    let app = app(&options, authentication.clone(), Arc::clone(&bus), &database, &metrics);
    let (state, state_seen) = watch::channel(State::Unknown);
    let stopping = Arc::new(AtomicBool::new(false));
    let ready = readiness(&stopping, state_seen, authentication.clone());
    let admin = Admin::new(metrics.registry.clone(), log_level).readiness(ready);
    let (admin_address, listener) = admin.bind(options.admin_listen).await?;
    let address = options.listen;
    let socket = process::listen(address).await.map_err(|source| StartError::Listen { address, source })?;
    tokio::spawn(listener);
    housekeeping::start(&servers, bus, &options.retention, &metrics);
    tokio::spawn(Probe::new(servers, database.clone()).run(metrics.clone(), state));
    if let Authentication::Tokens { verifier, .. } = authentication {
        tokio::spawn(verifier.keep_fresh(metrics.clone()));
    }
    tracing::info!(%address, admin = %admin_address, version = process::version(), "basket-api serves");
    if !address.ip().is_loopback() && !options.access.auth.tells_callers_apart() {
        tracing::warn!(
            auth = options.access.auth.name(),
            "every caller that can connect has the same rights: this mode of authentication is for development"
        );
    }
    let stop = async {
        stop.await;
        stopping.store(true, Ordering::Relaxed);
    };
    let drained = server::serve(socket, filter(app), options.bounds.of_server(), metrics, stop).await;
    database.close(CLOSE_WITHIN).await;
    tracing::info!(cut = drained.cut, "stopped gracefully");
    Ok(())
}

fn app(
    options: &Serve,
    authentication: Authentication,
    bus: Arc<dyn Dispatch>,
    database: &Database,
    metrics: &Metrics,
) -> Arc<App> {
    let Serve { access, bounds, .. } = options;
    Arc::new(App {
        bus,
        baskets: Arc::new(PostgresBaskets::new(database.clone())),
        log: Arc::new(PostgresCommandLog::new(database.clone())),
        authentication,
        limits: RequestLimits::new(bounds.of_requests()),
        rules: Rules { require_if_match: access.require_if_match, timeout: bounds.request_timeout },
        document: openapi::document().to_string(),
        metrics: metrics.clone(),
    })
}

fn readiness(
    stopping: &Arc<AtomicBool>,
    database: watch::Receiver<State>,
    authentication: Authentication,
) -> impl Fn() -> Readiness + Send + Sync + 'static {
    let stopping = Arc::clone(stopping);
    move || {
        if stopping.load(Ordering::Relaxed) {
            let message = "stopping: requests in flight are finished, and clients asked to connect elsewhere";
            return Readiness::NotReady(message.into());
        }
        match &*database.borrow() {
            State::Usable if !authentication.is_ready() => {
                Readiness::NotReady("the token issuer's keys could not be read yet; the log says why".into())
            }
            State::Usable => Readiness::Ready("serving".into()),
            State::Unknown => Readiness::NotReady("the database was not looked at yet".into()),
            State::Unusable(reason) => Readiness::NotReady(reason.clone()),
        }
    }
}
