//! Reads the columns that a dead letter omits from the table, while the row still exists.

use super::reader::DeadLetter;
use crate::config::Config;
use crate::event::owned_row::OwnedRow;
use crate::postgres::connection;
use crate::postgres::whole_row::{RowKey, WholeRowError, WholeRows};

/// The omitted columns cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("some of its columns are only in the table, and it has no id to find its row by")]
    NoId,
    #[error("some of its columns were only in the table, and its row no longer exists")]
    Gone,
    #[error("some of its columns are only in the table: {0}")]
    Row(#[from] WholeRowError),
}

impl DeadLetter {
    /// The row of the dead letter, with all its columns.
    pub async fn restored(self, config: &Config) -> Result<OwnedRow, RestoreError> {
        if self.omitted.is_none() {
            return Ok(self.row);
        }
        let Some(id) = self.row.id else { return Err(RestoreError::NoId) };
        let row = row(config, &id).await?.ok_or(RestoreError::Gone)?;
        // The time of the dead letter is that of its commit where the row has none.
        Ok(OwnedRow { time: self.row.time, ..row })
    }
}

async fn row(config: &Config, id: &str) -> Result<Option<OwnedRow>, WholeRowError> {
    let mut sql = connection::connect(&config.source, "dead letters").await?;
    WholeRows::of(&mut sql, config).await?.read(&mut sql, RowKey::Id(id)).await
}
