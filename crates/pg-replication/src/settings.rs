//! Session settings that must not depend on the configuration of a server, database or role.
//!
//! They are sent in the startup message, which takes precedence over `ALTER DATABASE ... SET` and `ALTER ROLE ... SET`
//! before the first statement runs, and set once more after connecting: a connection pooler may drop them from the
//! startup message, or reject it because of them. docs/OUTBOX.md lists the settings deliberately left as configured.

/// A setting with the value that a connection needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value, as `set_config` takes it.
    pub value: &'static str,
    /// The first major version that has it.
    since: u32,
}

/// The oldest version that the startup message is written for: it rejects a connection with an unknown setting.
const STARTUP_SINCE: u32 = 15;

const fn always(name: &'static str, value: &'static str) -> Setting {
    Setting { name, value, since: STARTUP_SINCE }
}

/// Newer than the oldest supported version.
const TIMEOUT: Setting = Setting { name: "transaction_timeout", value: "0", since: 17 };

const ENCODING: Setting = always("client_encoding", "UTF8");

/// A database in `SQL_ASCII` has bytes of no known encoding. PostgreSQL converts nothing there, and fails a statement, or the stream, at text
/// that is not UTF-8; its bytes as they are let the client decide.
const ENCODING_OF_THE_DATABASE: &str = "SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) \
     WHERE pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.=) 'SQL_ASCII'";

const SETTINGS: [Setting; 20] = [
    // The text format of values does not depend on the configuration.
    ENCODING,
    always("datestyle", "ISO, MDY"),
    always("intervalstyle", "postgres"),
    always("timezone", "UTC"),
    always("extra_float_digits", "3"),
    always("bytea_output", "hex"),
    // A backslash in a literal is an ordinary character.
    always("standard_conforming_strings", "on"),
    // Functions and operators are the built-in ones; tables are always qualified with their schema.
    always("search_path", "pg_catalog, pg_temp"),
    // Privileges are those of the role that connects.
    always("role", "none"),
    // A row security policy must not hide rows: a statement that it would filter fails instead.
    always("row_security", "off"),
    // Each statement sees what was committed before it; no serialization failures.
    always("default_transaction_isolation", "read committed"),
    always("default_transaction_deferrable", "off"),
    // The client has its own timeouts, and exporting or reading a snapshot takes as long as it takes.
    always("statement_timeout", "0"),
    always("lock_timeout", "0"),
    always("idle_in_transaction_session_timeout", "0"),
    always("idle_session_timeout", "0"),
    TIMEOUT,
    // An error ends a statement, not the connection.
    always("exit_on_error", "off"),
    // PostgreSQL 18 reports with a warning that it leaves rows out.
    always("client_min_messages", "notice"),
    // A commit must neither wait for a standby nor be lost after it was reported.
    always("synchronous_commit", "local"),
];

/// The settings for the startup message, which every supported server knows.
pub fn at_startup() -> impl Iterator<Item = Setting> {
    SETTINGS.into_iter().filter(|setting| setting.since <= STARTUP_SINCE)
}

/// The statements that set all of them on a server of major version `version`, whatever a pooler kept of the startup
/// message. The first one is so short that a timeout that it disables cannot end it.
pub fn statements(version: u32) -> impl Iterator<Item = String> {
    let first = (version >= TIMEOUT.since).then(|| format!("SET {} = {}", TIMEOUT.name, TIMEOUT.value));
    first.into_iter().chain([statement(version), ENCODING_OF_THE_DATABASE.to_owned()])
}

fn statement(version: u32) -> String {
    let known = SETTINGS.into_iter().filter(|setting| setting.since <= version);
    let calls: Vec<String> = known
        .map(|Setting { name, value, .. }| format!("pg_catalog.set_config('{name}', '{value}', false)"))
        .collect();
    format!("SELECT {}", calls.join(", "))
}
