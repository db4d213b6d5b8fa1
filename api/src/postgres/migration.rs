//! Brings the schema up to date.

use std::sync::LazyLock;

use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use super::privileges::grant;

/// The outbox's migrations and the basket's, built into the program. They are one sequence of versions, because the database notes them
/// in one table.
pub static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    static OUTBOX: Migrator = sqlx::migrate!("../migrations/outbox");
    static BASKET: Migrator = sqlx::migrate!("../migrations/basket");
    Migrator::with_migrations(OUTBOX.iter().chain(BASKET.iter()).cloned().collect())
});

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_built_in_and_has_a_version_that_no_other_has() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        let files = folders.map(|folder| fs::read_dir(folder).unwrap().count()).sum::<usize>();
        let versions: BTreeSet<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!((MIGRATIONS.iter().count(), versions.len()), (files, files));
    }
}
