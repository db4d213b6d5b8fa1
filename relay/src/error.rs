//! The relay's error kinds in one place: the reason shown in `/status`, logs and metrics; whether to retry, stand by or
//! stop; and the remedy for the on-call engineer.

mod backoff;
mod cause;

use std::fmt;

use outbox::Position;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Serialize};

pub use self::backoff::Backoff;
pub(crate) use self::backoff::jitter;
pub use self::cause::{chain, reason_of_all, reason_of_connection, reason_of_sqlstate};

/// What the relay does about an error. Only invalid configuration and bugs end the process: a process in a restart loop
/// cannot show the reason it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Transient: retry soon, then with growing pauses.
    Retry,
    /// Another relay holds the slot: wait to take over.
    StandBy,
    /// A person has to act: delivery stops, and the relay checks regularly whether the cause is gone.
    Stop,
}

/// Why delivery is interrupted. The names appear in `/status`, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// PostgreSQL could not be reached, or the connection was lost.
    DatabaseUnreachable,
    /// PostgreSQL rejected the role or its credentials.
    AuthenticationFailed,
    /// A password or certificate file could not be read or used.
    CredentialsUnreadable,
    /// `source.tls` requires TLS and the server does not offer it.
    TlsNotOffered,
    /// The server's certificate was not issued by a trusted CA, or has expired.
    CertificateNotTrusted,
    /// The server's certificate was issued for another host name.
    CertificateForOtherHost,
    /// The TLS handshake failed, or the server rejected the relay's certificate.
    TlsFailed,
    /// Hosts were reached, but none accepts writes.
    NoWritableHost,
    /// The two connections of a session reached different servers.
    DifferentServers,
    /// A connection pooler answered instead of the server.
    ConnectionPooler,
    /// The role lacks a privilege.
    PermissionDenied,
    /// The database does not exist.
    DatabaseMissing,
    /// `wal_level` is not `logical`.
    WalLevelTooLow,
    /// The server is older than PostgreSQL 15.
    ServerTooOld,
    /// The outbox table does not exist.
    TableMissing,
    /// The table lacks a column, or contains rows that the stream does not carry.
    TableUnsuitable,
    /// The table has a column whose values can only be read in text format, while the stream was opened in binary
    /// format.
    StreamFormChanged,
    /// The checkpoint table does not exist.
    CheckpointTableMissing,
    /// The publication does not exist and may not be created.
    PublicationMissing,
    /// The publication does not publish the inserts of the table.
    PublicationUnsuitable,
    /// The rows already in the table cannot be delivered first, as `source.start` requires.
    StartRefused,
    /// The publication was changed since the last checkpoint: rows may be missing from the stream.
    PublicationChanged,
    /// Another relay holds the slot.
    SlotActive,
    /// A client that is not a relay holds the slot.
    SlotInUse,
    /// The relay that held the slot is gone, but its walsender still holds it.
    SlotOrphaned,
    /// Creating the slot waits for older transactions to end.
    SlotCreationWaits,
    /// The slot does not exist and may not be created.
    SlotMissing,
    /// The slot uses another plugin or belongs to another database.
    SlotUnsuitable,
    /// The slot was dropped or invalidated since the last checkpoint: rows may be missing.
    SlotLost,
    /// The slot was advanced beyond the checkpoint: rows may be missing.
    SlotAhead,
    /// The database belongs to another cluster, or never was on the checkpoint's timeline.
    HistoryChanged,
    /// Another client deleted the checkpoint row, or moved it to another cluster or timeline.
    CheckpointLost,
    /// Writing the checkpoint has been blocked for long.
    CheckpointStalled,
    /// The server has WAL beyond what the stream has delivered, and nothing arrives.
    StreamStalled,
    /// The server holds the stream back until its standbys have received the same WAL.
    WaitingForStandby,
    /// This process was stopped or starved for so long that another relay may hold the slot.
    ProcessPaused,
    /// Kafka could not be reached.
    KafkaUnreachable,
    /// Kafka rejected the relay's credentials, or the relay rejected Kafka's certificate.
    KafkaAuthenticationFailed,
    /// The files with the credentials for Kafka have changed.
    CredentialsRotated,
    /// The relay lacks a permission in Kafka.
    KafkaPermissionDenied,
    /// Kafka can be reached, but does not acknowledge the records sent to it.
    NoAcknowledgement,
    /// A topic does not exist.
    TopicMissing,
    /// A topic's limits have changed, and the producers have to be rebuilt with them.
    TopicChanged,
    /// Acknowledged records are gone: Kafka lost them, or the topic was recreated.
    KafkaLostRecords,
    /// Another outbox publishes to a topic under the same `ce_source`.
    EventSourceShared,
    /// Kafka rejected a record.
    DeliveryFailed,
    /// A row cannot be delivered as it is (a poison message).
    PoisonRow,
    /// The stream contained something the replication protocol does not allow.
    ProtocolViolation,
    /// Any other error reported by the database.
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

    /// Whether rows may be missing in Kafka.
    pub fn is_gap(self) -> bool {
        Self::GAPS.contains(&self)
    }

    /// The kinds that mean a gap.
    pub const GAPS: [ErrorKind; 5] = [
        ErrorKind::SlotLost,
        ErrorKind::SlotAhead,
        ErrorKind::HistoryChanged,
        ErrorKind::PublicationChanged,
        ErrorKind::KafkaLostRecords,
    ];

    /// What the on-call engineer should do.
    pub fn remedy(self) -> &'static str {
        match self {
            ErrorKind::DatabaseUnreachable => {
                "check that PostgreSQL runs and that source.host and source.port lead to it"
            }
            ErrorKind::AuthenticationFailed => {
                "check source.user and its password, source.tls.certFile if the server asks for a client certificate, and pg_hba.conf"
            }
            ErrorKind::CredentialsUnreadable => "correct the file; the relay reads it again at each attempt",
            ErrorKind::TlsNotOffered => {
                "set ssl = on in PostgreSQL; only on a network you trust, set source.tls.mode to disable instead"
            }
            ErrorKind::CertificateNotTrusted => {
                "add the CA that issued the server's certificate, or the self-signed certificate itself, to source.tls.caFile; renew the server's certificate if it has expired"
            }
            ErrorKind::CertificateForOtherHost => {
                "set source.host to a name in the server's certificate, or issue a certificate for this name"
            }
            ErrorKind::TlsFailed => {
                "check that PostgreSQL itself listens there, which TLS versions it allows, and source.tls.certFile and keyFile"
            }
            ErrorKind::NoWritableHost => {
                "wait for the failover to end, or add the primary to source.host; check default_transaction_read_only"
            }
            ErrorKind::DifferentServers => {
                "one name in source.host resolves to several servers: list each server under its own name"
            }
            ErrorKind::ConnectionPooler => {
                "set source.host and source.port to PostgreSQL itself: replication and the relay's sessions do not work through a pooler"
            }
            ErrorKind::PermissionDenied => "grant the relay's role the privileges listed in docs/OUTBOX.md",
            ErrorKind::DatabaseMissing => "check source.database",
            ErrorKind::WalLevelTooLow => "set wal_level = logical in PostgreSQL and restart it",
            ErrorKind::ServerTooOld => "use PostgreSQL 15 or newer",
            ErrorKind::TableMissing => {
                "check source.table, or apply migrations/0001_outbox.sql and migrations/0002_outbox_checkpoint.sql in its schema"
            }
            ErrorKind::TableUnsuitable => "correct the table: see docs/OUTBOX.md, 'What the table may be'",
            ErrorKind::StreamFormChanged => {
                "no action needed: the relay reopens the stream with values in text format"
            }
            ErrorKind::CheckpointTableMissing => {
                "apply migrations/0002_outbox_checkpoint.sql in the schema of the outbox table"
            }
            ErrorKind::PublicationMissing => {
                "create the publication, or set source.publication.creationPolicy to IfMissing"
            }
            ErrorKind::PublicationUnsuitable => {
                "alter the publication so that it publishes the inserts of the outbox table with publish_via_partition_root = true"
            }
            ErrorKind::StartRefused => {
                "do what the message says, or set source.start to Now: see docs/OUTBOX.md, 'The first start'"
            }
            ErrorKind::PublicationChanged => {
                "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The publication was changed'"
            }
            ErrorKind::SlotActive => {
                "no action needed if another relay is meant to hold the slot: this one takes over when it is released"
            }
            ErrorKind::SlotInUse => {
                "disconnect that client, or choose another source.slot.name for the relay"
            }
            ErrorKind::SlotOrphaned => {
                "no action needed: the relay terminates that walsender; if it lacks the privilege, run pg_terminate_backend() as a superuser"
            }
            ErrorKind::SlotCreationWaits => {
                "wait for these transactions, or end them: pg_terminate_backend() for a session; ROLLBACK PREPARED or COMMIT PREPARED, run in its database, for a prepared transaction"
            }
            ErrorKind::SlotMissing => "create the slot, or set source.slot.creationPolicy to IfMissing",
            ErrorKind::SlotUnsuitable => {
                "choose another source.slot.name; or drop the slot if no other client reads it, so that the relay creates a new one"
            }
            ErrorKind::SlotLost => {
                "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was lost'"
            }
            ErrorKind::SlotAhead => {
                "rows between checkpoint and slot may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was advanced'"
            }
            ErrorKind::HistoryChanged => {
                "the database was restored or replaced, or is a former primary: see docs/OPERATIONS.md, 'Another history'"
            }
            ErrorKind::CheckpointLost => {
                "make sure that no other relay uses this name, then restart the relay to continue from the stored checkpoint"
            }
            ErrorKind::CheckpointStalled => {
                "find the session that holds a lock on outbox_checkpoint: pg_blocking_pids() of the relay's session in pg_stat_activity"
            }
            ErrorKind::StreamStalled => {
                "if a large transaction is being decoded, wait for it: check pg_stat_replication and pg_stat_replication_slots; otherwise check the PostgreSQL server log"
            }
            ErrorKind::WaitingForStandby => {
                "start the standbys whose slots synchronized_standby_slots lists, or remove the slots of missing standbys from that setting"
            }
            ErrorKind::ProcessPaused => {
                "no action needed if the process or its machine was paused on purpose; otherwise give it more CPU: check limits, throttling and swap"
            }
            ErrorKind::NoAcknowledgement => {
                "compare min.insync.replicas with the in-sync replicas, and check quotas and the brokers' logs"
            }
            ErrorKind::KafkaUnreachable => "check that Kafka runs and that sink.bootstrapServers leads to it",
            ErrorKind::KafkaAuthenticationFailed => {
                "check the relay's credentials for Kafka and the certificates of both sides"
            }
            ErrorKind::KafkaPermissionDenied => {
                "grant the relay Write, Describe and Read on its topics, as listed in docs/OUTBOX.md"
            }
            ErrorKind::TopicChanged | ErrorKind::CredentialsRotated => {
                "no action needed: the relay recreates its producers"
            }
            ErrorKind::TopicMissing => "create the topic, or correct the routing",
            ErrorKind::KafkaLostRecords => {
                "acknowledged records are gone: see docs/OPERATIONS.md, 'Kafka lost records'"
            }
            ErrorKind::EventSourceShared => {
                "give every outbox its own source.eventSource: see docs/OPERATIONS.md, 'Another outbox under the same name'"
            }
            ErrorKind::DeliveryFailed => {
                "the relay recreates its producers and sends the rows again; if the error persists, check the topic's limits and the relay's permissions"
            }
            ErrorKind::PoisonRow => {
                "correct the routing or the limits; for a row that can never be delivered see docs/OPERATIONS.md, 'A poison row'"
            }
            ErrorKind::ProtocolViolation => {
                "the relay reopens the stream; if the error persists, report it with the relay's log"
            }
            ErrorKind::DatabaseError => "check the PostgreSQL server log",
        }
    }

    /// The side that caused it, as a metric label.
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

    /// The name as shown in `/status`, logs and metrics.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The kind with this name, if this version knows it.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        ErrorKind::deserialize(name).ok()
    }
}

/// How much of a row's text an error quotes: enough to recognise it.
const EXCERPT_CHARS: usize = 100;

/// The beginning of a text from a row, for an error message: the text may be of any length.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// An error with its kind and a description.
#[derive(Debug)]
pub struct RelayError {
    /// Decides action, remedy and metric labels.
    pub kind: ErrorKind,
    /// What happened, to what.
    pub detail: String,
    /// The row that has to be delivered before the error counts as resolved, where one is known.
    pub at: Option<Position>,
}

impl RelayError {
    /// An error of this kind; `detail` says what happened, to what.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        RelayError { kind, detail: detail.into(), at: None }
    }

    /// The error counts as resolved only when the row at `position` is delivered.
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
    fn a_kind_is_found_by_its_name() {
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
