//! What can go wrong, in one table: the reason shown everywhere, whether to retry, stand by or stop, and the
//! sentence for the person on call.

use std::fmt;
use std::time::Duration;

use pg_replication::SqlState;
use serde::Serialize;

/// What the relay does about a trouble. Nothing but invalid configuration and a bug ends the process: a process
/// that restarts in a loop hides the reason it could have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It passes by itself: try again soon, and less often the longer it lasts.
    Retry,
    /// Another relay does the work: be ready to take over.
    StandBy,
    /// A person has to do something: delivery stops, and whether it was done is looked at regularly.
    Stop,
}

/// Why delivery does not go on. The names are shown in `/status`, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Reason {
    /// No connection to Postgres, or it ended.
    DatabaseUnreachable,
    /// Postgres does not accept role or password.
    AuthenticationFailed,
    /// The file of the password or of a certificate cannot be used.
    CredentialsUnreadable,
    /// TLS is demanded, and the server does not offer it.
    TlsNotOffered,
    /// The server's certificate is not of a trusted authority, or out of date.
    CertificateNotTrusted,
    /// The server's certificate is for another host name.
    CertificateForOtherHost,
    /// The TLS handshake failed, or the server refused the relay's certificate.
    TlsFailed,
    /// Hosts were reached, and none of them takes writes.
    NoWritableHost,
    /// The two connections of a session lead to different servers.
    DifferentServers,
    /// The role lacks a privilege.
    PermissionDenied,
    /// The database does not exist.
    DatabaseMissing,
    /// `wal_level` is not `logical`.
    WalLevelTooLow,
    /// The server is older than Postgres 15.
    ServerTooOld,
    /// The outbox table does not exist.
    TableMissing,
    /// The table lacks a column.
    TableUnsuitable,
    /// The checkpoint table does not exist.
    CheckpointTableMissing,
    /// The publication does not exist and may not be created.
    PublicationMissing,
    /// The publication does not publish the inserts of the table.
    PublicationUnsuitable,
    /// What is in the table already cannot be delivered first, as the settings ask.
    StartRefused,
    /// The publication was changed since the last checkpoint: rows may be missing in the stream.
    PublicationChanged,
    /// Another connection holds the slot.
    SlotActive,
    /// The slot does not exist and may not be created.
    SlotMissing,
    /// The slot belongs to another plugin or database.
    SlotUnsuitable,
    /// The slot is gone or invalidated since the last checkpoint: rows may be missing.
    SlotLost,
    /// The slot was advanced beyond the checkpoint: rows may be missing.
    SlotAhead,
    /// The database is another one, or never was on the checkpoint's timeline.
    HistoryChanged,
    /// The checkpoint row was changed or removed by somebody else.
    CheckpointLost,
    /// The server has something to send, and nothing of it arrives.
    StreamStalled,
    /// This process was stopped or starved so long that another may hold the slot.
    ProcessPaused,
    /// No connection to Kafka.
    KafkaUnreachable,
    /// Kafka does not accept the relay's credentials, or the relay Kafka's certificate.
    KafkaAuthenticationFailed,
    /// The files with the credentials for Kafka have changed.
    CredentialsRotated,
    /// The relay lacks a permission in Kafka.
    KafkaPermissionDenied,
    /// Kafka answers, but acknowledges nothing of what was sent.
    NoAcknowledgement,
    /// A topic does not exist.
    TopicMissing,
    /// A topic's limits have changed, and the producers have to follow.
    TopicChanged,
    /// Records that were acknowledged are gone: Kafka lost them, or the topic was made anew.
    KafkaLostRecords,
    /// Kafka refused a record.
    DeliveryFailed,
    /// A row cannot be delivered as it is.
    PoisonRow,
    /// The stream holds something that cannot be.
    ProtocolViolation,
    /// Anything else the database said.
    DatabaseError,
}

impl Reason {
    /// What the relay does about it.
    pub fn action(self) -> Action {
        match self {
            Reason::DatabaseUnreachable
            | Reason::NoWritableHost
            | Reason::DifferentServers
            | Reason::TopicChanged
            | Reason::StreamStalled
            | Reason::ProcessPaused
            | Reason::KafkaUnreachable
            | Reason::NoAcknowledgement
            | Reason::CredentialsRotated
            | Reason::DeliveryFailed
            | Reason::ProtocolViolation
            | Reason::DatabaseError => Action::Retry,
            Reason::SlotActive => Action::StandBy,
            _ => Action::Stop,
        }
    }

