//! What can go wrong, in one table: the reason shown everywhere, whether to retry, stand by or stop, and the
//! sentence for the person on call.

mod backoff;
mod cause;

use std::fmt;

use outbox::Position;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Serialize};

pub use self::backoff::Backoff;
pub use self::cause::{chain, reason_of_all, reason_of_connection, reason_of_sqlstate};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
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
    /// A connection pooler answers in place of the server.
    ConnectionPooler,
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
    /// The table lacks a column, or has rows that the stream does not have.
    TableUnsuitable,
    /// The table has a column whose values are read in text form now, and the stream has them in binary form.
    StreamFormChanged,
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
    /// Another relay holds the slot.
    SlotActive,
    /// A client that is no relay holds the slot.
    SlotInUse,
    /// A walsender holds the slot whose relay is gone.
    SlotOrphaned,
    /// The slot is being created, which waits for transactions that were open before.
    SlotCreationWaits,
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
    /// The checkpoint row was removed, or moved to another history, by somebody else.
    CheckpointLost,
    /// The checkpoint row is not written for long.
    CheckpointStalled,
    /// The server has something to send, and nothing of it arrives.
    StreamStalled,
    /// The server holds the stream back until its standbys have what is in it.
    WaitingForStandby,
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
    /// Another outbox writes to a topic under this one's `ce_source`.
    EventSourceShared,
    /// Kafka refused a record.
    DeliveryFailed,
    /// A row cannot be delivered as it is.
    PoisonRow,
    /// The stream holds something that cannot be.
    ProtocolViolation,
    /// Anything else the database said.
    DatabaseError,
}

impl ErrorKind {
    /// What the relay does about it.
    pub fn action(self) -> Action {
        match self {
            ErrorKind::DatabaseUnreachable
            | ErrorKind::NoWritableHost
            | ErrorKind::DifferentServers
            | ErrorKind::TopicChanged
            | ErrorKind::CheckpointStalled
            | ErrorKind::StreamFormChanged
            | ErrorKind::StreamStalled
            | ErrorKind::SlotOrphaned
            | ErrorKind::SlotCreationWaits
            | ErrorKind::WaitingForStandby
            | ErrorKind::ProcessPaused
            | ErrorKind::KafkaUnreachable
            | ErrorKind::NoAcknowledgement
            | ErrorKind::CredentialsRotated
            | ErrorKind::DeliveryFailed
            | ErrorKind::ProtocolViolation
            | ErrorKind::DatabaseError => Action::Retry,
            ErrorKind::SlotActive => Action::StandBy,
            _ => Action::Stop,
        }
    }

    /// Whether there may be rows that nobody can vouch for.
    pub fn is_gap(self) -> bool {
        Self::GAPS.contains(&self)
    }

    /// The reasons that say so.
    pub const GAPS: [ErrorKind; 5] = [
        ErrorKind::SlotLost,
        ErrorKind::SlotAhead,
        ErrorKind::HistoryChanged,
        ErrorKind::PublicationChanged,
        ErrorKind::KafkaLostRecords,
    ];

