//! Settings of a connection that must not depend on what a server, a database or a role is configured with.
//!
//! They go into the startup message, which takes precedence over `ALTER DATABASE ... SET` and `ALTER ROLE ... SET`
//! before the first statement runs, and are set once more after connecting: a connection pooler may drop them from
//! the startup message or refuse it for them. docs/OUTBOX.md lists what is deliberately left as configured.

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

/// The oldest version that the startup message is written for: an unknown name there refuses the connection.
const STARTUP_SINCE: u32 = 15;

const fn always(name: &'static str, value: &'static str) -> Setting {
    Setting { name, value, since: STARTUP_SINCE }
}

/// Newer than the oldest supported version.
const TIMEOUT: Setting = Setting { name: "transaction_timeout", value: "0", since: 17 };

const SETTINGS: [Setting; 20] = [
    // Values in text form are the same everywhere.
    always("client_encoding", "UTF8"),
    always("datestyle", "ISO, MDY"),
    always("intervalstyle", "postgres"),
    always("timezone", "UTC"),
    always("extra_float_digits", "3"),
    always("bytea_output", "hex"),
    // A backslash in a literal is a backslash.
    always("standard_conforming_strings", "on"),
    // Functions and operators are PostgreSQL's own; tables are always named with their schema.
    always("search_path", "pg_catalog, pg_temp"),
    // Privileges are those of the role that logs in.
    always("role", "none"),
    // A policy must not hide rows: a statement that it would filter fails instead.
    always("row_security", "off"),
    // Each statement sees what was committed before it; no serialization failures.
    always("default_transaction_isolation", "read committed"),
    always("default_transaction_deferrable", "off"),
    // The client sets its own limits, and a snapshot is exported or read for as long as it takes.
    always("statement_timeout", "0"),
    always("lock_timeout", "0"),
    always("idle_in_transaction_session_timeout", "0"),
    always("idle_session_timeout", "0"),
    TIMEOUT,
    // An error ends a statement, not the connection.
    always("exit_on_error", "off"),
    // PostgreSQL 18 tells by a warning that it leaves rows out.
    always("client_min_messages", "notice"),
    // A commit here must not wait for a standby, nor be lost after it was reported.
    always("synchronous_commit", "local"),
];

/// The settings for the startup message, which every supported server knows.
pub fn at_startup() -> impl Iterator<Item = Setting> {
    SETTINGS.into_iter().filter(|setting| setting.since <= STARTUP_SINCE)
}

/// The statements that set all of them on a server of the major version `version`, whatever a pooler left of the startup
/// message. The first of two is over before a timeout that it switches off can end it.
pub fn statements(version: u32) -> impl Iterator<Item = String> {
    let first = (version >= TIMEOUT.since).then(|| format!("SET {} = {}", TIMEOUT.name, TIMEOUT.value));
    first.into_iter().chain([statement(version)])
}

fn statement(version: u32) -> String {
    let known = SETTINGS.into_iter().filter(|setting| setting.since <= version);
    let calls: Vec<String> = known
        .map(|Setting { name, value, .. }| format!("pg_catalog.set_config('{name}', '{value}', false)"))
        .collect();
    format!("SELECT {}", calls.join(", "))
}
