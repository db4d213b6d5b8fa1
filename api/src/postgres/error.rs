//! What an error of PostgreSQL means: one table from SQLSTATE to the answer a caller gets and to what the operator
//! should do. Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use std::error::Error;

use basket::application::ports::PortError;

/// What an error means for the command or query that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Another transaction was in the way and this one was rolled back: the next attempt may succeed.
    Conflict,
    /// The database did not finish in time: a lock that another transaction holds, or a statement that takes long.
    TimedOut,
    /// The database cannot do it now. The same may succeed later, or after an operator has acted.
    Unavailable,
    /// The service sent something that it should not have sent.
    Bug,
}

/// One line of [`TABLE`].
#[derive(Debug)]
pub struct Entry {
    /// A code of five characters, or the class that its first two characters name.
    pub state: &'static str,
    /// What it means.
    pub meaning: Meaning,
    /// What the operator should do, for an error that keeps the service from being ready.
    pub remedy: Option<&'static str>,
}

const fn entry(state: &'static str, meaning: Meaning, remedy: Option<&'static str>) -> Entry {
    Entry { state, meaning, remedy }
}

const POOLER: &str =
    "a pooler shares server connections between transactions; connect directly, or use session pooling";
const MIGRATE: &str = "run 'basket-api migrate' with this release";
const CREDENTIALS: &str = "check user and password of BASKET_DATABASE_URL, and pg_hba.conf";
const PRIVILEGES: &str = "run 'basket-api doctor' as this role: it prints the missing GRANT statements";
const SERVER_LOG: &str = "see the server's log";
const WRITABLE: &str = "connect to the primary, or end its read-only mode";

/// The more precise line wins; a code that is in no line is a bug of the service.
pub const TABLE: [Entry; 28] = {
    use Meaning::{Bug, Conflict, TimedOut, Unavailable};
    [
        // Connection, and a server that starts, stops, is full or is out of a resource.
        entry("08", Unavailable, None),
        entry("53", Unavailable, Some("see the server's log: connections, memory or disk are used up")),
        entry("57", Unavailable, None),
        entry("57014", TimedOut, None),
        entry("58", Unavailable, Some(SERVER_LOG)),
        entry("XX", Unavailable, Some(SERVER_LOG)),
        // Another transaction was in the way.
        entry("40001", Conflict, None),
        entry("40P01", Conflict, None),
        // It is not known whether the statement was executed: only the idempotency key tells.
        entry("40003", Unavailable, None),
        // A concurrent duplicate took the key or the id between look-up and commit.
        entry("23505", Conflict, None),
        entry("55P03", TimedOut, None),
        entry("25P03", TimedOut, None),
        entry("25P04", TimedOut, None),
        // A standby, or a primary that accepts no writes.
        entry("25006", Unavailable, Some(WRITABLE)),
        // The role may not log in, or may not do what the service does.
        entry("28", Unavailable, Some(CREDENTIALS)),
        entry("42501", Unavailable, Some(PRIVILEGES)),
        // Database, schema, table, column, function: there is none yet, or that of another release.
        entry("3D", Unavailable, Some("create the database, or correct its name in BASKET_DATABASE_URL")),
        entry("3F", Unavailable, Some(MIGRATE)),
        entry("42P01", Unavailable, Some(MIGRATE)),
        entry("42703", Unavailable, Some(MIGRATE)),
        entry("42883", Unavailable, Some(MIGRATE)),
        // A statement that was prepared before the schema changed: another connection prepares it again.
        entry("0A000", Conflict, None),
        // Statements that were prepared on another server connection.
        entry("26", Unavailable, Some(POOLER)),
        entry("42P05", Unavailable, Some(POOLER)),
        // Protocol violations have class 08, too; a pooler reports startup parameters so.
        entry("08P01", Unavailable, Some(POOLER)),
        // The rest of three classes that are used above.
        entry("25", Bug, None),
        entry("40", Bug, None),
        entry("23", Bug, None),
    ]
};

/// The line for a code.
pub fn lookup(state: &str) -> Option<&'static Entry> {
    TABLE.iter().filter(|entry| state.starts_with(entry.state)).max_by_key(|entry| entry.state.len())
}

/// What an error of the driver means. One that is not from the server is about the way to it, except for those of a
/// value that cannot be converted, which are bugs.
pub fn meaning(error: &sqlx::Error) -> Meaning {
    use sqlx::Error as E;
    match error {
        E::Database(database) => {
            let state = database.code();
            state.as_deref().and_then(lookup).map_or(Meaning::Bug, |entry| entry.meaning)
        }
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed
        | E::BeginFailed => Meaning::Unavailable,
        _ => Meaning::Bug,
    }
}

/// What the operator should do about an error, where the code tells.
pub fn remedy(error: &sqlx::Error) -> Option<&'static str> {
    let state = error.as_database_error()?.code()?;
    lookup(&state)?.remedy
}

/// As the application sees it.
pub fn port_error(error: sqlx::Error) -> PortError {
    let meaning = meaning(&error);
    let source: Box<dyn Error + Send + Sync> = error.into();
    match meaning {
        Meaning::Conflict => PortError::Conflict(source),
        Meaning::TimedOut => PortError::TimedOut(source),
        Meaning::Unavailable => PortError::Unavailable(source),
        Meaning::Bug => PortError::Failed(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(state: &str) -> Meaning {
        lookup(state).map_or(Meaning::Bug, |entry| entry.meaning)
    }

    #[test]
    fn each_state_means_what_the_most_precise_line_says() {
        let expected = [
            (Meaning::Conflict, &["40001", "40P01", "23505", "0A000"][..]),
            (Meaning::TimedOut, &["57014", "55P03", "25P03", "25P04"]),
            (
                Meaning::Unavailable,
                &[
                    "08000", "08006", "08P01", "25006", "26000", "28000", "28P01", "3D000", "3F000", "40003",
                    "42501", "42703", "42883", "42P01", "42P05", "53100", "53200", "53300", "57P01", "57P02",
                    "57P03", "57P05", "58030", "58P01", "XX000", "XX001",
                ],
            ),
            (Meaning::Bug, &["22001", "23514", "25P02", "40002", "42601", "42P10", "P0001"]),
        ];
        for (meaning, states) in expected {
            for state in states {
                assert_eq!(meant(state), meaning, "{state}");
            }
        }
    }

    #[test]
    fn no_line_is_written_twice_and_each_is_a_class_or_a_code() {
        for (n, entry) in TABLE.iter().enumerate() {
            assert!(matches!(entry.state.len(), 2 | 5), "{}", entry.state);
            assert!(TABLE.iter().skip(n + 1).all(|other| other.state != entry.state), "{}", entry.state);
        }
    }

    #[test]
    fn errors_of_the_way_to_the_server_are_no_bugs() {
        for error in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed,
            sqlx::Error::BeginFailed,
            sqlx::Error::Protocol("unexpected".to_owned()),
            sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()),
            sqlx::Error::Tls("certificate expired".into()),
        ] {
            assert_eq!(meaning(&error), Meaning::Unavailable, "{error}");
        }
        assert_eq!(meaning(&sqlx::Error::RowNotFound), Meaning::Bug);
    }
}