    /// What the person on call should do.
    pub fn remedy(self) -> &'static str {
        match self {
            ErrorKind::DatabaseUnreachable => {
                "check that Postgres runs and that source.host and source.port lead to it"
            }
            ErrorKind::AuthenticationFailed => {
                "check source.user and its password, source.tls.certFile if the server asks for one, and pg_hba.conf"
            }
            ErrorKind::CredentialsUnreadable => "put the file right; it is read again at each attempt",
            ErrorKind::TlsNotOffered => {
                "set ssl = on in Postgres; only on a network you trust, set source.tls.mode to disable instead"
            }
            ErrorKind::CertificateNotTrusted => {
                "put the certificate of the authority that issued the server's, or a self-signed one itself, into source.tls.caFile, or renew the server's"
            }
            ErrorKind::CertificateForOtherHost => {
                "set source.host to a name in the server's certificate, or have one issued for this name"
            }
            ErrorKind::TlsFailed => {
                "check that Postgres itself answers there, its TLS versions, and source.tls.certFile and keyFile"
            }
            ErrorKind::NoWritableHost => {
                "wait for the fail-over to end, or name the primary in source.host, too; check default_transaction_read_only"
            }
            ErrorKind::DifferentServers => {
                "source.host leads to more than one server: list their names one by one, so that each leads to one"
            }
            ErrorKind::ConnectionPooler => {
                "set source.host and source.port to PostgreSQL itself: replication and the relay's sessions do not work through a pooler"
            }
            ErrorKind::PermissionDenied => "grant the relay's role what docs/OUTBOX.md lists",
            ErrorKind::DatabaseMissing => "check source.database",
            ErrorKind::WalLevelTooLow => "set wal_level = logical in Postgres and restart it",
            ErrorKind::ServerTooOld => "use Postgres 15 or newer",
            ErrorKind::TableMissing => "apply the migrations, or check source.table",
            ErrorKind::TableUnsuitable => "correct the table: see docs/OUTBOX.md, 'What the table may be'",
            ErrorKind::StreamFormChanged => "nothing; the stream is opened again with values in text form",
            ErrorKind::CheckpointTableMissing => {
                "apply migrations/0002_outbox_checkpoint.sql in the schema of the outbox table"
            }
            ErrorKind::PublicationMissing => {
                "create the publication, or set source.publication.creationPolicy to IfMissing"
            }
            ErrorKind::PublicationUnsuitable => {
                "alter the publication so that it publishes the inserts of the outbox table via its root"
            }
            ErrorKind::StartRefused => {
                "do what the message says, or set source.start to Now: see docs/OUTBOX.md, 'The first start'"
            }
            ErrorKind::PublicationChanged => {
                "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The publication was changed'"
            }
            ErrorKind::SlotActive => {
                "nothing, if another relay is meant to hold the slot; this one takes over when it is released"
            }
            ErrorKind::SlotInUse => "end that client, or choose another source.slot.name for the relay",
            ErrorKind::SlotOrphaned => {
                "nothing: the relay ends that walsender; if it may not, end it with pg_terminate_backend() as a superuser"
            }
            ErrorKind::SlotCreationWaits => {
                "wait for these transactions, or end them: pg_terminate_backend() for a session, ROLLBACK PREPARED or COMMIT PREPARED, in its database, for a prepared one"
            }
            ErrorKind::SlotMissing => "create the slot, or set source.slot.creationPolicy to IfMissing",
            ErrorKind::SlotUnsuitable => {
                "choose another source.slot.name, or drop the slot if nothing else reads it, so that the relay creates its own"
            }
            ErrorKind::SlotLost => {
                "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was lost'"
            }
            ErrorKind::SlotAhead => {
                "rows between checkpoint and slot may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was advanced'"
            }
            ErrorKind::HistoryChanged => {
                "the database was restored or replaced, or is an old primary: see docs/OPERATIONS.md, 'Another history'"
            }
            ErrorKind::CheckpointLost => {
                "make sure that only one relay has this name; restart it to go on from the checkpoint as it is"
            }
            ErrorKind::CheckpointStalled => {
                "find what holds a lock on outbox_checkpoint: pg_blocking_pids() of the relay's session in pg_stat_activity"
            }
            ErrorKind::StreamStalled => {
                "a large transaction is decoded first: wait for it, and look at pg_stat_replication and pg_stat_replication_slots; without one, look at the Postgres log"
            }
            ErrorKind::WaitingForStandby => {
                "start the standbys whose slots synchronized_standby_slots lists, or take the slots of those that are gone out of that setting"
            }
            ErrorKind::ProcessPaused => {
                "nothing, if the process or its machine was paused on purpose; otherwise give it CPU: look at limits, throttling and swap"
            }
            ErrorKind::NoAcknowledgement => {
                "compare min.insync.replicas with the replicas in sync, and look at quotas and the brokers' logs"
            }
            ErrorKind::KafkaUnreachable => "check that Kafka runs and that sink.bootstrapServers leads to it",
            ErrorKind::KafkaAuthenticationFailed => {
                "check the relay's credentials for Kafka, and the certificates of both sides"
            }
            ErrorKind::KafkaPermissionDenied => {
                "allow the relay Write, Describe and Read on its topics, as docs/OUTBOX.md lists"
            }
            ErrorKind::TopicChanged | ErrorKind::CredentialsRotated => "nothing; the producers are made anew",
            ErrorKind::TopicMissing => "create the topic, or correct the routing",
            ErrorKind::KafkaLostRecords => {
                "records that were acknowledged are gone: see docs/OPERATIONS.md, 'Kafka lost records'"
            }
            ErrorKind::EventSourceShared => {
                "give every outbox a source.eventSource of its own: see docs/OPERATIONS.md, 'Another outbox under the same name'"
            }
            ErrorKind::DeliveryFailed => {
                "the producers are rebuilt and the rows sent again; if it goes on, check the topic's limits and the relay's permissions"
            }
            ErrorKind::PoisonRow => {
                "correct the routing or the limits; a row that can never be delivered: see docs/OPERATIONS.md, 'A poison row'"
            }
            ErrorKind::ProtocolViolation => {
                "the stream is opened again; if it goes on, report it with the relay's log"
            }
            ErrorKind::DatabaseError => "look at the Postgres log",
        }
    }

    /// Which side it is on, for metrics.
    pub fn side(self) -> &'static str {
        match self {
            ErrorKind::KafkaUnreachable
            | ErrorKind::KafkaAuthenticationFailed
            | ErrorKind::KafkaPermissionDenied
            | ErrorKind::NoAcknowledgement
            | ErrorKind::CredentialsRotated
            | ErrorKind::TopicMissing
            | ErrorKind::TopicChanged
            | ErrorKind::KafkaLostRecords
            | ErrorKind::EventSourceShared
            | ErrorKind::DeliveryFailed => "kafka",
            _ => "postgres",
        }
    }

    /// The name as it is shown.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The reason of this name, if this version has it.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        ErrorKind::deserialize(name).ok()
    }
}

