//! The wiring: what is plugged into what.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use admin::{Admin, BindError, LogLevel, Readiness};
use basket::application::Dispatch;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};

use crate::bus::bus;
use crate::config::{Bounds, ConfigError, Serve};
use crate::housekeeping::keep_house;
use crate::http::{App, Authentication, RequestLimits, Rules, filter, openapi};
use crate::metrics::Metrics;
use crate::postgres::{Housekeeping, PostgresBaskets, PostgresCommandLog};
use crate::server;

/// A request that finds no free connection for this long is told to come back later.
const CONNECTION_WITHIN: Duration = Duration::from_secs(2);
/// A statement that takes longer is ended by the server: commands touch a handful of rows.
const STATEMENT_TIMEOUT_MS: &str = "5000";
/// A lock that is not given in this time belongs to somebody who holds it for long: better to say so.
const LOCK_TIMEOUT_MS: &str = "3000";
/// A transaction of ours that is left open, by a replica that hangs, gives its locks back after this.
const IDLE_IN_TRANSACTION_MS: &str = "10000";
/// A connection that was used so lately is taken to be there still.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How long to say good-bye to the database at a stop.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How often readiness is looked at, and how long that may take: a database that is away is seen within two seconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_WITHIN: Duration = Duration::from_secs(1);

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

/// Serves until `stop` completes, then finishes what is under way.
pub async fn serve(
    options: Serve,
    database: PgConnectOptions,
    log_level: LogLevel,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), StartError> {
    let authentication = options.access.authentication()?;
    options.retention.check()?;
    let metrics = Metrics::new()?;
    let pool = pool(&options.bounds, database);
    let bus = bus(&pool, &metrics, options.unit_of_work);
    let app = app(&options, authentication.clone(), Arc::clone(&bus), &pool, &metrics);
    let state = Arc::new(AtomicU8::new(AWAY));
    let admin =
        Admin::new(metrics.registry.clone(), log_level).readiness(readiness(&state, authentication.clone()));
    let (admin_address, listener) = admin.bind(options.admin_listen).await?;
    let address = options.listen;
    let socket = admin::listen(address).await.map_err(|source| StartError::Listen { address, source })?;
    tokio::spawn(listener);
    tokio::spawn(watch_database(pool.clone(), metrics.clone(), Arc::clone(&state)));
    tokio::spawn(keep_house(Housekeeping::new(pool.clone()), bus, options.retention));
    if let Authentication::Tokens { verifier, .. } = authentication {
        tokio::spawn(verifier.keep_fresh(metrics.clone()));
    }
    tracing::info!(%address, admin = %admin_address, version = admin::version(), "basket-api serves");
    if !address.ip().is_loopback() && !options.access.auth.tells_callers_apart() {
        tracing::warn!(
            auth = options.access.auth.name(),
            "every caller that can connect has the same rights: this mode of authentication is for development"
        );
    }
    let stop = async {
        stop.await;
        state.store(STOPPING, Ordering::Relaxed);
    };
    let drained = server::serve(socket, filter(app), options.bounds.of_server(), metrics, stop).await;
    // A connection whose server is gone without a word would keep it waiting; the process ends with it anyway.
    let _ = tokio::time::timeout(CLOSE_WITHIN, pool.close()).await;
    tracing::info!(cut = drained.cut, "stopped gracefully");
    Ok(())
}

fn pool(bounds: &Bounds, database: PgConnectOptions) -> PgPool {
    let database = database.options([
        ("statement_timeout", STATEMENT_TIMEOUT_MS),
        ("lock_timeout", LOCK_TIMEOUT_MS),
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_MS),
    ]);
    PgPoolOptions::new()
        .max_connections(bounds.database_connections)
        .acquire_timeout(CONNECTION_WITHIN)
        // A ping before each use would be a round trip per command. One that was just used is there.
        .test_before_acquire(false)
        .before_acquire(|connection, used| {
            Box::pin(async move {
                if used.idle_for < TRUSTED_FOR {
                    return Ok(true);
                }
                Ok(connection.ping().await.is_ok())
            })
        })
        .connect_lazy_with(database)
}

fn app(
    options: &Serve,
    authentication: Authentication,
    bus: Arc<dyn Dispatch>,
    pool: &PgPool,
    metrics: &Metrics,
) -> Arc<App> {
    let Serve { access, bounds, .. } = options;
    Arc::new(App {
        bus,
        baskets: Arc::new(PostgresBaskets::new(pool.clone())),
        log: Arc::new(PostgresCommandLog::new(pool.clone())),
        authentication,
        limits: RequestLimits::new(bounds.of_requests()),
        rules: Rules { require_if_match: access.require_if_match, timeout: bounds.request_timeout },
        document: openapi::document().to_string(),
        metrics: metrics.clone(),
    })
}

/// What readiness is told: [`AWAY`], [`SERVING`] or [`STOPPING`].
type State = Arc<AtomicU8>;
const AWAY: u8 = 0;
const SERVING: u8 = 1;
const STOPPING: u8 = 2;

fn readiness(
    state: &State,
    authentication: Authentication,
) -> impl Fn() -> Readiness + Send + Sync + 'static {
    let state = Arc::clone(state);
    move || match state.load(Ordering::Relaxed) {
        SERVING if !authentication.is_ready() => {
            Readiness::NotReady("the token issuer's keys could not be read yet; the log says why".into())
        }
        SERVING => Readiness::Ready("serving".into()),
        STOPPING => Readiness::NotReady(
            "stopping: requests in flight are finished, and clients asked to connect elsewhere".into(),
        ),
        _ => Readiness::NotReady(
            "the database does not answer, or its schema is missing; run 'basket-api migrate'".into(),
        ),
    }
}

/// Serving means: the database answers and has the tables.
async fn watch_database(pool: PgPool, metrics: Metrics, state: State) {
    loop {
        let looked = sqlx::query(
            "SELECT b.owner, c.basket_version FROM basket b, command_log c, idempotency_key, outbox, basket_view LIMIT 0",
        );
        let looked = tokio::time::timeout(LOOK_WITHIN, looked.execute(&pool)).await;
        let (from, to) = if matches!(looked, Ok(Ok(_))) { (AWAY, SERVING) } else { (SERVING, AWAY) };
        // Only between these two: stopping is for good.
        let _unchanged = state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        metrics.pool(&pool);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
