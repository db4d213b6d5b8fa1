//! Connections that reconciliations share: a client for each Kafka cluster and its credentials, and a few idle connections to databases.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use outbox_relay::config::{self, Access, Sink, TokenCredentials};
use outbox_relay::error::RelayError;
use outbox_relay::kafka::client::client_config;
use outbox_relay::postgres::connection;
use rdkafka::config::ClientConfig;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::breaker::Breaker;
use crate::digest::{ClientKey, ConnectionKey, SecretsDigest};
use crate::topics::{Cluster, KafkaError};

/// Longer than from one reconciliation to the next.
const IDLE: Duration = Duration::from_secs(150);
/// Idle connections to databases at most: they are the database's, and its services need them.
const KEPT: usize = 32;

/// Concurrent connections to one database with the same credentials.
const AT_ONCE: usize = 4;

/// A statement that waits for a lock stays in its server process after its client has gone: without limits each reconciliation
/// would leave one behind, until the server has no connection left.
const LIMITS: &str =
    "SET statement_timeout = '5s'; SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '10s'";

/// See the module's text.
pub struct Connections {
    /// To relays.
    pub relays: RelayClient,
    turns: Mutex<HashMap<ConnectionKey, Weak<Semaphore>>>,
    clusters: Mutex<HashMap<ClusterKey, Shared>>,
    databases: Mutex<Vec<Idle>>,
    /// Database servers that do not answer.
    silent: Breaker,
}

/// To the pods of relays, which are asked every few seconds: connections are kept from one reconciliation to the next.
pub type RelayClient = Client<HttpConnector, Empty<Bytes>>;

/// The settings of a client, and the credentials that its tokens are fetched with.
type ClusterKey = (ClientKey, Option<TokenCredentials>);

/// A cluster's client, and when it was last asked for.
type Shared = (Instant, Arc<OnceCell<Cluster>>);

struct Idle {
    key: ConnectionKey,
    since: Instant,
    connection: PgConnection,
}

/// An open connection, to be given back with [`Connections::keep`] where nothing went wrong on it.
pub struct Database {
    key: ConnectionKey,
    _turn: Option<OwnedSemaphorePermit>,
    /// The connection.
    pub sql: PgConnection,
}

impl Default for Connections {
    fn default() -> Self {
        let relays = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http();
        let (turns, clusters, databases, silent) = Default::default();
        Connections { relays, turns, clusters, databases, silent }
    }
}

impl Connections {
    /// The client of a cluster with these credentials; created where there is none yet.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub async fn cluster(&self, sink: &Sink) -> Result<Cluster, KafkaError> {
        let (sink, config) = (sink.clone(), client_config(sink));
        let cell = self.cell((client_key(&config), sink.access.token_credentials().cloned()));
        // Many resources may ask for the same one at once: one of them creates it.
        let create = async || match tokio::task::spawn_blocking(move || Cluster::new(&sink)).await {
            Ok(created) => created,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        cell.get_or_try_init(create).await.cloned()
    }

    fn cell(&self, key: ClusterKey) -> Arc<OnceCell<Cluster>> {
        let mut clusters = lock(&self.clusters);
        clusters.retain(|other, (used, _)| *other == key || used.elapsed() < IDLE);
        let (used, cell) = clusters.entry(key).or_insert_with(|| (Instant::now(), Arc::default()));
        *used = Instant::now();
        Arc::clone(cell)
    }

    /// A connection to the database that takes writes. `access` is what the files that `source` names hold.
    ///
    /// # Errors
    /// The reason why there is none.
    pub async fn database(
        &self,
        source: &config::Source,
        access: &Access,
        secrets: &SecretsDigest,
    ) -> Result<Database, RelayError> {
        let key = connection_key(source, secrets);
        // Never closed.
        let turn = self.turns(&key).acquire_owned().await.ok();
        if let Some(mut sql) = self.take(&key) {
            // It may lead to a server that has become a standby meanwhile.
            let read_only = sqlx::query_scalar("SHOW transaction_read_only").fetch_one(&mut sql).await;
            if read_only.is_ok_and(|read_only: String| read_only == "off") {
                return Ok(Database { key, _turn: turn, sql });
            }
        }
        let question = self.silent.enter(&format!("{}:{}", source.host, source.port))?;
        let connected = connection::connect_with(source, access, "operator").await;
        question.answered(&connected);
        let mut sql = connected?;
        sqlx::raw_sql(LIMITS).execute(&mut sql).await?;
        Ok(Database { sql, _turn: turn, key })
    }