/// What an error quotes of a row: enough to recognise it.
const EXCERPT_CHARS: usize = 100;

/// The beginning of a text that comes from a row, for an error: it may be of any length.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// A trouble with the words for it.
#[derive(Debug)]
pub struct RelayError {
    /// The entry of the table.
    pub kind: ErrorKind,
    /// What happened, to what.
    pub detail: String,
    /// The row that has to be delivered before it is over, where one is known.
    pub at: Option<Position>,
}

impl RelayError {
    /// A trouble for `reason`; `what` says what happened, to what.
    pub fn new(reason: ErrorKind, what: impl Into<String>) -> Self {
        RelayError { kind: reason, detail: what.into(), at: None }
    }

    /// It is not over before the row at `position` is delivered.
    #[must_use]
    pub fn at(self, position: Position) -> Self {
        RelayError { at: Some(position), ..self }
    }
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.detail, self.kind.remedy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_name() {
        assert_eq!(ErrorKind::from_name(&ErrorKind::SlotLost.name()), Some(ErrorKind::SlotLost));
        assert_eq!(ErrorKind::from_name("Slotlost"), None);
    }

    #[test]
    fn an_excerpt_is_the_beginning_in_whole_characters() {
        assert_eq!(excerpt("ä"), "ä");
        assert_eq!(excerpt(&"ä".repeat(100)), "ä".repeat(100));
        assert_eq!(excerpt(&"ä".repeat(101)), format!("{}…", "ä".repeat(100)));
    }
}