    /// Whether there may be rows that nobody can vouch for.
    pub fn is_gap(self) -> bool {
        Self::GAPS.contains(&self)
    }

    /// The reasons that say so.
    pub const GAPS: [Reason; 5] = [
        Reason::SlotLost,
        Reason::SlotAhead,
        Reason::HistoryChanged,
        Reason::PublicationChanged,
        Reason::KafkaLostRecords,
    ];

    /// What the person on call should do.
    pub fn remedy(self) -> &'static str {
        match self {
            Reason::DatabaseUnreachable => {
                "check that Postgres runs and that source.host and source.port lead to it"
            }
            Reason::AuthenticationFailed => {
                "check source.user and its password, source.tls.certFile if the server asks for one, and pg_hba.conf"
            }
            Reason::CredentialsUnreadable => "put the file right; it is read again at each attempt",
            Reason::TlsNotOffered => {
                "set ssl = on in Postgres; only on a network you trust, set source.tls.mode to disable instead"
            }
            Reason::CertificateNotTrusted => {
                "put the certificate of the authority that issued the server's into source.tls.caFile, or renew the server's"
            }
            Reason::CertificateForOtherHost => {
                "set source.host to a name in the server's certificate, or have one issued for this name"
            }
            Reason::TlsFailed => {
                "check that Postgres itself answers there, its TLS versions, and source.tls.certFile and keyFile"
            }
            Reason::NoWritableHost => {
                "wait for the fail-over to end, or name the primary in source.host, too; check default_transaction_read_only"
            }
            Reason::DifferentServers => {
                "source.host leads to more than one server: list their names one by one, so that each leads to one"
            }
            Reason::PermissionDenied => "grant the relay's role what docs/OUTBOX.md lists",
            Reason::DatabaseMissing => "check source.database",
            Reason::WalLevelTooLow => "set wal_level = logical in Postgres and restart it",
            Reason::ServerTooOld => "use Postgres 15 or newer",
            Reason::TableMissing => "apply the migrations, or check source.table",
            Reason::TableUnsuitable => "compare the table with docs/OUTBOX.md",
            Reason::CheckpointTableMissing => {
                "apply migrations/0002_outbox_checkpoint.sql in the schema of the outbox table"
            }
            Reason::PublicationMissing => {
                "create the publication, or set source.publication.creationPolicy to IfMissing"
            }
            Reason::PublicationUnsuitable => {
                "alter the publication so that it publishes the inserts of the outbox table via its root"
            }
            Reason::StartRefused => {
                "do what the message says, or set source.start to Now: see docs/OUTBOX.md, 'The first start'"
            }
            Reason::PublicationChanged => {
                "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The publication was changed'"
            }
            Reason::SlotActive => {
                "nothing, if another relay is meant to hold the slot; this one takes over when it is released"
            }
            Reason::SlotMissing => "create the slot, or set source.slot.creationPolicy to IfMissing",
            Reason::SlotUnsuitable => "choose another source.slot.name",
            Reason::SlotLost => {
                "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was lost'"
            }
            Reason::SlotAhead => {
                "rows between checkpoint and slot may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was advanced'"
            }
            Reason::HistoryChanged => {
                "the database was restored or replaced, or is an old primary: see docs/OPERATIONS.md, 'Another history'"
            }
            Reason::CheckpointLost => {
                "make sure that only one relay has this name; restart it to go on from the checkpoint as it is"
            }
            Reason::StreamStalled => {
                "a large transaction is decoded first: wait for it, and look at pg_stat_replication and pg_stat_replication_slots; without one, look at the Postgres log"
            }
            Reason::ProcessPaused => {
                "nothing, if the process or its machine was paused on purpose; otherwise give it CPU: look at limits, throttling and swap"
            }
            Reason::NoAcknowledgement => {
                "compare min.insync.replicas with the replicas in sync, and look at quotas and the brokers' logs"
            }
            Reason::KafkaUnreachable => "check that Kafka runs and that sink.bootstrapServers leads to it",
            Reason::KafkaAuthenticationFailed => {
                "check the relay's credentials for Kafka, and the certificates of both sides"
            }
            Reason::KafkaPermissionDenied => {
                "allow the relay Write, Describe and Read on its topics, as docs/OUTBOX.md lists"
            }
            Reason::TopicChanged | Reason::CredentialsRotated => "nothing; the producers are made anew",
            Reason::TopicMissing => "create the topic, or correct the routing",
            Reason::KafkaLostRecords => {
                "records that were acknowledged are gone: see docs/OPERATIONS.md, 'Kafka lost records'"
            }
            Reason::DeliveryFailed => {
                "the producers are rebuilt and the rows sent again; if it goes on, check the topic's limits and the relay's permissions"
            }
            Reason::PoisonRow => {
                "correct the routing or the limits; a row that can never be delivered: see docs/OPERATIONS.md, 'A poison row'"
            }
            Reason::ProtocolViolation => {
                "the stream is opened again; if it goes on, report it with the relay's log"
            }
            Reason::DatabaseError => "look at the Postgres log",
        }
    }

    /// Which side it is on, for metrics.
    pub fn side(self) -> &'static str {
        match self {
            Reason::KafkaUnreachable
            | Reason::KafkaAuthenticationFailed
            | Reason::KafkaPermissionDenied
            | Reason::NoAcknowledgement
            | Reason::CredentialsRotated
            | Reason::TopicMissing
            | Reason::TopicChanged
            | Reason::KafkaLostRecords
            | Reason::DeliveryFailed => "kafka",
            _ => "postgres",
        }
    }

    /// The name as it is shown.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// A trouble with the words for it.
