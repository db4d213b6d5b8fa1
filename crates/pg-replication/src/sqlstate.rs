//! SQLSTATE codes, which identify errors and notices of the server. Their texts are translated and may change; the
//! codes do not.

use std::fmt;

/// A five-character SQLSTATE (PostgreSQL documentation, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// Too many clients, or no free walsender: wait and retry.
    pub const TOO_MANY_CONNECTIONS: SqlState = SqlState(*b"53300");
    /// The slot is in use by another connection: wait and retry ([`ServerError::holder`](crate::ServerError::holder)).
    pub const OBJECT_IN_USE: SqlState = SqlState(*b"55006");
    /// As an error when streaming: the slot was invalidated. As a warning: see
    /// [`Notice::skipped_publication`](crate::Notice::skipped_publication).
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: SqlState = SqlState(*b"55000");
    /// The slot or publication does not exist.
    pub const UNDEFINED_OBJECT: SqlState = SqlState(*b"42704");
    /// The table does not exist.
    pub const UNDEFINED_TABLE: SqlState = SqlState(*b"42P01");
    /// The slot exists already.
    pub const DUPLICATE_OBJECT: SqlState = SqlState(*b"42710");
    /// The role lacks a privilege (REPLICATION, SELECT).
    pub const INSUFFICIENT_PRIVILEGE: SqlState = SqlState(*b"42501");
    /// The database does not exist.
    pub const INVALID_CATALOG_NAME: SqlState = SqlState(*b"3D000");
    /// The password is wrong.
    pub const INVALID_PASSWORD: SqlState = SqlState(*b"28P01");
    /// The role does not exist, lacks LOGIN, or pg_hba.conf rejects the connection.
    pub const INVALID_AUTHORIZATION: SqlState = SqlState(*b"28000");
    /// An administrator ended the connection; also sent at a fast shutdown.
    pub const ADMIN_SHUTDOWN: SqlState = SqlState(*b"57P01");
    /// The server restarts after one of its processes crashed.
    pub const CRASH_SHUTDOWN: SqlState = SqlState(*b"57P02");
    /// The server is starting, stopping or recovering.
    pub const CANNOT_CONNECT_NOW: SqlState = SqlState(*b"57P03");
    /// A message that violates the protocol; poolers report it for everything that they do not support.
    pub const PROTOCOL_VIOLATION: SqlState = SqlState(*b"08P01");
    /// The server does not support it.
    pub const FEATURE_NOT_SUPPORTED: SqlState = SqlState(*b"0A000");
    /// A message of the server without a code.
    pub const UNKNOWN: SqlState = SqlState(*b"XX000");

    pub(crate) fn parse(code: &[u8]) -> Self {
        match <[u8; 5]>::try_from(code) {
            Ok(code) if code.iter().all(u8::is_ascii_alphanumeric) => SqlState(code),
            _ => SqlState::UNKNOWN,
        }
    }

    /// The code as text, such as `55006`.
    pub fn as_str(&self) -> &str {
        // Always ASCII: `parse` and the constants are the only constructors.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// The first two characters: `08` connection, `28` authorisation, `53` resources, `57` operator.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("XX")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_code_and_its_class() {
        assert_eq!(SqlState::parse(b"57P01"), SqlState::ADMIN_SHUTDOWN);
        assert_eq!(SqlState::ADMIN_SHUTDOWN.class(), "57");
        assert_eq!(SqlState::parse(b"28P01").to_string(), "28P01");
    }

    #[test]
    fn anything_else_is_unknown() {
        for code in [&b""[..], b"5500", b"550066", b"\xff\xff\xff\xff\xff", b"55 06"] {
            assert_eq!(SqlState::parse(code), SqlState::UNKNOWN);
        }
    }
}
