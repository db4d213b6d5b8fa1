//! What the server reports in words: errors, and notices that ask for no answer.

use std::fmt;

use crate::SqlState;
use crate::wire::{Flaw, Reader};

/// Distinct notices kept until the owner takes them; a server that floods must not fill the memory.
const MAX_NOTICES: usize = 256;

/// Longest text kept of an error or notice.
const MAX_TEXT_BYTES: usize = 8 * 1024;

/// An error sent by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerError {
    /// What kind of error.
    pub code: SqlState,
    /// `ERROR`, `FATAL` (the connection is gone) or `PANIC` (the server is), never translated.
    pub severity: String,
    /// The server's primary message, in its language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl ServerError {
    /// The process that holds the slot, for [`SqlState::OBJECT_IN_USE`].
    ///
    /// The protocol has no field for it, so it is read from the message: the last number in it, which holds for
    /// the server's translations too.
    pub fn holder(&self) -> Option<u32> {
        if self.code != SqlState::OBJECT_IN_USE {
            return None;
        }
        self.message.split(|c: char| !c.is_ascii_digit()).rfind(|run| !run.is_empty())?.parse().ok()
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

/// Something the server wants to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// `WARNING`, `NOTICE`, `INFO`, …, never translated.
    pub severity: String,
    /// What kind of notice.
    pub code: SqlState,
    /// The text, in the server's language.
    pub message: String,
}

impl Notice {
    /// Whether this is PostgreSQL 18's "skipped loading publication": the publication did not exist where the
    /// stream is, and **changes are being left out in silence**. Stop and repair the publication.
    ///
    /// Told by severity and code, because the text is translated.
    pub fn skipped_publication(&self) -> bool {
        self.severity == "WARNING" && self.code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
    }
}

/// The notices not yet taken: each distinct one once, in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct Notices(Vec<Notice>);

impl Notices {
    pub(crate) fn receive(&mut self, body: &[u8]) -> Result<(), Flaw> {
        let Fields { severity, code, message, .. } = Fields::parse(body)?;
        let notice = Notice { severity, code, message };
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

pub(crate) fn server_error(body: &[u8]) -> Result<ServerError, Flaw> {
    let Fields { severity, code, message, detail, hint } = Fields::parse(body)?;
    Ok(ServerError { code, severity, message, detail, hint })
}

/// The fields of an ErrorResponse or NoticeResponse that are of use here.
struct Fields {
    severity: String,
    code: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, Flaw> {
        let mut fields = Fields {
            severity: String::new(),
            code: SqlState::UNKNOWN,
            message: String::new(),
            detail: None,
            hint: None,
        };
        let mut reader = Reader::new(body);
        loop {
            let kind = reader.u8()?;
            if kind == 0 {
                return reader.finish().map(|()| fields);
            }
            // Before the encoding is agreed upon (a refused login) the text may be in any.
            let value = reader.cstr()?;
            let text = || String::from_utf8_lossy(value.get(..MAX_TEXT_BYTES).unwrap_or(value)).into_owned();
            match kind {
                b'V' => fields.severity = text(),
                b'C' => fields.code = SqlState::parse(value),
                b'M' => fields.message = text(),
                b'D' => fields.detail = Some(text()),
                b'H' => fields.hint = Some(text()),
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
