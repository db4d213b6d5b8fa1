//! Who holds the slot: a live relay, the walsender that an ended relay left behind, or another client.
//!
//! A relay's walsender alone does not tell: PostgreSQL keeps one whose client is gone until a timeout, or for hours. So
//! each session marks its walsender over its SQL connection, with an advisory lock on the walsender's pid
//! ([`announce_companion`]). PostgreSQL releases the lock when that connection ends, and shows whether the connection was used
//! lately: a relay sends a query every second, and closes its stream when it gets no answer for a minute. A relay's
//! walsender without such a session is an orphan.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::Row;
use sqlx::postgres::PgConnection;

/// The application name of the relays' streams.
pub const STREAM: &str = "outbox-relay";

/// The first half of the advisory locks' keys, "outb" in ASCII; the second half is a pid.
const WALSENDERS: i32 = 0x6f75_7462;

/// Since when a session has been silent; NULL for one that sends a query every second, or is running a long one.
const SILENT: &str = "CASE WHEN a.state LIKE 'idle%' AND clock_timestamp() - a.state_change > interval '10 s' THEN a.state_change END";

/// How long the relay of a silent session, which may be paused or cut off, may still come back: longer than it waits
/// for any answer before it closes its stream, and as long as the server waits for a reply on the stream.
const UNTIL: &str = "a.state_change + make_interval(secs =>
    greatest(90, (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout')))";

/// How long the server may take to terminate one of its processes.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A server process; `started` distinguishes it from a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// As in `pg_stat_activity`.
    pub pid: i32,
    /// Hidden for processes of another role.
    pub started: Option<DateTime<Utc>>,
}

/// The two server processes of one of this relay's own sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The walsender of the stream.
    pub walsender: Backend,
    /// The process for the SQL connection.
    pub session: Backend,
}

/// The process that holds a slot.
#[derive(Clone, Debug)]
pub struct Holder {
    pub backend: Backend,
    application: String,
    role: String,
    client: Option<String>,
    /// Whether the slot is still being created: nothing was sent from it yet.
    pub creating: bool,
    session: Option<Session>,
}

/// The SQL connection of a relay.
#[derive(Clone, Debug)]
pub struct Session {
    pub backend: Backend,
    /// Set when the connection has been silent.
    pub silence: Option<Silence>,
}

/// A session that sends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    pub since: DateTime<Utc>,
    /// When its relay can no longer come back.
    pub until: DateTime<Utc>,
    /// Time until then, by the server's clock.
    pub left: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another relay that is alive.
    Relay,
    /// The walsender of a relay's session that has ended.
    Orphan(Orphan),
    /// Another client.
    Foreign,
}

/// Why a walsender counts as an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// It belongs to an earlier session of this process.
    Own,
    /// Its SQL session has ended.
    Alone,
    /// Its SQL session is silent.
    Silent(Silence),
}

impl Holder {
    /// Its kind, for a relay whose last session had `own`.
    pub fn kind(&self, own: Option<&Own>) -> Kind {
        if self.application != STREAM {
            return Kind::Foreign;
        }
        if own.is_some_and(|own| own.walsender == self.backend) {
            return Kind::Orphan(Orphan::Own);
        }
        match &self.session {
            None => Kind::Orphan(Orphan::Alone),
            Some(session) => {
                session.silence.map_or(Kind::Relay, |silence| Kind::Orphan(Orphan::Silent(silence)))
            }
        }
    }

    /// The holder and its SQL session.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        std::iter::once(&self.backend).chain(self.session.as_ref().map(|session| &session.backend))
    }

    /// A description for messages; `asking` is the role that ran the query.
    pub fn describe(&self, asking: &str) -> String {
        let Holder { backend, application, role, client, .. } = self;
        let application = if application.is_empty() { "none" } else { application };
        let client = client.as_ref().map(|client| format!(", client {client}")).unwrap_or_default();
        let since = since(backend.started, asking);
        format!("pid {} (application {application}, role {role}{client}, {since})", backend.pid)
    }
}

/// A time for messages.
pub fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Since when it lasts; the server hides that from roles without the privilege.
pub fn since(since: Option<DateTime<Utc>>, asking: &str) -> String {
    match since {
        Some(since) => format!("since {}", format_time(since)),
        None => format!("GRANT pg_read_all_stats TO {} shows since when", crate::config::quote(asking)),
    }
}

/// The process that holds `slot`.
pub async fn of(sql: &mut PgConnection, slot: &str) -> Result<Option<Holder>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT a.pid, a.backend_start, a.application_name AS application, coalesce(a.usename::text, '') AS role,
                host(a.client_addr) AS client, s.confirmed_flush_lsn IS NULL AS creating
         FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
         WHERE s.slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(&mut *sql)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let backend = backend(&row)?;
    let session = companion(sql, backend.pid).await?;
    Ok(Some(Holder {
        backend,
        application: row.try_get::<Option<String>, _>("application")?.unwrap_or_default(),
        role: row.try_get("role")?,
        client: row.try_get("client")?,
        creating: row.try_get("creating")?,
        session,
    }))
}

fn backend(row: &sqlx::postgres::PgRow) -> Result<Backend, sqlx::Error> {
    Ok(Backend { pid: row.try_get("pid")?, started: row.try_get("backend_start")? })
}

/// The session that has marked this walsender as its own.
async fn companion(sql: &mut PgConnection, walsender: i32) -> Result<Option<Session>, sqlx::Error> {
    let key = (i64::from(WALSENDERS) << 32) | i64::from(walsender);
    locker(sql, "2", "$1::bigint", |query| query.bind(key)).await
}

