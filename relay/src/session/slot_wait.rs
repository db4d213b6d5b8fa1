//! What to do about a slot that another connection holds.
//!
//! | holder of the slot | the relay |
//! |---|---|
//! | another live relay | stands by |
//! | a walsender of an earlier session of this process | terminates it |
//! | a walsender that creates the slot, of a relay whose session is gone | terminates it: nothing was sent from that slot |
//! | a walsender that streams, of a relay whose session is gone | terminates it after [`ORPHAN_GRACE`] |
//! | a walsender of a relay whose session is silent | terminates it once that relay must have given up its stream |
//! | another client | leaves it alone, and reports who it is |
//!
//! A live relay is never terminated: it runs a query over its session every second. A relay that loses its session, or
//! resumes after a pause, gives up its stream within the times waited here.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use crate::config::Config;
use crate::error::{ErrorKind, RelayError, reason_of_sqlstate};
use crate::postgres::connection;
use crate::postgres::slot_holder::{self, Backend, Holder, Kind, Orphan, Own, Silence, format_time};

/// A stream without its session counts as orphaned after this time. A live relay notices a closed session within a
/// second and an unreachable one within six, and then gives up the stream.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Time allowed for cancelling a slot creation when the relay stops.
const END_CREATION_WITHIN: Duration = Duration::from_secs(8);

/// What this process remembers about the holders of the slot.
#[derive(Debug, Default)]
pub struct SlotMemory {
    /// The server processes of the last session that acquired the slot or began to create it.
    own: Option<Own>,
    /// That session began to create the slot and did not complete.
    creating: bool,
    /// A stream without a session, and when this was first seen.
    orphan_since: Option<(Backend, Instant)>,
}

impl SlotMemory {
    /// A session acquires the slot. So no other server process of this relay can hold it now.
    pub fn on_taken(&mut self, own: Own) {
        *self = SlotMemory { own: Some(own), ..SlotMemory::default() };
    }

    /// A session begins to create the slot, which no other server process of this relay can hold either.
    pub fn on_creation_begun(&mut self, own: Own) {
        *self = SlotMemory { own: Some(own), creating: true, orphan_since: None };
    }

    /// Cancels a slot creation that did not complete, when no other session follows: while PostgreSQL waits for
    /// transactions it does not notice that the client is gone, and would keep the unfinished slot.
    pub async fn end_creation(&mut self, config: &Config) {
        let Some(own) = self.own.take().filter(|_| self.creating) else { return };
        let ending = async {
            let mut sql = connection::connect(&config.source, "cancel slot creation").await?;
            Ok::<bool, RelayError>(slot_holder::end(&mut sql, &own.walsender).await?)
        };
        let slot = &config.source.slot.name;
        let why = match timeout(END_CREATION_WITHIN, ending).await {
            Ok(Ok(true)) => return tracing::info!(%slot, "the creation of the slot was cancelled"),
            Ok(Ok(false)) => "the walsender is still running".to_owned(),
            Ok(Err(error)) => error.detail,
            Err(_) => format!("no response within {END_CREATION_WITHIN:?}"),
        };
        let pid = own.walsender.pid;
        tracing::warn!(
            %slot, pid, why,
            "the slot creation could not be cancelled and may still complete; the next start of the relay terminates it"
        );
    }

    /// How much longer to wait before `holder` may be terminated.
    fn wait_left(&mut self, holder: &Holder, orphan: Orphan, now: Instant) -> Duration {
        match orphan {
            Orphan::Own => return Duration::ZERO,
            Orphan::Alone if holder.creating => return Duration::ZERO,
            Orphan::Silent(silence) => return silence.left,
            Orphan::Alone => {}
        }
        let since = match &self.orphan_since {
            Some((backend, since)) if *backend == holder.backend => *since,
            _ => now,
        };
        self.orphan_since = Some((holder.backend.clone(), since));
        ORPHAN_GRACE.saturating_sub(now.saturating_duration_since(since))
    }
}

/// Returns once the slot is free, after terminating an orphaned holder. Otherwise the error says what holds it.
pub async fn until_free(
    sql: &mut PgConnection,
    config: &Config,
    memory: &mut SlotMemory,
) -> Result<(), RelayError> {
    let slot = &config.source.slot.name;
    while let Some(holder) = slot_holder::of(sql, slot).await? {
        let orphan = match holder.kind(memory.own.as_ref()) {
            Kind::Orphan(orphan) => orphan,
            Kind::Relay | Kind::Foreign => return Err(slot_held(config, &holder)),
        };
        let what = orphan_message(config, &holder, orphan);
        if !memory.wait_left(&holder, orphan, Instant::now()).is_zero() {
            return Err(RelayError::new(ErrorKind::SlotOrphaned, what));
        }
        terminate(sql, config, &holder, &what).await?;
    }
    Ok(())
}

