//! The requirements on server and tables before a relay can start.

use sqlx::postgres::PgConnection;

use crate::config::Source;
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::ClusterTimeline;

/// Oldest supported server: PostgreSQL 15 sends no empty transactions and publishes partitioned tables by their root
/// reliably.
const OLDEST_SERVER: i32 = 150_000;

/// Fails if an SQL connection and the stream reach different servers: a name may have the addresses of several, and a
/// checkpoint written on one says nothing about another.
pub async fn check_same_server(sql: &mut PgConnection, history: ClusterTimeline) -> Result<(), RelayError> {
    let (system, file): (String, String) = sqlx::query_as(
        "SELECT system_identifier::text, pg_walfile_name(pg_current_wal_lsn()) FROM pg_control_system()",
    )
    .fetch_one(sql)
    .await?;
    // The name of a WAL file begins with its timeline, in eight hexadecimal digits.
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    if system == history.system_identifier.to_string() && timeline == Some(history.timeline) {
        return Ok(());
    }
    let what = format!(
        "the replication connection leads to system {} on timeline {}, the SQL connection to {system} with WAL file {file}",
        history.system_identifier, history.timeline
    );
    Err(RelayError::new(ErrorKind::DifferentServers, what))
}

/// Checks everything that must exist before anything is created: server version, `wal_level`, the tables.
pub async fn check_preconditions(sql: &mut PgConnection, source: &Source) -> Result<(), RelayError> {
    let (version, wal_level, has_table, has_checkpoint): (i32, String, bool, bool) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
                to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL",
    )
    .bind(source.table.quoted())
    .bind(source.table.sibling("outbox_checkpoint"))
    .fetch_one(&mut *sql)
    .await?;
    if version < OLDEST_SERVER {
        return Err(RelayError::new(
            ErrorKind::ServerTooOld,
            format!("the server has version {}", version / 10_000),
        ));
    }
    if wal_level != "logical" {
        return Err(RelayError::new(ErrorKind::WalLevelTooLow, format!("wal_level is '{wal_level}'")));
    }
    if !has_table {
        let what = format!("table {} does not exist in database {}", source.table, source.database);
        return Err(RelayError::new(ErrorKind::TableMissing, what));
    }
    if !has_checkpoint {
        let what = format!("table {}.outbox_checkpoint does not exist", source.table.schema);
        return Err(RelayError::new(ErrorKind::CheckpointTableMissing, what));
    }
    Ok(())
}
