//! Column types: how values are read, and which types a column may have.
//!
//! pgoutput sends a value in binary format where its type has one. For the types listed here that format is known. A
//! domain has the format of its base type, which pgoutput announces and the catalog contains. For any other type that
//! is not built in, such as an enum or a type of an extension, the stream does not describe the binary format, so its
//! values are read in text format: a stream of a table with such a column is opened without `binary`.

use std::fmt;

/// A column's type; for a domain, its base type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    Uuid,
    Bytea,
    /// `bytea` in text format: `\x` and two hexadecimal digits per byte.
    Hex,
    Json,
    Jsonb,
    /// `text`, `varchar`, `char(n)` or `name`: the binary format is the text itself.
    Text,
    TimestampTz,
    /// Not built in: an enum, citext, or another user-defined type.
    Custom(String),
    /// Any other built-in type.
    Other(String),
}

impl ColumnType {
    /// From the name of the type, or of a domain's base type. `namespace` is empty for `pg_catalog`, as in pgoutput's
    /// Type message.
    pub fn named(namespace: &str, name: &str) -> ColumnType {
        match (namespace, name) {
            ("", "uuid") => ColumnType::Uuid,
            ("", "bytea") => ColumnType::Bytea,
            ("", "json") => ColumnType::Json,
            ("", "jsonb") => ColumnType::Jsonb,
            ("", "text" | "varchar" | "bpchar" | "name") => ColumnType::Text,
            ("", "timestamptz") => ColumnType::TimestampTz,
            ("", other) => ColumnType::Other(other.to_owned()),
            (namespace, name) => ColumnType::Custom(format!("{namespace}.{name}")),
        }
    }

    /// From an OID that pgoutput does not announce: built-in types, whose OIDs are fixed in `pg_type.dat`.
    pub fn built_in(oid: u32) -> ColumnType {
        match oid {
            2950 => ColumnType::Uuid,
            17 => ColumnType::Bytea,
            114 => ColumnType::Json,
            3802 => ColumnType::Jsonb,
            19 | 25 | 1042 | 1043 => ColumnType::Text,
            1184 => ColumnType::TimestampTz,
            other => ColumnType::Other(format!("with OID {other}")),
        }
    }

    /// The type as seen in a stream with values in text format.
    pub fn in_text_form(self) -> ColumnType {
        match self {
            ColumnType::Bytea => ColumnType::Hex,
            ColumnType::Jsonb => ColumnType::Json,
            other => other,
        }
    }

    /// Whether its values are text that can be read as it is.
    pub fn is_text(&self) -> bool {
        matches!(self, ColumnType::Text | ColumnType::Custom(_))
    }

    /// Whether its values are JSON, or text that may be JSON.
    pub fn is_document(&self) -> bool {
        self.is_json() || *self == ColumnType::Text
    }

    pub fn is_json(&self) -> bool {
        matches!(self, ColumnType::Json | ColumnType::Jsonb)
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnType::Uuid => "uuid",
            ColumnType::Bytea | ColumnType::Hex => "bytea",
            ColumnType::Json => "json",
            ColumnType::Jsonb => "jsonb",
            ColumnType::Text => "text",
            ColumnType::TimestampTz => "timestamptz",
            ColumnType::Custom(name) | ColumnType::Other(name) => name,
        })
    }
}