/// The error for a slot that another process holds.
pub fn slot_held(config: &Config, holder: &Holder) -> RelayError {
    let slot = &config.source.slot.name;
    let who = holder.describe(&config.source.user);
    match holder.kind(None) {
        Kind::Relay if holder.creating => {
            RelayError::new(ErrorKind::SlotActive, format!("another relay is creating slot {slot}: {who}"))
        }
        Kind::Relay => {
            RelayError::new(ErrorKind::SlotActive, format!("another relay holds slot {slot}: {who}"))
        }
        Kind::Foreign => RelayError::new(
            ErrorKind::SlotInUse,
            format!("a client that is not a relay holds slot {slot}: {who}"),
        ),
        Kind::Orphan(orphan) => {
            RelayError::new(ErrorKind::SlotOrphaned, orphan_message(config, holder, orphan))
        }
    }
}

/// The message about an orphaned holder. It stays the same while the orphan lasts, so that it is logged once.
fn orphan_message(config: &Config, holder: &Holder, orphan: Orphan) -> String {
    let slot = &config.source.slot.name;
    let who = holder.describe(&config.source.user);
    let of = match orphan {
        Orphan::Own => "of an earlier session of this relay".to_owned(),
        Orphan::Alone if holder.creating => "whose relay is gone".to_owned(),
        Orphan::Alone => {
            format!("whose relay is gone; this relay terminates it after {} s", ORPHAN_GRACE.as_secs())
        }
        Orphan::Silent(Silence { since, until, .. }) => {
            format!(
                "whose relay has been silent since {}; this relay terminates it at {}",
                format_time(since),
                format_time(until)
            )
        }
    };
    format!("slot {slot} is held by a walsender {of}: {who}")
}

async fn terminate(
    sql: &mut PgConnection,
    config: &Config,
    holder: &Holder,
    what: &str,
) -> Result<(), RelayError> {
    let refused = |why| RelayError::new(ErrorKind::SlotOrphaned, format!("{what}; {why}"));
    for backend in holder.backends() {
        match slot_holder::end(sql, backend).await {
            Ok(true) => {}
            Ok(false) => return Err(refused("it was terminated and is still running".to_owned())),
            Err(error) if reason(&error) == Some(ErrorKind::PermissionDenied) => {
                return Err(refused(format!("role {} may not terminate it", config.source.user)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    tracing::warn!("{what}; terminated it");
    Ok(())
}

fn reason(error: &sqlx::Error) -> Option<ErrorKind> {
    error.as_database_error()?.code().map(|code| reason_of_sqlstate(&code))
}

/// Terminates the session that holds the lock on the slot's creation, if it belongs to an earlier session of this
/// process or to a relay that is gone. Returns whether the lock is free.
pub async fn end_creator(
    sql: &mut PgConnection,
    lock: &str,
    memory: &SlotMemory,
) -> Result<bool, RelayError> {
    let Some(session) = slot_holder::of_lock(sql, lock).await? else { return Ok(true) };
    let own = memory.own.as_ref().is_some_and(|own| own.session == session.backend);
    let pid = session.backend.pid;
    match session.silence {
        _ if own => {}
        None => return Ok(false),
        Some(Silence { left: Duration::ZERO, .. }) => {}
        Some(Silence { since, .. }) => {
            let since = format_time(since);
            let what = format!(
                "the relay that was creating the slot has been silent since {since}: server process {pid}"
            );
            return Err(RelayError::new(ErrorKind::SlotOrphaned, what));
        }
    }
    tracing::warn!(pid, "terminating the orphaned session of a relay that was creating the slot");
    Ok(slot_holder::end(sql, &session.backend).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_a_stream_without_a_session_gets_a_grace_period() {
        let mut memory = SlotMemory::default();
        let start = Instant::now();
        let stream = Holder::for_tests(7, false);
        assert_eq!(memory.wait_left(&stream, Orphan::Own, start), Duration::ZERO);
        let at = chrono::DateTime::UNIX_EPOCH;
        let silence = Silence { since: at, until: at, left: SECOND };
        assert_eq!(memory.wait_left(&stream, Orphan::Silent(silence), start), SECOND);
        assert_eq!(memory.wait_left(&Holder::for_tests(7, true), Orphan::Alone, start), Duration::ZERO);
        assert_eq!(memory.wait_left(&stream, Orphan::Alone, start), ORPHAN_GRACE);
        assert_eq!(memory.wait_left(&stream, Orphan::Alone, start + 4 * SECOND), ORPHAN_GRACE - 4 * SECOND);
        let later = Holder::for_tests(8, false);
        assert_eq!(memory.wait_left(&later, Orphan::Alone, start + 9 * SECOND), ORPHAN_GRACE, "another one");
        assert_eq!(memory.wait_left(&later, Orphan::Alone, start + 19 * SECOND), Duration::ZERO);
    }
}
