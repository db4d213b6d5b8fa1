//! Every kind of error in one table: what the relay does about it, whose side it is on, and the remedy.

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

/// A row of the table.
#[derive(Clone, Copy)]
struct Entry {
    action: Action,
    /// The metric label.
    side: &'static str,
    is_gap: bool,
    remedy: &'static str,
}

impl Entry {
    /// Rows may be missing in Kafka.
    const fn gap(self) -> Entry {
        Entry { is_gap: true, ..self }
    }
}

const fn postgres(action: Action, remedy: &'static str) -> Entry {
    Entry { action, side: "postgres", is_gap: false, remedy }
}

const fn kafka(action: Action, remedy: &'static str) -> Entry {
    Entry { action, side: "kafka", is_gap: false, remedy }
}

/// Defines [`ErrorKind`] together with its table, so that no kind can lack an entry.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $entry:expr,)*) => {
        /// Why delivery is interrupted. The names appear in `/status`, logs and metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $($(#[$doc])* $kind,)* }

        impl ErrorKind {
            pub const ALL: &[ErrorKind] = &[$(ErrorKind::$kind,)*];

            /// The name as shown in `/status`, logs and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(ErrorKind::$kind => stringify!($kind),)* }
            }

            const fn entry(self) -> Entry {
                use Action::{Retry, StandBy, Stop};
                match self { $(ErrorKind::$kind => $entry,)* }
            }
        }
    };
}

