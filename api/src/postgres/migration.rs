//! Brings the schema up to date.

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::privileges::grant;

/// The migrations of the repository, built into the program.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A migration failed; those before it are applied.
    #[error(transparent)]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// What follows the migrations failed.
    #[error(transparent)]
    After(#[from] sqlx::Error),
}

/// Applies the migrations that are missing, creates the partitions of the log that are due, and grants the role
/// of the service what it needs.
pub async fn migrate(sql: &mut PgConnection, grant_to: Option<&str>) -> Result<(), MigrationError> {
    MIGRATIONS.run(&mut *sql).await?;
    sqlx::query("SELECT command_log_maintain(NULL)").execute(&mut *sql).await?;
    if let Some(role) = grant_to {
        grant(sql, role).await?;
    }
    Ok(())
}
