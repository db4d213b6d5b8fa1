//! Errors and notices of the server.

use std::fmt;

use crate::SqlState;
use crate::wire::{Reader, WireError};

/// Distinct notices kept until they are taken; a server that sends many must not fill the memory.
const MAX_NOTICES: usize = 256;

/// Longest text kept of an error or notice.
const MAX_TEXT_BYTES: usize = 8 * 1024;

/// An error sent by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerError {
    /// The SQLSTATE.
    pub code: SqlState,
    /// `ERROR`, `FATAL` (ends the connection) or `PANIC` (ends the server), never translated.
    pub severity: String,
    /// The server's primary message, in its language.
    pub message: String,
    /// The detail message.
    pub detail: Option<String>,
    /// The server's hint.
    pub hint: Option<String>,
}

impl ServerError {
    /// The process that holds the slot, for [`SqlState::OBJECT_IN_USE`].
    ///
    /// The protocol has no field for it, so it is parsed from the message: the last number in it, which holds for the
    /// server's translations, too.
    pub fn holder(&self) -> Option<u32> {
        if self.code != SqlState::OBJECT_IN_USE {
            return None;
        }
        self.message.split(|c: char| !c.is_ascii_digit()).rfind(|run| !run.is_empty())?.parse().ok()
    }

    /// Whether a connection is rejected for a setting of its startup message: PgBouncer reports a protocol violation,
    /// other poolers an unsupported feature, and an older PostgreSQL does not know the setting.
    pub(crate) fn refuses_settings(&self) -> bool {
        [SqlState::PROTOCOL_VIOLATION, SqlState::FEATURE_NOT_SUPPORTED, SqlState::UNDEFINED_OBJECT]
            .contains(&self.code)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL says: {} {}: {}", self.severity, self.code, self.message)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, " ({more})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// A notice of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// `WARNING`, `NOTICE`, `INFO`, …, never translated.
    pub severity: String,
    /// The SQLSTATE.
    pub code: SqlState,
    /// The text, in the server's language.
    pub message: String,
    /// The detail message.
    pub detail: Option<String>,
    /// The server's hint.
    pub hint: Option<String>,
    /// The source file of the server that reports it; not all servers send it.
    source_file: Option<String>,
}

/// The setting that makes a walsender wait for standbys (PostgreSQL 17 and newer). Names of settings are not translated.
const STANDBY_SLOTS: &str = "synchronized_standby_slots";

impl Notice {
    /// Whether this is PostgreSQL 18's "skipped loading publication": the publication did not exist at this point of
    /// the stream, and **changes are silently left out**. Stop and repair the publication.
    ///
    /// Recognised by severity, code and the reporting source file, because the text is translated. The code alone also
    /// stands for a standby that a stream waits for; for an unknown source file the worse case is assumed.
    pub fn skipped_publication(&self) -> bool {
        let from_plugin = self.source_file.as_deref().is_none_or(|file| file == "pgoutput.c");
        self.severity == "WARNING"
            && self.code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
            && from_plugin
            && !self.waits_for_standby()
    }

    /// Whether the server reports that it holds the stream back until standbys have received the same WAL: one of the
    /// slots in `synchronized_standby_slots` has no reader, is invalidated, or does not exist. No changes are left out.
    pub fn waits_for_standby(&self) -> bool {
        self.severity == "WARNING" && self.message.contains(STANDBY_SLOTS)
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, " ({more})")?;
        }
        Ok(())
    }
}

/// The notices not yet taken: each distinct one once, in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Notices(Vec<Notice>);

impl Notices {
    pub(crate) fn receive(&mut self, body: &[u8]) -> Result<(), WireError> {
        let Fields { severity, code, message, detail, hint, source_file } = Fields::parse(body)?;
        let notice = Notice { severity, code, message, detail, hint, source_file };
        // A walsender repeats its warning for every transaction.
        if self.0.len() < MAX_NOTICES && !self.0.contains(&notice) {
            self.0.push(notice);
        }
        Ok(())
    }

    pub(crate) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.0)
    }
}

pub(crate) fn server_error(body: &[u8]) -> Result<ServerError, WireError> {
    let Fields { severity, code, message, detail, hint, .. } = Fields::parse(body)?;
    Ok(ServerError { code, severity, message, detail, hint })
}

