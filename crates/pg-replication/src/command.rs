//! The replication commands as text, and their results. The grammar accepts upper case only.

use std::time::Duration;

use crate::{EndLsn, Error, Lsn};

/// The first version whose commands take options in parentheses.
const OPTIONS_SINCE: u32 = 15;
/// The oldest version with failover slots.
pub const FAILOVER_SINCE: u32 = 17;

/// In milliseconds, whatever the unit it was set in; `SHOW` would return `1min`.
pub(crate) const WAL_SENDER_TIMEOUT: &str =
    "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'";

/// The server process behind a connection.
pub(crate) const PROCESS_ID: &str = "SELECT pg_catalog.pg_backend_pid()";

/// Shorter timeouts end healthy streams, longer ones keep the slot of a vanished client in use.
const USEFUL_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// PostgreSQL's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A `wal_sender_timeout` with which both sides notice a dead peer.
pub(crate) fn useful_timeout(configured: Duration) -> Duration {
    if USEFUL_TIMEOUTS.contains(&configured) { configured } else { DEFAULT_TIMEOUT }
}

/// Identity and WAL position of the server: the result of IDENTIFY_SYSTEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Set by initdb; the same on a primary and its standbys, different after a dump and restore.
    pub system_id: u64,
    /// Increases with each promotion: LSNs of different timelines are not comparable.
    pub timeline: u32,
    /// How far the server's WAL is flushed.
    pub flush_lsn: Lsn,
    /// The database of this connection.
    pub database: String,
}

/// A newly created slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Everything committed from here on will be streamed.
    pub consistent_point: EndLsn,
    /// Names the snapshot for `SET TRANSACTION SNAPSHOT`; it exists until the next command on this connection.
    pub snapshot_name: Option<String>,
}

/// A row of a result; `None` is SQL NULL.
pub type Row = Vec<Option<String>>;

/// How a slot is created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotOptions {
    /// What happens to the snapshot at the slot's start.
    pub snapshot: Snapshot,
    /// Whether standbys synchronise the slot, so that it survives a failover; PostgreSQL 17 and newer.
    pub failover: bool,
    /// Whether the server drops it at the end of the connection.
    pub temporary: bool,
}

/// What happens to the snapshot that shows exactly the rows the new slot will not stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Snapshot {
    /// None is exported.
    #[default]
    Nothing,
    /// Exported: other connections can use it until the next command on this one.
    Export,
}

/// What pgoutput sends, with protocol version 1: whole committed transactions in commit order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PgOutput {
    /// The publications; at least one.
    pub publications: Vec<String>,
    /// Values in binary instead of text format, where the type has one: a fifth faster.
    pub binary: bool,
    /// Messages of `pg_logical_emit_message`, too.
    pub messages: bool,
}

pub(crate) fn create_slot(name: &str, options: &SlotOptions, version: u32) -> Result<String, Error> {
    let require = |what, since| match version >= since {
        true => Ok(()),
        false => Err(Error::Unsupported { what, since, version }),
    };
    require("this client", OPTIONS_SINCE)?;
    let temporary = if options.temporary { " TEMPORARY" } else { "" };
    let snapshot = match options.snapshot {
        Snapshot::Nothing => "nothing",
        Snapshot::Export => "export",
    };
    let failover = if options.failover {
        require("a failover slot", FAILOVER_SINCE)?;
        ", FAILOVER true"
    } else {
        ""
    };
    let name = identifier(name);
    Ok(format!(
        "CREATE_REPLICATION_SLOT {name}{temporary} LOGICAL pgoutput (SNAPSHOT '{snapshot}'{failover})"
    ))
}