#[derive(Debug)]
pub struct Trouble {
    /// The entry of the table.
    pub reason: Reason,
    /// What happened, to what.
    pub what: String,
}

impl Trouble {
    /// A trouble for `reason`; `what` says what happened, to what.
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Trouble { reason, what: what.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.reason.remedy())
    }
}

/// The reason behind an SQLSTATE. Classes 08, 53 and 57 are the server coming and going.
pub fn reason_of_sqlstate(code: &str) -> Reason {
    match code {
        "55006" => Reason::SlotActive,
        "3D000" => Reason::DatabaseMissing,
        "42501" => Reason::PermissionDenied,
        "42P01" => Reason::TableMissing,
        _ if code.starts_with("28") => Reason::AuthenticationFailed,
        _ if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => Reason::DatabaseUnreachable,
        _ => Reason::DatabaseError,
    }
}

impl From<pg_replication::Error> for Trouble {
    fn from(error: pg_replication::Error) -> Self {
        let reason = match &error {
            pg_replication::Error::Server(server) => reason_of_slot_error(&server.code),
            other => reason_of_connection(other),
        };
        Trouble::new(reason, format!("replication connection: {}", chain(&error)))
    }
}

/// The reason behind an error while connecting, when there is no slot yet to speak of.
pub fn reason_of_connection(error: &pg_replication::Error) -> Reason {
    use pg_replication::{Error, TlsError};
    match error {
        Error::Server(server) => reason_of_sqlstate(server.code.as_str()),
        Error::Protocol { .. } => Reason::ProtocolViolation,
        Error::Auth { .. } => Reason::AuthenticationFailed,
        Error::Tls(TlsError::NotOffered) => Reason::TlsNotOffered,
        Error::Tls(TlsError::NotTrusted { .. }) => Reason::CertificateNotTrusted,
        Error::Tls(TlsError::WrongHost { .. }) => Reason::CertificateForOtherHost,
        Error::Tls(TlsError::Authorities { .. } | TlsError::Identity { .. }) => Reason::CredentialsUnreadable,
        Error::Tls(_) => Reason::TlsFailed,
        Error::ReadOnly { .. } => Reason::NoWritableHost,
        Error::NoServer { skipped } => {
            reason_of_all(skipped.iter().map(|server| reason_of_connection(&server.error)))
        }
        _ => Reason::DatabaseUnreachable,
    }
}

/// The one reason for several hosts: what a person has to cure goes before what may pass by itself, and a host that
/// answered before those that did not.
pub fn reason_of_all(reasons: impl IntoIterator<Item = Reason>) -> Reason {
    let weight = |reason: &Reason| match reason {
        Reason::DatabaseUnreachable => 0,
        Reason::NoWritableHost => 1,
        _ => 2,
    };
    // The first of the weightiest: hosts are listed in the order of their importance.
    let mut weightiest = Reason::DatabaseUnreachable;
    for reason in reasons {
        if weight(&reason) > weight(&weightiest) {
            weightiest = reason;
        }
    }
    weightiest
}