/// The fields of an ErrorResponse or NoticeResponse that are used here.
struct Fields {
    severity: String,
    code: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    source_file: Option<String>,
}

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields {
            severity: String::new(),
            code: SqlState::UNKNOWN,
            message: String::new(),
            detail: None,
            hint: None,
            source_file: None,
        };
        let mut reader = Reader::new(body);
        loop {
            let kind = reader.u8()?;
            if kind == 0 {
                return reader.finish().map(|()| fields);
            }
            // Before the encoding is agreed on (a failed authentication) the text may be in any.
            let value = reader.cstr()?;
            let text = || String::from_utf8_lossy(value.get(..MAX_TEXT_BYTES).unwrap_or(value)).into_owned();
            match kind {
                b'V' => fields.severity = text(),
                // Translated; poolers send only this one.
                b'S' if fields.severity.is_empty() => fields.severity = text(),
                b'C' => fields.code = SqlState::parse(value),
                b'M' => fields.message = text(),
                b'D' => fields.detail = Some(text()),
                b'H' => fields.hint = Some(text()),
                b'F' => fields.source_file = Some(text()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(fields: &[(u8, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, text) in fields {
            body.push(*kind);
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        body
    }

    fn in_use(message: &str) -> ServerError {
        server_error(&body(&[(b'V', "ERROR"), (b'C', "55006"), (b'M', message)])).unwrap()
    }

    #[test]
    fn the_holder_of_a_slot_is_read_in_any_language() {
        assert_eq!(in_use("replication slot \"s42\" is active for PID 815").holder(), Some(815));
        assert_eq!(in_use("le slot « s42 » est actif pour le PID 815").holder(), Some(815));
        assert_eq!(in_use("レプリケーションスロット\"s42\"はPID815で使用中です").holder(), Some(815));
        assert_eq!(in_use("busy").holder(), None);
    }

    #[test]
    fn an_error_says_all_it_knows() {
        let error = server_error(&body(&[
            (b'S', "FEHLER"),
            (b'V', "ERROR"),
            (b'C', "42501"),
            (b'M', "permission denied"),
            (b'H', "Grant it."),
            (b'F', "acl.c"),
        ]));
        let text = error.unwrap().to_string();
        assert_eq!(text, "PostgreSQL says: ERROR 42501: permission denied (Grant it.)");
    }

    fn notice(code: &str, message: &str, file: Option<&str>) -> Notice {
        let mut fields = vec![(b'V', "WARNING"), (b'C', code), (b'M', message)];
        fields.extend(file.map(|file| (b'F', file)));
        let mut notices = Notices::default();
        notices.receive(&body(&fields)).unwrap();
        notices.take().remove(0)
    }

    #[test]
    fn a_stream_that_waits_for_a_standby_leaves_nothing_out() {
        let skipped = |notice: &Notice| (notice.skipped_publication(), notice.waits_for_standby());
        let text = "Laden der Publikation »p« übersprungen";
        assert_eq!(skipped(&notice("55000", text, Some("pgoutput.c"))), (true, false));
        assert_eq!(skipped(&notice("55000", text, None)), (true, false), "of an unknown part");
        assert_eq!(skipped(&notice("55000", "anything", Some("slot.c"))), (false, false));
        let text = "Replikations-Slot »s«, angegeben im Parameter »synchronized_standby_slots«, …";
        for (code, file) in [("55000", Some("slot.c")), ("55000", None), ("22023", Some("slot.c"))] {
            assert_eq!(skipped(&notice(code, text, file)), (false, true), "{code} {file:?}");
        }
    }

    #[test]
    fn a_pooler_names_its_severity_in_the_other_field() {
        let error = server_error(&body(&[(b'S', "FATAL"), (b'C', "08P01"), (b'M', "no")])).unwrap();
        assert_eq!(error.to_string(), "PostgreSQL says: FATAL 08P01: no");
        assert!(error.refuses_settings());
    }

    #[test]
    fn repeated_notices_are_kept_once_and_a_flood_is_bounded() {
        let mut notices = Notices::default();
        for n in 0..10_000 {
            let text = format!("notice {}", n / 2);
            notices.receive(&body(&[(b'V', "WARNING"), (b'C', "55000"), (b'M', &text)])).unwrap();
        }
        let taken = notices.take();
        assert_eq!(taken.len(), MAX_NOTICES);
        assert!(taken[0].skipped_publication() && taken[0] != taken[1]);
        assert!(notices.take().is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = server_error(&bytes);
        }
    }
}
