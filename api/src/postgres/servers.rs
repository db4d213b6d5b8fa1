//! Where the database is, and how a session with it begins.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};

use super::error::remedy;

/// How long one server may take to accept a session that a request or the probe waits for: a server that is unreachable
/// must not keep the others waiting.
pub const PROMPT: Duration = Duration::from_secs(2);
/// How long for a command line or a job.
pub const PATIENT: Duration = Duration::from_secs(10);
/// How long the end of a session may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// How long the statements of a session may take. The server enforces it, so that a statement ends although its caller has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    statement_ms: u32,
    lock_ms: u32,
    idle_in_transaction_ms: u32,
}

impl Limits {
    /// Commands and reads of one row. A lock that is not given in three seconds belongs to a transaction that will hold
    /// it for long. A replica that hangs in a transaction loses its locks after ten.
    pub const COMMANDS: Limits =
        Limits { statement_ms: 5_000, lock_ms: 3_000, idle_in_transaction_ms: 10_000 };
    /// Lists: an index serves each, so that one that takes longer meets a server that is overloaded.
    pub const LISTS: Limits = Limits { statement_ms: 2_000, ..Limits::COMMANDS };
    /// Jobs, each of whose statements works on one batch.
    pub const HOUSEKEEPING: Limits = Limits { statement_ms: 30_000, ..Limits::COMMANDS };
    /// Migrations may read whole tables, but must not queue for a lock: every command would queue behind them.
    pub const MIGRATION: Limits = Limits { statement_ms: 0, lock_ms: 5_000, idle_in_transaction_ms: 0 };

    /// The settings of a session, as statements. They are not startup parameters, because poolers refuse those.
    ///
    /// The server notices within a minute that its client is unreachable: such sessions would use up its connections.
    /// Isolation is fixed, because the retries of a command see what another one has committed.
    fn settings(self) -> String {
        let Limits { statement_ms, lock_ms, idle_in_transaction_ms } = self;
        format!(
            "SET statement_timeout = {statement_ms}; SET lock_timeout = {lock_ms};
             SET idle_in_transaction_session_timeout = {idle_in_transaction_ms};
             SET default_transaction_isolation = 'read committed';
             SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;
             SET tcp_user_timeout = 60000;
             SELECT {WRITABLE}"
        )
    }
}

/// Columns that tell whether a server accepts writes: see [`accepts_writes`].
pub const WRITABLE: &str =
    "pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only";

/// Why a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// It is a standby.
    #[error("it is a standby, which accepts no writes; connect to the primary")]
    Standby,
    /// It accepts no writes, although it is no standby.
    #[error(
        "it accepts no writes (transaction_read_only); end its read-only mode, which a full disk may have caused"
    )]
    ReadOnly,
    /// It, or the way to it, failed.
    #[error("{}{}", .0, remedy(.0).map(|remedy| format!("; {remedy}")).unwrap_or_default())]
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for ServerError {
    fn from(error: sqlx::Error) -> ServerError {
        ServerError::Failed(error)
    }
}

/// No server can be used.
#[derive(Debug)]
pub struct NoServer(Vec<(String, ServerError)>);

impl NoServer {
    /// Whether a server was found that answers, but accepts no writes.
    pub fn only_reads(&self) -> bool {
        self.0.iter().any(|(_, error)| matches!(error, ServerError::Standby | ServerError::ReadOnly))
    }
}

impl Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (place, error)) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}PostgreSQL at {place}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoServer {}

/// A session with a server that accepts writes.
pub struct Session {
    /// The connection.
    pub sql: PgConnection,
    /// How that server is reached.
    pub server: PgConnectOptions,
}

impl Session {
    /// Ends it. A server that does not answer finds out later.
    pub async fn close(self) {
        let _unanswered = tokio::time::timeout(CLOSE_WITHIN, self.sql.close()).await;
    }
}

/// Where the database is: one server, or several of which one accepts writes, as a failover leaves them.
#[derive(Clone, Debug)]
pub struct Servers {
    first: PgConnectOptions,
    others: Vec<PgConnectOptions>,
}

