//! The wiring: what is plugged into what.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use admin::{Admin, BindError, LogLevel, Readiness};
use basket::application::reactions::{IntegrationEvents, ReadModel};
use basket::application::{Bus, Observer};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;

use crate::config::{ConfigError, Serve};
use crate::http::{App, filter};
use crate::metrics::Metrics;
use crate::postgres::{PostgresUnits, ViewQueries};

/// A request that finds no free connection for this long is told to come back later.
const CONNECTION_WITHIN: Duration = Duration::from_secs(2);
/// A statement that takes longer is ended by the server: commands touch a handful of rows.
const STATEMENT_TIMEOUT_MS: &str = "5000";
/// How often readiness is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

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
    options: &Serve,
    database: PgConnectOptions,
    log_level: LogLevel,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), StartError> {
    let authentication = options.authentication()?;
    let metrics = Metrics::new()?;
    let pool = PgPoolOptions::new()
        .max_connections(options.database_connections)
        .acquire_timeout(CONNECTION_WITHIN)
        .connect_lazy_with(database.options([("statement_timeout", STATEMENT_TIMEOUT_MS)]));
    let app = Arc::new(App {
        bus: Bus::new(
            Arc::new(PostgresUnits::new(pool.clone(), metrics.clone())),
            vec![Box::new(ReadModel), Box::new(IntegrationEvents)],
            Arc::new(metrics.clone()) as Arc<dyn Observer>,
        ),
        queries: Arc::new(ViewQueries::new(pool.clone())),
        authentication,
        metrics: metrics.clone(),
    });
    let ready = Arc::new(AtomicBool::new(false));
    let shown = Arc::clone(&ready);
    let admin = Admin::new(metrics.registry.clone(), log_level).readiness(move || {
        if shown.load(Ordering::Relaxed) {
            return Readiness::Ready("serving".into());
        }
        Readiness::NotReady(
            "the database does not answer, or its schema is missing; run 'basket-api migrate'".into(),
        )
    });
    let (admin_address, listener) = admin.bind(options.admin_listen).await?;
    tokio::spawn(listener);
    tokio::spawn(watch_database(pool.clone(), metrics, ready));
    let address = options.listen;
    let socket = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
    tracing::info!(%address, admin = %admin_address, version = env!("CARGO_PKG_VERSION"), "basket-api serves");
    warp::serve(filter(app)).incoming(socket).graceful(stop).run().await;
    pool.close().await;
    tracing::info!("stopped in order");
    Ok(())
}

/// Ready means: the database answers and has the tables.
async fn watch_database(pool: PgPool, metrics: Metrics, ready: Arc<AtomicBool>) {
    loop {
        let looked = sqlx::query("SELECT FROM basket, command_log, idempotency_key, outbox LIMIT 0");
        ready.store(looked.execute(&pool).await.is_ok(), Ordering::Relaxed);
        metrics.pool(&pool);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
