//! A backlog for measurements: many rows, quickly, written by the server itself.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::LoadError;

/// What to write.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// Rows in all.
    pub rows: usize,
    /// Rows per transaction, each one multi-row insert.
    pub rows_per_transaction: usize,
    /// Distinct keys; transaction `n` writes to key `n mod keys`.
    pub keys: usize,
    /// Bytes of filler in each payload.
    pub filler_bytes: usize,
    /// The outbox table, as SQL names it.
    pub table: String,
    /// `aggregatetype` of every row.
    pub aggregatetype: String,
}

impl Default for Backlog {
    fn default() -> Backlog {
        Backlog {
            rows: 500_000,
            rows_per_transaction: 1,
            keys: 10_000,
            filler_bytes: 200,
            table: "outbox".to_owned(),
            aggregatetype: "load".to_owned(),
        }
    }
}

/// Writes the backlog over one connection and returns when all of it is committed. What was written is read with
/// [`Log::of_table`](super::Log::of_table).
///
/// # Errors
/// The database cannot be reached or refuses a row.
pub async fn write_backlog(url: &str, backlog: &Backlog) -> Result<(), LoadError> {
    let doing = "writing a backlog";
    let mut connection = PgConnection::connect(url).await.map_err(LoadError::postgres(doing))?;
    // One statement at a time: several in one message are one transaction, in which a block cannot commit.
    for statement in ["SET synchronous_commit = off".to_owned(), sql(backlog)] {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .map_err(LoadError::postgres(doing))?;
    }
    Ok(())
}

/// A block that commits each transaction itself: no round trip per row, and no client that is the bottleneck. Waiting
/// for the disk is left out, because how rows became durable is not what a drain measures.
fn sql(backlog: &Backlog) -> String {
    let Backlog { rows, rows_per_transaction, keys, filler_bytes, table, aggregatetype } = backlog;
    let per_transaction = (*rows_per_transaction).max(1);
    let keys = (*keys).max(1);
    let aggregatetype = aggregatetype.replace('\'', "''");
    format!(
        "DO $$
         DECLARE
             filler  text := repeat('x', {filler_bytes});
             written bigint := 0;
             turn    bigint := 0;
         BEGIN
             WHILE written < {rows} LOOP
                 INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload)
                 SELECT gen_random_uuid(), '{aggregatetype}', 'key-' || turn % {keys}, 'load.written.v1',
                        jsonb_build_object('key', 'key-' || turn % {keys}, 'key_seq', written + n, 'filler', filler)
                 FROM generate_series(1, least({per_transaction}, {rows} - written)) n;
                 COMMIT;
                 written := written + {per_transaction};
                 turn := turn + 1;
             END LOOP;
         END
         $$"
    )
}