kinds! {
    /// PostgreSQL could not be reached, or the connection was lost.
    DatabaseUnreachable => postgres(Retry,
        "check that PostgreSQL runs and that source.host and source.port lead to it"),
    /// PostgreSQL rejected the role or its credentials.
    AuthenticationFailed => postgres(Stop,
        "check source.user and its password, source.tls.certFile if the server asks for a client certificate, and pg_hba.conf"),
    /// A password or certificate file could not be read or used.
    CredentialsUnreadable => postgres(Stop, "correct the file; the relay reads it again at each attempt"),
    /// `source.tls` requires TLS and the server does not offer it.
    TlsNotOffered => postgres(Stop,
        "set ssl = on in PostgreSQL; only on a network you trust, set source.tls.mode to disable instead"),
    /// The server's certificate was not issued by a trusted CA, or has expired.
    CertificateNotTrusted => postgres(Stop,
        "add the CA that issued the server's certificate, or the self-signed certificate itself, to source.tls.caFile; renew the server's certificate if it has expired"),
    /// The server's certificate was issued for another host name.
    CertificateForOtherHost => postgres(Stop,
        "set source.host to a name in the server's certificate, or issue a certificate for this name"),
    /// The TLS handshake failed, or the server rejected the relay's certificate.
    TlsFailed => postgres(Stop,
        "check that PostgreSQL itself listens there, which TLS versions it allows, and source.tls.certFile and keyFile"),
    /// Hosts were reached, but none accepts writes.
    NoWritableHost => postgres(Retry,
        "wait for the failover to end, or add the primary to source.host; check default_transaction_read_only"),
    /// The two connections of a session reached different servers.
    DifferentServers => postgres(Retry,
        "one name in source.host resolves to several servers: list each server under its own name"),
    /// A connection pooler answered instead of the server.
    ConnectionPooler => postgres(Stop,
        "set source.host and source.port to PostgreSQL itself: replication and the relay's sessions do not work through a pooler"),
    /// The role lacks a privilege.
    PermissionDenied => postgres(Stop, "grant the relay's role the privileges listed in docs/OUTBOX.md"),
    /// The database does not exist.
    DatabaseMissing => postgres(Stop, "check source.database"),
    /// `wal_level` is not `logical`.
    WalLevelTooLow => postgres(Stop, "set wal_level = logical in PostgreSQL and restart it"),
    /// The server is older than PostgreSQL 15.
    ServerTooOld => postgres(Stop, "use PostgreSQL 15 or newer"),
    /// The outbox table does not exist.
    TableMissing => postgres(Stop,
        "check source.table, or apply the files of migrations/outbox in its schema"),
    /// The table lacks a column, or contains rows that the stream does not carry.
    TableUnsuitable => postgres(Stop, "correct the table: see docs/OUTBOX.md, 'What the table may be'"),
    /// The table has a column whose values can only be read in text format, while the stream was opened in binary
    /// format.
    StreamFormChanged => postgres(Retry,
        "no action needed: the relay reopens the stream with values in text format"),
    /// The checkpoint table does not exist.
    CheckpointTableMissing => postgres(Stop,
        "apply migrations/outbox/*_outbox_checkpoint*.sql in the schema of the outbox table"),
    /// The publication does not exist and may not be created.
    PublicationMissing => postgres(Stop,
        "create the publication, or set source.publication.creationPolicy to IfMissing"),
    /// The publication does not publish the inserts of the table.
    PublicationUnsuitable => postgres(Stop,
        "alter the publication so that it publishes the inserts of the outbox table with publish_via_partition_root = true"),
    /// The rows already in the table cannot be delivered first, as `source.start` requires.
    StartRefused => postgres(Stop,
        "do what the message says, or set source.start to Now: see docs/OUTBOX.md, 'The first start'"),
    /// The publication was changed since the last checkpoint: rows may be missing from the stream.
    PublicationChanged => postgres(Stop,
        "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The publication was changed'").gap(),
    /// Another relay holds the slot.
    SlotActive => postgres(StandBy,
        "no action needed if another relay is meant to hold the slot: this one takes over when it is released"),
    /// A client that is not a relay holds the slot.
    SlotInUse => postgres(Stop, "disconnect that client, or choose another source.slot.name for the relay"),
    /// The relay that held the slot is gone, but its walsender still holds it.
    SlotOrphaned => postgres(Retry,
        "no action needed: the relay terminates that walsender; if it lacks the privilege, run pg_terminate_backend() as a superuser"),
    /// Creating the slot waits for older transactions to end.
    SlotCreationWaits => postgres(Retry,
        "wait for these transactions, or end them: pg_terminate_backend() for a session; ROLLBACK PREPARED or COMMIT PREPARED, run in its database, for a prepared transaction"),
    /// The slot does not exist and may not be created.
    SlotMissing => postgres(Stop, "create the slot, or set source.slot.creationPolicy to IfMissing"),
    /// The slot uses another plugin or belongs to another database.
    SlotUnsuitable => postgres(Stop,
        "choose another source.slot.name; or drop the slot if no other client reads it, so that the relay creates a new one"),
    /// The slot was dropped or invalidated since the last checkpoint: rows may be missing.
    SlotLost => postgres(Stop,
        "rows committed since the last checkpoint may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was lost'").gap(),
    /// The slot was advanced beyond the checkpoint: rows may be missing.
    SlotAhead => postgres(Stop,
        "rows between checkpoint and slot may be missing in Kafka: see docs/OPERATIONS.md, 'The slot was advanced'").gap(),
    /// The database belongs to another cluster, or never was on the checkpoint's timeline.
    HistoryChanged => postgres(Stop,
        "the database was restored or replaced, or is a former primary: see docs/OPERATIONS.md, 'Another history'").gap(),
    /// Another client deleted the checkpoint row, or moved it to another cluster or timeline.
    CheckpointLost => postgres(Stop,
        "make sure that no other relay uses this name, then restart the relay to continue from the stored checkpoint"),
    /// Writing the checkpoint has been blocked for long.
    CheckpointStalled => postgres(Retry,
        "find the session that holds a lock on outbox_checkpoint: pg_blocking_pids() of the relay's session in pg_stat_activity"),
    /// The server has WAL beyond what the stream has delivered, and nothing arrives.
    StreamStalled => postgres(Retry,
        "if a large transaction is being decoded, wait for it: check pg_stat_replication and pg_stat_replication_slots; otherwise check the PostgreSQL server log"),
    /// The server holds the stream back until its standbys have received the same WAL.
    WaitingForStandby => postgres(Retry,
        "start the standbys whose slots synchronized_standby_slots lists, or remove the slots of missing standbys from that setting"),
    /// This process was stopped or starved for so long that another relay may hold the slot.
    ProcessPaused => postgres(Retry,
        "no action needed if the process or its machine was paused on purpose; otherwise give it more CPU: check limits, throttling and swap"),
    /// Kafka could not be reached.
    KafkaUnreachable => kafka(Retry, "check that Kafka runs and that sink.bootstrapServers leads to it"),
    /// Kafka rejected the relay's credentials, or the relay rejected Kafka's certificate.
    KafkaAuthenticationFailed => kafka(Stop,
        "check the relay's credentials for Kafka and the certificates of both sides"),
    /// The files with the credentials for Kafka have changed.
    CredentialsRotated => kafka(Retry, "no action needed: the relay recreates its producers"),
    /// The relay lacks a permission in Kafka.
    KafkaPermissionDenied => kafka(Stop,
        "grant the relay Write, Describe and Read on its topics, as listed in docs/OUTBOX.md"),
    /// Kafka can be reached, but does not acknowledge the records sent to it.
    NoAcknowledgement => kafka(Retry,
        "compare min.insync.replicas with the in-sync replicas, and check quotas and the brokers' logs"),
    /// A topic does not exist.
    TopicMissing => kafka(Stop, "create the topic, or correct the routing"),
    /// A topic's limits have changed, and the producers have to be rebuilt with them.
    TopicChanged => kafka(Retry, "no action needed: the relay recreates its producers"),
    /// Acknowledged records are gone: Kafka lost them, or the topic was recreated.
    KafkaLostRecords => kafka(Stop,
        "acknowledged records are gone: see docs/OPERATIONS.md, 'Kafka lost records'").gap(),
    /// The slot was replaced, and it cannot be proved which of the rows before it are in Kafka.
    RefillBlocked => kafka(Stop,
        "rows from before the new slot are not delivered yet: see docs/OPERATIONS.md, 'A refill is blocked'").gap(),
    /// Another outbox publishes to a topic under the same `ce_source`.
    EventSourceShared => kafka(Stop,
        "give every outbox its own source.eventSource: see docs/OPERATIONS.md, 'Another outbox under the same name'"),
    /// Kafka rejected a record.
    DeliveryFailed => kafka(Retry,
        "the relay recreates its producers and sends the rows again; if the error persists, check the topic's limits and the relay's permissions"),
    /// A row cannot be delivered as it is (a poison message).
    PoisonRow => postgres(Stop,
        "correct the routing or the limits; for a row that can never be delivered see docs/OPERATIONS.md, 'A poison row'"),
    /// A row has text that PostgreSQL cannot convert from the database's encoding to UTF-8.
    TextUntranslatable => postgres(Stop,
        "correct the row in the table, and deliver it from there: see docs/OPERATIONS.md, 'Text that is not UTF-8'"),
    /// The stream contained something the replication protocol does not allow.
    ProtocolViolation => postgres(Retry,
        "the relay reopens the stream; if the error persists, report it with the relay's log"),
    /// Any other error reported by the database.
    DatabaseError => postgres(Retry, "check the PostgreSQL server log"),
}