/// The session that holds the advisory lock on `hashtextextended(name, 0)`.
pub async fn of_lock(sql: &mut PgConnection, name: &str) -> Result<Option<Session>, sqlx::Error> {
    locker(sql, "1", "hashtextextended($1, 0)", |query| query.bind(name.to_owned())).await
}

type Query = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

async fn locker(
    sql: &mut PgConnection,
    kind: &str,
    key: &str,
    bind: impl FnOnce(Query) -> Query,
) -> Result<Option<Session>, sqlx::Error> {
    let select = format!(
        "SELECT a.pid, a.backend_start, {SILENT} AS silent, {UNTIL} AS until, extract(epoch FROM {UNTIL} - clock_timestamp())::float8 AS remaining
         FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = {kind}
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32 | l.objid::bigint) = {key}
         LIMIT 1"
    );
    let row = bind(sqlx::query(sqlx::AssertSqlSafe(select))).fetch_optional(&mut *sql).await?;
    row.map(|row| {
        let since: Option<DateTime<Utc>> = row.try_get("silent")?;
        let (until, left) = (row.try_get("until")?, row.try_get::<Option<f64>, _>("remaining")?);
        let left = left.and_then(|left| Duration::try_from_secs_f64(left).ok()).unwrap_or_default();
        let silence = since.zip(until).map(|(since, until)| Silence { since, until, left });
        Ok(Session { backend: backend(&row)?, silence })
    })
    .transpose()
}

/// Marks the walsender with this pid as belonging to `sql`, while `sql` is connected. Called before the walsender
/// acquires or creates a slot.
pub async fn announce_companion(sql: &mut PgConnection, walsender: i32) -> Result<Own, sqlx::Error> {
    sqlx::query("SELECT pg_try_advisory_lock_shared($1, $2)")
        .bind(WALSENDERS)
        .bind(walsender)
        .execute(&mut *sql)
        .await?;
    let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *sql).await?;
    let rows = sqlx::query("SELECT pid, backend_start FROM pg_stat_activity WHERE pid IN ($1, $2)")
        .bind(walsender)
        .bind(session)
        .fetch_all(&mut *sql)
        .await?;
    let backends: Vec<Backend> = rows.iter().map(backend).collect::<Result<_, _>>()?;
    let find = |pid| {
        let found = backends.iter().find(|backend| backend.pid == pid).cloned();
        found.unwrap_or(Backend { pid, started: None })
    };
    Ok(Own { walsender: find(walsender), session: find(session) })
}

/// Terminates a server process and waits until it is gone. Returns whether it is; an error with SQLSTATE 42501 means
/// that the role lacks the privilege.
pub async fn end(sql: &mut PgConnection, backend: &Backend) -> Result<bool, sqlx::Error> {
    let ended: Option<bool> = sqlx::query_scalar(
        "SELECT pg_terminate_backend(pid, $3) FROM pg_stat_activity
         WHERE pid = $1 AND backend_start IS NOT DISTINCT FROM $2",
    )
    .bind(backend.pid)
    .bind(backend.started)
    .bind(i64::try_from(END_WITHIN.as_millis()).unwrap_or(i64::MAX))
    .fetch_optional(sql)
    .await?;
    Ok(ended.unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Holder {
        /// A relay's walsender without a session.
        pub fn for_tests(pid: i32, creating: bool) -> Holder {
            let backend = Backend { pid, started: Some(DateTime::UNIX_EPOCH) };
            let (application, role) = (STREAM.into(), "relay".into());
            Holder { backend, application, role, client: None, creating, session: None }
        }
    }

    const LIVES: Option<Option<Silence>> = Some(None);
    const SECOND: Duration = Duration::from_secs(1);

    fn holder(application: &str, session: Option<Option<Silence>>) -> Holder {
        let backend = Backend { pid: 8, started: Some(DateTime::UNIX_EPOCH) };
        let session = session.map(|silence| Session { backend, silence });
        Holder { application: application.into(), session, ..Holder::for_tests(7, false) }
    }

    #[test]
    fn only_a_walsender_with_a_live_session_is_a_live_relay() {
        let kind = |application, session| holder(application, session).kind(None);
        assert_eq!(kind(STREAM, LIVES), Kind::Relay);
        let at = DateTime::UNIX_EPOCH;
        let silence = Silence { since: at, until: at, left: SECOND };
        assert_eq!(kind(STREAM, Some(Some(silence))), Kind::Orphan(Orphan::Silent(silence)));
        assert_eq!(kind(STREAM, None), Kind::Orphan(Orphan::Alone));
        assert_eq!(kind("pg_recvlogical", None), Kind::Foreign);
        assert_eq!(kind("outbox-relay session", None), Kind::Foreign);
    }

    #[test]
    fn the_processs_own_walsender_is_an_orphan_and_a_later_one_with_its_pid_is_not() {
        let held = holder(STREAM, LIVES);
        let own = |started| Own {
            walsender: Backend { pid: 7, started },
            session: Backend { pid: 8, started: Some(DateTime::UNIX_EPOCH) },
        };
        assert_eq!(held.kind(Some(&own(Some(DateTime::UNIX_EPOCH)))), Kind::Orphan(Orphan::Own));
        assert_eq!(held.kind(Some(&own(Some(DateTime::UNIX_EPOCH + SECOND)))), Kind::Relay);
    }

    #[test]
    fn a_hidden_time_is_replaced_by_the_grant_that_shows_it() {
        let mut held = holder("psql", None);
        assert_eq!(held.describe("r"), "pid 7 (application psql, role relay, since 1970-01-01T00:00:00Z)");
        held.backend.started = None;
        assert!(held.describe("r").contains("GRANT pg_read_all_stats TO \"r\" shows since when"));
    }
}
