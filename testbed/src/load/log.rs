//! What was written, and what became of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::TryStreamExt;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::LoadError;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// COMMIT returned: it must arrive.
    Committed,
    /// The reply to COMMIT was lost: it may arrive or not.
    Indeterminate,
    /// Its transaction or savepoint was rolled back: it must never arrive.
    RolledBack,
}

/// One outbox row that a writer inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The event's id.
    pub id: Uuid,
    /// The topic it belongs in.
    pub topic: Arc<str>,
    /// The aggregate's id, which is the record's key.
    pub key: Arc<str>,
    /// Its place among the events of its key and topic, in commit order. Gaps are allowed.
    pub key_seq: i64,
    /// The event's type (header `ce_type`).
    pub event_type: Arc<str>,
    /// [`digest`] of the payload's exact text as the database gives it; `None` when the payload is NULL.
    pub payload: Option<u64>,
    /// The row's own headers.
    pub headers: BTreeMap<String, String>,
    /// What became of it.
    pub fate: Fate,
}

/// Everything that was written; each id once.
#[derive(Clone, Debug, Default)]
pub struct Log {
    rows: Vec<Written>,
}

impl Log {
    /// Adds one row.
    pub fn push(&mut self, row: Written) {
        self.rows.push(row);
    }

    /// Adds all rows of another log.
    pub fn append(&mut self, other: Log) {
        self.rows.extend(other.rows);
    }

    /// The rows, in no particular order.
    pub fn rows(&self) -> &[Written] {
        &self.rows
    }

    /// How many rows met that fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.rows.iter().filter(|row| row.fate == fate).count()
    }

    /// Decides the indeterminate rows by looking whether the table has them. Right only once the server has
    /// recovered and the writers' old sessions are gone, as they are after a crash of the server.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn settle(&mut self, url: &str, table: &str) -> Result<(), LoadError> {
        let doing = "settling indeterminate rows";
        let mut connection = PgConnection::connect(url).await.map_err(LoadError::postgres(doing))?;
        let open: Vec<Uuid> =
            self.rows.iter().filter(|row| row.fate == Fate::Indeterminate).map(|row| row.id).collect();
        let sql = format!("SELECT id FROM {table} WHERE id = ANY($1)");
        let present: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&open)
            .fetch_all(&mut connection)
            .await
            .map_err(LoadError::postgres(doing))?;
        let present: std::collections::HashSet<Uuid> = present.into_iter().collect();
        for row in self.rows.iter_mut().filter(|row| row.fate == Fate::Indeterminate) {
            row.fate = if present.contains(&row.id) { Fate::Committed } else { Fate::RolledBack };
        }
        Ok(())
    }

    /// The log of a table whatever wrote it: every visible row counts as committed, and `seq` gives the order of a
    /// key, which is commit order when writers of one key are serialised. `topic` says where an aggregate type goes.
    ///
    /// # Errors
    /// The table cannot be read or has no such columns.
    pub async fn of_table(url: &str, table: &str, topic: impl Fn(&str) -> String) -> Result<Log, LoadError> {
        let doing = "reading the outbox table";
        let mut connection = PgConnection::connect(url).await.map_err(LoadError::postgres(doing))?;
        let sql = format!(
            "SELECT id, aggregatetype, aggregateid, type, payload::text, headers, seq FROM {table} ORDER BY seq"
        );
        let mut names = Names::default();
        let mut log = Log::default();
        let mut rows = sqlx::query_as::<_, Row>(AssertSqlSafe(sql)).fetch(&mut connection);
        while let Some(row) = rows.try_next().await.map_err(LoadError::postgres(doing))? {
            log.push(Written {
                id: row.id,
                topic: names.shared(topic(&row.aggregatetype)),
                key: names.shared(row.aggregateid),
                key_seq: row.seq,
                event_type: names.shared(row.r#type),
                payload: row.payload.map(|payload| digest(payload.as_bytes())),
                headers: row.headers.map(|headers| headers.0).unwrap_or_default(),
                fate: Fate::Committed,
            });
        }
        Ok(log)
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    aggregatetype: String,
    aggregateid: String,
    r#type: String,
    payload: Option<String>,
    headers: Option<Json<BTreeMap<String, String>>>,
    seq: i64,
}

/// Texts that repeat are kept once: a log of a million rows has few topics and types.
#[derive(Default)]
struct Names(HashMap<String, Arc<str>>);

impl Names {
    fn shared(&mut self, text: String) -> Arc<str> {
        self.0.entry(text).or_insert_with_key(|text| Arc::from(text.as_str())).clone()
    }
}

/// FNV-1a, 64 bits: tells any two payloads of a test apart, in eight bytes instead of the payload.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::digest;

    /// Vectors from the authors' own test program.
    #[test]
    fn digest_is_fnv_1a() {
        assert_eq!(digest(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(digest(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