impl ErrorKind {
    /// The kind with this name, if this version knows it.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        ErrorKind::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The kinds that mean a gap.
    pub fn gaps() -> impl Iterator<Item = ErrorKind> {
        ErrorKind::ALL.iter().copied().filter(|kind| kind.is_gap())
    }

    /// What the relay does about it.
    pub const fn action(self) -> Action {
        self.entry().action
    }

    /// The side that caused it, as a metric label.
    pub const fn side(self) -> &'static str {
        self.entry().side
    }

    /// Whether rows may be missing in Kafka.
    pub const fn is_gap(self) -> bool {
        self.entry().is_gap
    }

    /// What the on-call engineer should do.
    pub const fn remedy(self) -> &'static str {
        self.entry().remedy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What operators read about the kinds.
    const OPERATIONS: &str = include_str!("../../../docs/OPERATIONS.md");

    #[test]
    fn a_kind_is_found_by_its_name() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(*kind));
        }
        assert_eq!(ErrorKind::from_name("Slotlost"), None);
    }

    #[test]
    fn operations_says_of_every_kind_what_the_relay_does() {
        for kind in ErrorKind::ALL {
            let row =
                OPERATIONS.lines().find_map(|line| line.strip_prefix(&format!("| `{}` | ", kind.name())));
            let does = row.and_then(|row| row.split(" | ").next()).unwrap_or("nothing: it has no row");
            let expected = match (kind, kind.action()) {
                // The stream stays open meanwhile.
                (ErrorKind::SlotCreationWaits | ErrorKind::TopicMissing, _) => "waits",
                (ErrorKind::PoisonRow, _) => "stops behind it",
                (_, Action::Retry) => "retry",
                (_, Action::StandBy) => "stand by",
                (_, Action::Stop) => "stop",
            };
            assert_eq!(does, expected, "{kind:?}");
        }
    }
}
