//! A slot that another connection holds, and what this process remembers of its own sessions.
//!
//! | holder | the relay |
//! |---|---|
//! | another relay that lives | stands by |
//! | a walsender of an earlier session of this process | ends it |
//! | one that creates the slot, of a relay whose session is gone | ends it: nothing was sent from that slot |
//! | one that streams, of a relay whose session is gone | ends it after [`ALONE_FOR`] |
//! | one of a relay whose session is silent | ends it when that relay has given its stream up |
//! | another client | does not touch it, and says who it is |
//!
//! A relay that lives is never ended: it asks something over its session every second, and one that loses the session, or
//! wakes up from a pause, gives its stream up within the time that is waited here.

use std::time::{Duration, Instant};

use pg_replication::EndLsn;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use crate::config::Config;
use crate::delivery::{LostRecords, Refusal};
use crate::error::{ErrorKind, RelayError, reason_of_sqlstate};
use crate::postgres::checkpoint::ClusterTimeline;
use crate::postgres::connection;
use crate::postgres::slot_holder::{self, Backend, Holder, Kind, Orphan, Own, Silence, format_time};

/// How long a stream may be without its session before it counts as an orphan: a relay notices the end of its session within
/// a second, and one that leads nowhere within six.
const ALONE_FOR: Duration = Duration::from_secs(10);

/// How long the end of a creation may take when the relay stops.
const END_CREATION_WITHIN: Duration = Duration::from_secs(8);

/// What a relay remembers from one session to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// What its sessions have confirmed, and on which history.
    pub reached: Option<(ClusterTimeline, EndLsn)>,
    /// What ended the last of them, if Kafka refused a record.
    pub refusal: Option<Refusal>,
    /// Also, if Kafka lost records.
    pub lost: Option<LostRecords>,
    /// A row came whose table has a column that is read in text form. Streams are in text form from then on: the catalog,
    /// by which it is decided otherwise, may show a later table.
    pub text_form: bool,
    /// The server's processes of the last session that took the slot or began to create it.
    own: Option<Own>,
    /// That session has begun to create the slot, and has not ended it.
    creating: bool,
    /// A stream without a session, and since when it was seen so.
    alone: Option<(Backend, Instant)>,
}

impl Memory {
    /// A session takes the slot or, with `creating`, begins to create it: no other process of this relay's can hold it now.
    pub fn on_slot_taken(&mut self, own: Own, creating: bool) {
        let before = std::mem::take(self);
        *self = Memory { own: Some(own), creating, alone: None, ..before };
    }

    /// Ends what was begun and never ended, when no other session follows: PostgreSQL does not notice that the client is
    /// gone while it waits for transactions, and would keep the slot it has begun.
    pub async fn end_creation(&mut self, config: &Config) {
        let Some(own) = self.own.take().filter(|_| self.creating) else { return };
        let ending = async {
            let mut sql = connection::connect(&config.source, "end of creation").await?;
            Ok::<bool, RelayError>(slot_holder::end(&mut sql, &own.walsender).await?)
        };
        let slot = &config.source.slot.name;
        let why = match timeout(END_CREATION_WITHIN, ending).await {
            Ok(Ok(true)) => return tracing::info!(%slot, "the creation of the slot was broken off"),
            Ok(Ok(false)) => "it is still there".to_owned(),
            Ok(Err(error)) => error.detail,
            Err(_) => format!("no answer within {END_CREATION_WITHIN:?}"),
        };
        let pid = own.walsender.pid;
        tracing::warn!(%slot, pid, why, "PostgreSQL may still create the slot; the next start ends that");
    }

    /// For how long `holder` still has to be left alone.
    fn wait_left(&mut self, holder: &Holder, orphan: Orphan, now: Instant) -> Duration {
        match orphan {
            Orphan::Own => return Duration::ZERO,
            Orphan::Alone if holder.creating => return Duration::ZERO,
            Orphan::Silent(silence) => return silence.left,
            Orphan::Alone => {}
        }
        let since = match &self.alone {
            Some((backend, since)) if *backend == holder.backend => *since,
            _ => now,
        };
        self.alone = Some((holder.backend.clone(), since));
        ALONE_FOR.saturating_sub(now.saturating_duration_since(since))
    }
}

/// Returns when the slot is free, and ends an orphan for that; otherwise says what holds it.
pub async fn until_free(
    sql: &mut PgConnection,
    config: &Config,
    memory: &mut Memory,
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
        end(sql, config, &holder, &what).await?;
    }
    Ok(())
}

