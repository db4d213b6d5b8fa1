//! What the server waits for while it creates a slot: every transaction that was open when the creation began, in any
//! database, prepared transactions included.

use std::fmt;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::slot_holder::since;

/// This many are named; the others are counted.
const NAMED: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    who: Owner,
    database: String,
    role: String,
    since: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Session { pid: i32, application: String },
    Prepared { gid: String },
}

/// The transactions that the walsender with this pid waits for while it creates a slot, first the one it waits for now.
/// Every role can see locks, and a session's application, database and role; but not since when it is open.
pub async fn blocking(sql: &mut PgConnection, walsender: i32) -> Result<Vec<OpenTransaction>, sqlx::Error> {
    let rows = sqlx::query(
        "WITH creation AS (
             SELECT a.query_start, w.transactionid AS awaited FROM pg_stat_activity a
             JOIN pg_locks w ON w.pid = a.pid AND w.locktype = 'transactionid' AND NOT w.granted
             WHERE a.pid = $1),
         open AS (
             SELECT DISTINCT ON (l.virtualtransaction) a.pid, a.application_name AS application, p.gid,
                    coalesce(a.datname, p.database)::text AS database, coalesce(a.usename, p.owner)::text AS role,
                    coalesce(a.xact_start, p.prepared) AS since, l.transactionid = awaited AS is_awaited
             FROM creation CROSS JOIN pg_locks l
             LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid
             WHERE l.locktype = 'transactionid' AND l.granted
               AND (l.transactionid = awaited OR coalesce(a.xact_start, p.prepared) < creation.query_start)
             ORDER BY l.virtualtransaction, is_awaited DESC)
         SELECT * FROM open ORDER BY is_awaited DESC, since",
    )
    .bind(walsender)
    .fetch_all(&mut *sql)
    .await?;
    rows.iter().filter_map(|row| open(row).transpose()).collect()
}

/// `None` for a transaction that has ended during the query.
fn open(row: &PgRow) -> Result<Option<OpenTransaction>, sqlx::Error> {
    let text = |name| row.try_get::<Option<String>, _>(name).map(Option::unwrap_or_default);
    let who = match (row.try_get("pid")?, row.try_get("gid")?) {
        (Some(pid), _) => Owner::Session { pid, application: text("application")? },
        (None, Some(gid)) => Owner::Prepared { gid },
        (None, None) => return Ok(None),
    };
    Ok(Some(OpenTransaction {
        who,
        database: text("database")?,
        role: text("role")?,
        since: row.try_get("since")?,
    }))
}

/// Whether both are the same transactions, whatever details are known.
pub fn are_same(some: &[OpenTransaction], others: &[OpenTransaction]) -> bool {
    some.iter().map(|open| &open.who).eq(others.iter().map(|open| &open.who))
}

/// The message for a creation that waits for `open`; `asking` is the role that ran the query.
pub fn sentence(slot: &str, open: &[OpenTransaction], asking: &str, now: DateTime<Utc>) -> String {
    let named: Vec<String> = open.iter().take(NAMED).map(|open| open.describe(asking, now)).collect();
    let more = match open.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!(
        "slot {slot} is being created, and PostgreSQL waits for transactions that were open before: {}{more}",
        named.join(", ")
    )
}

impl OpenTransaction {
    fn describe(&self, asking: &str, now: DateTime<Utc>) -> String {
        let age = self.since.map(|since| now.signed_duration_since(since).num_seconds().max(0));
        let age = age.map(|age| format!("open for {age} s, ")).unwrap_or_default();
        let since = since(self.since, asking);
        format!("{} (database {}, role {}, {age}{since})", self.who, self.database, self.role)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Session { pid, application } if application.is_empty() => write!(f, "pid {pid}"),
            Owner::Session { pid, application } => write!(f, "pid {pid}, application {application}"),
            Owner::Prepared { gid } => write!(f, "prepared transaction '{gid}'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(pid: i32, since: Option<DateTime<Utc>>) -> OpenTransaction {
        let who = Owner::Session { pid, application: "psql".into() };
        OpenTransaction { who, database: "other".into(), role: "bob".into(), since }
    }

    #[test]
    fn a_few_are_named_with_their_age_and_the_rest_counted() {
        let at = DateTime::UNIX_EPOCH;
        let mut all: Vec<OpenTransaction> = (1..=4).map(|pid| session(pid, Some(at))).collect();
        all.push(OpenTransaction { who: Owner::Prepared { gid: "g".into() }, ..session(5, None) });
        let text = sentence("s", &all, "r", at + chrono::TimeDelta::seconds(75));
        assert!(text.contains(
            "before: pid 1, application psql (database other, role bob, open for 75 s, since 1970-01-01T00:00:00Z), pid 2"
        ));
        assert!(text.ends_with(", and 2 more"), "{text}");
        let text = sentence("s", &all[4..], "r", at);
        assert!(
            text.contains("prepared transaction 'g' (database other, role bob, GRANT pg_read_all_stats"),
            "{text}"
        );
    }

    #[test]
    fn the_same_transaction_at_another_age_is_the_same() {
        assert!(are_same(&[session(1, None)], &[session(1, Some(DateTime::UNIX_EPOCH))]));
        assert!(!are_same(&[session(1, None)], &[session(2, None)]));
    }
}
