//! Connections to the source database. All of them read the credential files again, limit the time for each address of
//! each host, and override settings of server, database and role that would affect the relay.

use std::time::Duration;

use pg_replication::{Client, Host, Password, Target, settings};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Row};

use super::slot_holder::STREAM;
use super::{grants, sql_over_tls};
use crate::config::{Access, Source};
use crate::error::{ErrorKind, RelayError, chain, reason_of_all, reason_of_connection};

/// Timeout of one address: a host that drops packets must not delay the reason being shown.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Reads the credential files again, at each attempt to connect.
pub fn access(source: &Source) -> Result<Access, RelayError> {
    Access::read(source).map_err(|error| RelayError::new(ErrorKind::CredentialsUnreadable, error.to_string()))
}

/// Opens the replication connection, to the first usable host in `access`.
pub async fn connect_replication(source: &Source, access: Access) -> Result<Client, RelayError> {
    let options = pg_replication::ConnectOptions {
        hosts: access.hosts,
        target: Target::ReadWrite,
        tls: access.tls,
        user: source.user.clone(),
        password: access.password.map(|password| Password::new(password.reveal())),
        database: source.database.clone(),
        application_name: STREAM.into(),
        connect_timeout: CONNECT_WITHIN,
    };
    Client::connect(&options).await.map_err(|error| {
        let reason = reason_of_connection(&error);
        let mut what = refused(&source.host, source, reason, &chain(&error));
        if reason == ErrorKind::PermissionDenied {
            let ways = grants::replication_grants(&source.user);
            what.push_str(&format!("; if the role lacks REPLICATION: {ways}"));
        }
        RelayError::new(reason, what)
    })
}

/// Opens an SQL connection to the first writable host; `purpose` is shown in `pg_stat_activity`.
pub async fn connect(source: &Source, purpose: &str) -> Result<PgConnection, RelayError> {
    connect_with(source, &access(source)?, purpose).await
}

/// As [`connect`], with the content of the credential files in `access`.
pub async fn connect_with(
    source: &Source,
    access: &Access,
    purpose: &str,
) -> Result<PgConnection, RelayError> {
    Ok(first(source, access, purpose, None).await?.0)
}

/// Opens an SQL connection to `preferred`, or else to the first writable host. Returns its address, too.
pub async fn connect_first(
    source: &Source,
    purpose: &str,
    preferred: Option<&Host>,
) -> Result<(PgConnection, Host), RelayError> {
    first(source, &access(source)?, purpose, preferred).await
}

async fn first(
    source: &Source,
    access: &Access,
    purpose: &str,
    preferred: Option<&Host>,
) -> Result<(PgConnection, Host), RelayError> {
    let mut errors = Vec::new();
    for host in preferred.into_iter().chain(&access.hosts) {
        let addresses = match host.resolve(CONNECT_WITHIN).await {
            Ok(addresses) => addresses,
            Err(error) => {
                let reason = reason_of_connection(&error);
                errors.push(RelayError::new(reason, refused(host, source, reason, &chain(&error))));
                continue;
            }
        };
        let known = |address: &Host| preferred == Some(address) && preferred != Some(host);
        for address in addresses.into_iter().filter(|address| !known(address)) {
            match connect_to(source, access, &address, purpose).await {
                Ok(sql) => return Ok((sql, address)),
                Err(error) => errors.push(error),
            }
        }
    }
    let reason = reason_of_all(errors.iter().map(|error| error.kind));
    let all: Vec<String> = errors.into_iter().map(|error| error.detail).collect();
    Err(RelayError::new(reason, all.join(" | ")))
}

/// Opens an SQL connection to one host, which must be writable.
pub async fn connect_to(
    source: &Source,
    access: &Access,
    host: &Host,
    purpose: &str,
) -> Result<PgConnection, RelayError> {
    let connecting = async {
        let mut sql = log_in(source, access, host, purpose).await?;
        check_writable(&mut sql).await?;
        Ok(sql)
    };
    within_limit(source, host, connecting).await
}

/// As [`connect_to`], but the host may be a standby.
pub async fn connect_to_any(
    source: &Source,
    access: &Access,
    host: &Host,
    purpose: &str,
) -> Result<PgConnection, RelayError> {
    let connecting = async { Ok(log_in(source, access, host, purpose).await?) };
    within_limit(source, host, connecting).await
}