/// What is said of a slot that is held, by whatever it is.
pub fn slot_held(config: &Config, holder: &Holder) -> RelayError {
    let slot = &config.source.slot.name;
    let who = holder.describe(&config.source.user);
    match holder.kind(None) {
        Kind::Relay if holder.creating => {
            RelayError::new(ErrorKind::SlotActive, format!("another relay creates slot {slot}: {who}"))
        }
        Kind::Relay => {
            RelayError::new(ErrorKind::SlotActive, format!("another relay holds slot {slot}: {who}"))
        }
        Kind::Foreign => RelayError::new(
            ErrorKind::SlotInUse,
            format!("a client that is no relay holds slot {slot}: {who}"),
        ),
        Kind::Orphan(orphan) => {
            RelayError::new(ErrorKind::SlotOrphaned, orphan_message(config, holder, orphan))
        }
    }
}

/// What is said of an orphan. The same as long as it lasts, so that it is logged once.
fn orphan_message(config: &Config, holder: &Holder, orphan: Orphan) -> String {
    let slot = &config.source.slot.name;
    let who = holder.describe(&config.source.user);
    let of = match orphan {
        Orphan::Own => "of an earlier session of this relay".to_owned(),
        Orphan::Alone if holder.creating => "whose relay is gone".to_owned(),
        Orphan::Alone => {
            format!("whose relay is gone, and which is ended after {} s", ALONE_FOR.as_secs())
        }
        Orphan::Silent(Silence { since, until, .. }) => {
            format!(
                "whose relay is silent since {}, and which is ended at {}",
                format_time(since),
                format_time(until)
            )
        }
    };
    format!("slot {slot} is held by a walsender {of}: {who}")
}

async fn end(sql: &mut PgConnection, config: &Config, holder: &Holder, what: &str) -> Result<(), RelayError> {
    let refused = |why| RelayError::new(ErrorKind::SlotOrphaned, format!("{what}; {why}"));
    for backend in holder.backends() {
        match slot_holder::end(sql, backend).await {
            Ok(true) => {}
            Ok(false) => return Err(refused("it was told to end, and is still there".to_owned())),
            Err(error) if reason(&error) == Some(ErrorKind::PermissionDenied) => {
                return Err(refused(format!("role {} may not end it", config.source.user)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    tracing::warn!("{what}; it was ended");
    Ok(())
}

fn reason(error: &sqlx::Error) -> Option<ErrorKind> {
    error.as_database_error()?.code().map(|code| reason_of_sqlstate(&code))
}

/// Ends the session that holds the lock on the slot's creation, if it is what is left of this process's own or of a relay
/// that is gone. Answers whether it did.
pub async fn end_creator(sql: &mut PgConnection, lock: &str, memory: &Memory) -> Result<bool, RelayError> {
    let Some(session) = slot_holder::of_lock(sql, lock).await? else { return Ok(true) };
    let own = memory.own.as_ref().is_some_and(|own| own.session == session.backend);
    let pid = session.backend.pid;
    match session.silence {
        _ if own => {}
        None => return Ok(false),
        Some(Silence { left: Duration::ZERO, .. }) => {}
        Some(Silence { since, .. }) => {
            let since = format_time(since);
            let what = format!("the relay that was creating the slot is silent since {since}: pid {pid}");
            return Err(RelayError::new(ErrorKind::SlotOrphaned, what));
        }
    }
    tracing::warn!(pid, "what is left of a session that was creating the slot is ended");
    Ok(slot_holder::end(sql, &session.backend).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_a_stream_without_a_session_is_left_alone_and_only_for_a_while() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let stream = Holder::for_tests(7, false);
        assert_eq!(memory.wait_left(&stream, Orphan::Own, start), Duration::ZERO);
        let at = chrono::DateTime::UNIX_EPOCH;
        let silence = Silence { since: at, until: at, left: SECOND };
        assert_eq!(memory.wait_left(&stream, Orphan::Silent(silence), start), SECOND);
        assert_eq!(memory.wait_left(&Holder::for_tests(7, true), Orphan::Alone, start), Duration::ZERO);
        assert_eq!(memory.wait_left(&stream, Orphan::Alone, start), ALONE_FOR);
        assert_eq!(memory.wait_left(&stream, Orphan::Alone, start + 4 * SECOND), ALONE_FOR - 4 * SECOND);
        let later = Holder::for_tests(8, false);
        assert_eq!(memory.wait_left(&later, Orphan::Alone, start + 9 * SECOND), ALONE_FOR, "another one");
        assert_eq!(memory.wait_left(&later, Orphan::Alone, start + 19 * SECOND), Duration::ZERO);
    }
}