    fn turns(&self, key: &ConnectionKey) -> Arc<Semaphore> {
        let mut turns = lock(&self.turns);
        if let Some(turns) = turns.get(key).and_then(Weak::upgrade) {
            return turns;
        }
        turns.retain(|_, turns| turns.strong_count() > 0);
        let new = Arc::new(Semaphore::new(AT_ONCE));
        turns.insert(key.clone(), Arc::downgrade(&new));
        new
    }

    /// Keeps a connection for the next reconciliation.
    pub fn keep(&self, database: Database) {
        let kept = Idle { key: database.key, since: Instant::now(), connection: database.sql };
        let mut idle = lock(&self.databases);
        idle.push(kept);
        let excess = idle.len().saturating_sub(KEPT);
        // The oldest are first.
        let mut position = 0;
        let ended = idle.extract_if(.., |idle| {
            position += 1;
            position <= excess || idle.since.elapsed() > IDLE
        });
        for ended in ended {
            tokio::spawn(ended.connection.close());
        }
    }

    fn take(&self, key: &ConnectionKey) -> Option<PgConnection> {
        let mut idle = lock(&self.databases);
        let position = idle.iter().rposition(|idle| idle.key == *key && idle.since.elapsed() < IDLE)?;
        Some(idle.remove(position).connection)
    }
}

/// Of all settings of a connection: one that was opened without verifying the server is not reused where verification is required.
fn connection_key(source: &config::Source, secrets: &SecretsDigest) -> ConnectionKey {
    let config::Source { host, port, database, user, password, tls, .. } = source;
    let password = password.as_ref().map_or("", |password| password.reveal());
    let (port, mode) = (port.to_string(), format!("{:?}", tls.mode));
    ConnectionKey::of([host, &port, database, user, password, &mode, secrets.as_str()])
}

/// Of all settings of a client, including secrets: `config_map` alone masks them, and a client would be reused by any
/// resource that knows the name of its user.
fn client_key(config: &ClientConfig) -> ClientKey {
    let names: BTreeSet<&str> = config.config_map().into_keys().collect();
    ClientKey::of(names.into_iter().flat_map(|name| [name, config.get(name).unwrap_or_default()]))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn source(field: &str, value: Value) -> config::Source {
        let mut source = json!({"host": "db", "database": "shop", "user": "u", "tls": {"mode": "verify-full"},
            "publication": {"name": "p"}, "slot": {"name": "s"}});
        source[field] = value;
        serde_json::from_value(source).unwrap()
    }

    #[test]
    fn a_connection_is_reused_only_with_equal_settings() {
        let key =
            |source: &config::Source, secrets: &str| connection_key(source, &SecretsDigest::of([secrets]));
        let given = key(&source("user", json!("u")), "secrets");
        assert_eq!(given, key(&source("slot", json!({"name": "t"})), "secrets"), "it does not matter");
        for (field, value) in [
            ("host", json!("other")),
            ("port", json!(1)),
            ("database", json!("other")),
            ("user", json!("other")),
            ("tls", json!({"mode": "require"})),
        ] {
            assert_ne!(given, key(&source(field, value), "secrets"), "{field}");
        }
        assert_ne!(given, key(&source("user", json!("u")), "others"));
    }

    #[test]
    fn a_client_is_reused_only_with_equal_settings_and_secrets() {
        let secrets =
            ["sasl.password", "ssl.key.password", "ssl.key.pem", "ssl.certificate.pem", "ssl.ca.pem"];
        let config = |changed: &str| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", "k:9092").set("sasl.username", "u");
            for name in secrets {
                config.set(name, if name == changed { "other" } else { "right" });
            }
            config
        };
        let given = client_key(&config(""));
        assert_eq!(given, client_key(&config("")));
        for name in secrets {
            assert_ne!(given, client_key(&config(name)), "{name}");
        }
    }
}