/// Limits the time of each statement, and has a query fail instead if a row security policy would hide rows from it.
pub async fn require_all_rows(sql: &mut PgConnection, statement_timeout: &str) -> Result<(), sqlx::Error> {
    let settings = format!("SET statement_timeout = '{statement_timeout}'; SET row_security = off");
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(sql).await?;
    Ok(())
}

async fn within_limit(
    source: &Source,
    host: &Host,
    connecting: impl Future<Output = Result<PgConnection, RelayError>>,
) -> Result<PgConnection, RelayError> {
    let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
    let late =
        |_| RelayError::new(ErrorKind::DatabaseUnreachable, format!("no answer within {CONNECT_WITHIN:?}"));
    connected
        .map_err(late)
        .flatten()
        .map_err(|error| RelayError::new(error.kind, refused(host, source, error.kind, &error.detail)))
}

fn refused(host: impl std::fmt::Display, source: &Source, reason: ErrorKind, why: &str) -> String {
    let place = format!("{host}, database {}", source.database);
    match reason {
        ErrorKind::ConnectionPooler => {
            format!("a connection pooler, such as PgBouncer, answers at {place} instead of PostgreSQL: {why}")
        }
        _ => format!("cannot connect to PostgreSQL at {place}: {why}"),
    }
}

/// A pooler may reject settings in the startup message: then connect without them. They are set again in any case,
/// because a pooler may also drop them.
async fn log_in(
    source: &Source,
    access: &Access,
    host: &Host,
    purpose: &str,
) -> Result<PgConnection, sqlx::Error> {
    let plain = connect_options(source, access, purpose);
    let at_startup = settings::at_startup().map(|setting| (setting.name, setting.value));
    let open = |options| Box::pin(sql_over_tls::connect(options, host, &access.tls));
    let mut sql = match open(plain.clone().extra_float_digits(3).options(at_startup)).await {
        Err(error) if refuses_settings(&error) => open(plain).await?,
        opened => opened?,
    };
    let version = sql.server_version_num().unwrap_or_default() / 10_000;
    for statement in settings::statements(version) {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut sql).await?;
    }
    Ok(sql)
}

fn refuses_settings(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["08P01", "0A000", "42704"].contains(&code.as_ref()))
}

fn connect_options(source: &Source, access: &Access, purpose: &str) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass()
        .database(&source.database)
        .username(&source.user)
        .extra_float_digits(None)
        .application_name(&format!("outbox-relay {purpose}"));
    match &access.password {
        Some(password) => options.password(password.reveal()),
        None => options,
    }
}

async fn check_writable(sql: &mut PgConnection) -> Result<(), RelayError> {
    let row = sqlx::query(
        "SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
                (SELECT s.source FROM pg_settings s WHERE s.name = 'default_transaction_read_only') AS set_by",
    )
    .fetch_one(&mut *sql)
    .await?;
    let why = if row.try_get("standby")? {
        "it is in recovery".to_owned()
    } else if row.try_get("read_only")? {
        let set_by: String = row.try_get("set_by")?;
        format!("default_transaction_read_only is on (source: {set_by})")
    } else {
        return Ok(());
    };
    Err(RelayError::new(ErrorKind::NoWritableHost, format!("it is a standby, or set read-only: {why}")))
}

/// Fails if a session does not have its own server process. A pooler in transaction mode gives each transaction any
/// free process, so neither settings nor advisory locks nor prepared statements hold. It shows when the process ID is
/// queried twice, with a transaction of another session in between: the pooler returns another process, or the same one
/// to both sessions.
pub async fn check_not_shared(
    source: &Source,
    access: &Access,
    host: &Host,
    sql: &mut PgConnection,
) -> Result<(), RelayError> {
    let mut other = connect_to(source, access, host, "pooler check").await?;
    let first = process(sql).await?;
    sqlx::raw_sql("BEGIN").execute(&mut other).await?;
    let between = process(&mut other).await?;
    let again = process(sql).await?;
    sqlx::raw_sql("COMMIT").execute(&mut other).await?;
    if first == again && first != between {
        tracing::warn!(%host, "a connection pooler or proxy is between the relay and PostgreSQL; it does not share sessions");
        return Ok(());
    }
    let why = "statements of one session reach different server processes, as in transaction pooling";
    let what = refused(host, source, ErrorKind::ConnectionPooler, why);
    Err(RelayError::new(ErrorKind::ConnectionPooler, what))
}

/// The process ID of the server process for a connection.
pub async fn process(sql: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_backend_pid()").persistent(false).fetch_one(sql).await
}