/// It is no address of PostgreSQL servers. What it is instead may contain a password and is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an address such as postgres://user:password@host:5432/database")]
pub struct InvalidAddress;

impl FromStr for Servers {
    type Err = InvalidAddress;

    /// As libpq: several hosts, each with its port, are separated by commas.
    fn from_str(address: &str) -> Result<Servers, InvalidAddress> {
        // The driver accepts any scheme, and would then look for PostgreSQL where a MySQL is.
        let schemes = ["postgres://", "postgresql://"];
        let scheme = schemes.iter().find(|scheme| address.starts_with(**scheme)).ok_or(InvalidAddress)?;
        let rest = address.strip_prefix(scheme).unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user_info, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let mut servers = hosts.split(',').map(|host| {
            let server = PgConnectOptions::from_str(&format!("{scheme}{user_info}{host}{path}"));
            // PgBouncer refuses the parameter; the driver reads floating-point numbers in binary, which needs none.
            let server = server.map(|server| server.application_name("basket-api").extra_float_digits(None));
            server.map_err(|_| InvalidAddress)
        });
        let first = servers.next().ok_or(InvalidAddress)??;
        Ok(Servers { first, others: servers.collect::<Result<_, _>>()? })
    }
}

impl Servers {
    /// The first, where the service looks before it knows which one accepts writes.
    pub fn first(&self) -> &PgConnectOptions {
        &self.first
    }

    /// A session with the first server that accepts writes; each may take so long.
    pub async fn connect(&self, limits: Limits, within: Duration) -> Result<Session, NoServer> {
        let mut refused = Vec::new();
        for server in std::iter::once(&self.first).chain(&self.others) {
            match connect(server, limits, within).await {
                Ok(sql) => return Ok(Session { sql, server: server.clone() }),
                Err(error) => refused.push((place(server), error)),
            }
        }
        Err(NoServer(refused))
    }
}

async fn connect(
    server: &PgConnectOptions,
    limits: Limits,
    within: Duration,
) -> Result<PgConnection, ServerError> {
    let connected = async {
        let mut sql = server.connect().await?;
        prepare(&mut sql, limits).await?;
        Ok(sql)
    };
    tokio::time::timeout(within, connected).await.unwrap_or(Err(ServerError::NoAnswer(within)))
}

/// Sets a new session up, and refuses a server that accepts no writes: after a failover the name of the primary may
/// lead to the former one for a while.
pub async fn prepare(sql: &mut PgConnection, limits: Limits) -> Result<(), ServerError> {
    let settings = sqlx::raw_sql(sqlx::AssertSqlSafe(limits.settings()));
    accepts_writes(&settings.fetch_one(sql).await?)
}

/// Reads the columns of [`WRITABLE`].
pub fn accepts_writes(row: &sqlx::postgres::PgRow) -> Result<(), ServerError> {
    match (row.try_get("standby")?, row.try_get("read_only")?) {
        (true, _) => Err(ServerError::Standby),
        (false, true) => Err(ServerError::ReadOnly),
        (false, false) => Ok(()),
    }
}

/// How people name it: host, port and database.
pub fn place(server: &PgConnectOptions) -> String {
    let database = server.get_database().unwrap_or_else(|| server.get_username());
    format!("{}:{}, database {database}", server.get_host(), server.get_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(address: &str) -> Vec<String> {
        let servers = Servers::from_str(address).unwrap();
        std::iter::once(&servers.first).chain(&servers.others).map(place).collect()
    }

    #[test]
    fn an_address_names_one_server_or_several() {
        assert_eq!(places("postgres://u:p@a/shop"), ["a:5432, database shop"]);
        assert_eq!(
            places("postgresql://u:p%2Cq@a:1,b,[::1]:3/shop?sslmode=disable"),
            ["a:1, database shop", "b:5432, database shop", "[::1]:3, database shop"]
        );
    }

    #[test]
    fn what_is_no_address_of_postgres_is_refused() {
        for wrong in ["", "a", "mysql://a/b", "http://a", "postgres://a:port/b", "postgres://a:1,b:x/c"] {
            assert_eq!(Servers::from_str(wrong).map(drop), Err(InvalidAddress), "{wrong}");
        }
    }
}