pub(crate) fn start_replication(slot: &str, start: EndLsn, output: &PgOutput) -> String {
    let names: Vec<String> = output.publications.iter().map(|name| identifier(name)).collect();
    let publications = literal(&names.join(","));
    let binary = if output.binary { ", binary 'true'" } else { "" };
    let messages = if output.messages { ", messages 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names {publications}{binary}{messages})",
        identifier(slot)
    )
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string of the replication grammar, in which a backslash is an ordinary character.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(crate) fn identity(rows: Vec<Row>) -> Option<SystemIdentity> {
    let [system_id, timeline, flush_lsn, database] = <[_; 4]>::try_from(only(rows)?).ok()?;
    Some(SystemIdentity {
        system_id: system_id?.parse().ok()?,
        timeline: timeline?.parse().ok()?,
        flush_lsn: flush_lsn?.parse().ok()?,
        database: database?,
    })
}

pub(crate) fn created_slot(rows: Vec<Row>) -> Option<CreatedSlot> {
    let [_name, consistent_point, snapshot_name, _plugin] = <[_; 4]>::try_from(only(rows)?).ok()?;
    let lsn: Lsn = consistent_point?.parse().ok()?;
    Some(CreatedSlot { consistent_point: EndLsn::new(lsn), snapshot_name })
}

/// The content of the history file.
pub(crate) fn history(rows: Vec<Row>) -> Option<String> {
    let [_file_name, content] = <[_; 2]>::try_from(only(rows)?).ok()?;
    content
}

pub(crate) fn process_id(rows: Vec<Row>) -> Option<u32> {
    let [id] = <[_; 1]>::try_from(only(rows)?).ok()?;
    id?.parse().ok()
}

pub(crate) fn milliseconds(rows: &[Row]) -> Option<Duration> {
    let text = rows.first()?.first()?.as_ref()?;
    text.parse().ok().map(Duration::from_millis)
}

fn only(rows: Vec<Row>) -> Option<Row> {
    let [row] = <[Row; 1]>::try_from(rows).ok()?;
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(failover: bool) -> SlotOptions {
        SlotOptions { failover, ..SlotOptions::default() }
    }

    #[test]
    fn slot_commands_follow_the_grammar_of_each_version() {
        let plain = create_slot("s", &options(false), 15).unwrap();
        assert_eq!(plain, r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput (SNAPSHOT 'nothing')"#);
        let all = SlotOptions { snapshot: Snapshot::Export, failover: true, temporary: true };
        let all = create_slot("s", &all, 17).unwrap();
        assert_eq!(
            all,
            r#"CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)"#
        );
    }

    #[test]
    fn an_option_the_server_lacks_is_an_error_and_not_dropped() {
        let refused = create_slot("s", &options(true), 16);
        assert!(matches!(refused, Err(Error::Unsupported { since: 17, version: 16, .. })));
        assert!(matches!(create_slot("s", &options(false), 14), Err(Error::Unsupported { since: 15, .. })));
    }

    #[test]
    fn names_cannot_break_out() {
        let output =
            PgOutput { publications: vec!["it's".into(), "a\"b\\".into()], binary: true, messages: true };
        let start = EndLsn::new(Lsn::from(0x16_B374_D848));
        assert_eq!(
            start_replication("s\"x", start, &output),
            r#"START_REPLICATION SLOT "s""x" LOGICAL 16/B374D848 (proto_version '1', publication_names '"it''s","a""b\"', binary 'true', messages 'true')"#
        );
    }

    #[test]
    fn timeouts_that_are_too_long_or_too_short_are_replaced() {
        let seconds = Duration::from_secs;
        for (configured, settled) in [(0, 60), (1, 1), (3, 3), (60, 60), (300, 300), (86_400, 60)] {
            assert_eq!(useful_timeout(seconds(configured)), seconds(settled), "{configured} s");
        }
        assert_eq!(useful_timeout(Duration::from_millis(100)), seconds(60));
    }

    #[test]
    fn results_with_other_columns_are_rejected() {
        let text = |s: &str| Some(s.to_owned());
        let good = vec![vec![text("7"), text("1"), text("0/10"), text("shop")]];
        assert_eq!(identity(good).unwrap().flush_lsn, Lsn::from(16));
        for bad in [vec![], vec![vec![]], vec![vec![text("7"), None, text("0/10"), text("shop")]]] {
            assert_eq!(identity(bad), None);
        }
        assert_eq!(created_slot(vec![vec![text("s"), text("x"), None, None]]), None);
        assert_eq!(milliseconds(&[vec![text("60000")]]), Some(Duration::from_secs(60)));
        assert_eq!(milliseconds(&[]), None);
    }
}