/// On a replication connection two codes speak of the slot: 42704 it does not exist, 55000 it is invalidated.
fn reason_of_slot_error(code: &SqlState) -> Reason {
    match code.as_str() {
        "42704" | "55000" => Reason::SlotLost,
        other => reason_of_sqlstate(other),
    }
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        let (reason, what) = match (error, code) {
            (error, Some(code)) => (reason_of_sqlstate(&code), chain(&error)),
            // What TLS has to say is in there, and told apart in one place.
            (sqlx::Error::Io(error), None) => {
                let error = pg_replication::Error::from(error);
                (reason_of_connection(&error), chain(&error))
            }
            (error @ sqlx::Error::Tls(_), None) => (Reason::TlsFailed, chain(&error)),
            (error @ (sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_)), None) => {
                (Reason::DatabaseUnreachable, chain(&error))
            }
            (error, None) => (Reason::DatabaseError, chain(&error)),
        };
        Trouble::new(reason, format!("SQL connection: {what}"))
    }
}

/// An error with its sources, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// First pause before a retry.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a fault that is gone shows within 10 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a standby looks whether the slot is free: it takes over within about a second.
const STANDBY_PAUSE: Duration = Duration::from_millis(500);
/// A session that streamed this long was well: the next trouble is a new one.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Exponential back-off with jitter, so that many relays do not come back in step.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST_PAUSE }
    }
}

impl Backoff {
    /// How long to wait before the next try, after a session that lasted `lasted`.
    pub fn pause(&mut self, action: Action, lasted: Duration) -> Duration {
        if lasted >= STABLE_AFTER {
            self.next = FIRST_PAUSE;
        }
        let pause = match action {
            Action::StandBy => STANDBY_PAUSE,
            Action::Stop => LONGEST_PAUSE,
            Action::Retry => {
                let pause = self.next;
                self.next = (self.next * 2).min(LONGEST_PAUSE);
                pause
            }
        };
        pause.mul_f64(jitter())
    }
}

/// Between 0.75 and 1.25, from the clock: good enough to keep processes out of step.
fn jitter() -> f64 {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.subsec_nanos());
    0.75 + f64::from(nanos % 1_000) / 2_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_coming_and_going_is_retried_and_bad_credentials_are_not() {
        for code in ["57P01", "57P03", "53300", "08006"] {
            assert_eq!(reason_of_sqlstate(code).action(), Action::Retry, "{code}");
        }
        assert_eq!(reason_of_sqlstate("28P01").action(), Action::Stop);
        assert_eq!(reason_of_sqlstate("55006").action(), Action::StandBy);
    }

    #[test]
    fn of_several_hosts_the_one_that_can_be_cured_gives_the_reason() {
        use Reason::{AuthenticationFailed, CertificateNotTrusted, DatabaseUnreachable, NoWritableHost};
        let cases = [
            (vec![DatabaseUnreachable, DatabaseUnreachable], DatabaseUnreachable),
            (vec![DatabaseUnreachable, NoWritableHost], NoWritableHost),
            (vec![NoWritableHost, AuthenticationFailed, CertificateNotTrusted], AuthenticationFailed),
            (vec![], DatabaseUnreachable),
        ];
        for (reasons, expected) in cases {
            assert_eq!(reason_of_all(reasons.clone()), expected, "{reasons:?}");
        }
        let skipped = |error| pg_replication::Skipped { server: "db".into(), error };
        let read_only = pg_replication::Error::ReadOnly { server: "db".into(), why: "is a standby" };
        let all = vec![skipped(pg_replication::Error::Closed), skipped(read_only)];
        assert_eq!(reason_of_connection(&pg_replication::Error::NoServer { skipped: all }), NoWritableHost);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_over_after_a_stable_run() {
        let mut backoff = Backoff::default();
        let first = backoff.pause(Action::Retry, Duration::ZERO);
        for _ in 0..20 {
            assert!(backoff.pause(Action::Retry, Duration::ZERO) <= LONGEST_PAUSE.mul_f64(1.25));
        }
        assert!(backoff.pause(Action::Retry, STABLE_AFTER) <= first * 2);
    }
}
