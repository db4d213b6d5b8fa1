//! A backlog for measurements: many rows, quickly, written by the server itself.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::LoadError;

/// What to write.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// Rows in all.
    pub rows: usize,
    /// Rows of a transaction, which is one multi-row insert; several sizes take turns.
    pub rows_per_transaction: Vec<usize>,
    /// Distinct keys; transaction `n` writes to key `n mod keys`.
    pub keys: usize,
    /// Bytes of filler in each payload.
    pub filler_bytes: usize,
    /// The outbox table, as SQL names it.
    pub table: String,
    /// `aggregatetype` of every row, or what it begins with if there are several.
    pub aggregatetype: String,
    /// How many values `aggregatetype` has; transactions take turns. More than one are called as [`Backlog::aggregatetypes`] says.
    pub types: usize,
}

impl Backlog {
    /// The values of `aggregatetype`.
    pub fn aggregatetypes(&self) -> Vec<String> {
        match self.types {
            0 | 1 => vec![self.aggregatetype.clone()],
            types => (0..types).map(|number| format!("{}-{number}", self.aggregatetype)).collect(),
        }
    }
}

impl Default for Backlog {
    fn default() -> Backlog {
        Backlog {
            rows: 500_000,
            rows_per_transaction: vec![1],
            keys: 10_000,
            filler_bytes: 200,
            table: "outbox".to_owned(),
            aggregatetype: "load".to_owned(),
            types: 1,
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
/// for the disk is left out, because how rows became durable is not what a drain measures. PostgreSQL compresses large values, so the filler
/// does not repeat itself.
fn sql(backlog: &Backlog) -> String {
    let Backlog { rows, keys, filler_bytes, table, .. } = backlog;
    let keys = (*keys).max(1);
    let sizes: Vec<String> =
        backlog.rows_per_transaction.iter().map(|size| (*size).max(1).to_string()).collect();
    let sizes = if sizes.is_empty() { "1".to_owned() } else { sizes.join(", ") };
    let prefix = backlog.aggregatetype.replace('\'', "''");
    let aggregatetype = match backlog.types {
        0 | 1 => format!("'{prefix}'"),
        types => format!("'{prefix}-' || turn % {types}"),
    };
    format!(
        "DO $$
         DECLARE
             filler  text := left((SELECT string_agg(md5(n::text), '') FROM generate_series(0, {filler_bytes} / 32) n), {filler_bytes});
             sizes   integer[] := ARRAY[{sizes}];
             size    bigint;
             written bigint := 0;
             turn    bigint := 0;
         BEGIN
             WHILE written < {rows} LOOP
                 size := least(sizes[1 + turn % cardinality(sizes)], {rows} - written);
                 INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload)
                 SELECT gen_random_uuid(), {aggregatetype}, 'key-' || turn % {keys}, 'load.written.v1',
                        jsonb_build_object('key', 'key-' || turn % {keys}, 'key_seq', written + n, 'filler', filler)
                 FROM generate_series(1, size) n;
                 COMMIT;
                 written := written + size;
                 turn := turn + 1;
             END LOOP;
         END
         $$"
    )
}
