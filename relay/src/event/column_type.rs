//! What the relay knows of a column's type: how its values are read, and in which roles.
//!
//! pgoutput sends a value in binary form where its type has one. For the types named here that form is known. A domain
//! has the form of the type it is based on, which pgoutput announces and the catalog tells. For any other type that
//! is not PostgreSQL's own, such as an enum or an extension's, nothing in the stream tells its binary form, so its values
//! are read in text form: a stream of a table with such a column is opened without binary values.

use std::fmt;

/// A column's type; that of a domain is the one it is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// `uuid`.
    Uuid,
    /// `bytea`.
    Bytea,
    /// `bytea` in text form: `\x` and two digits a byte.
    Hex,
    /// `json`.
    Json,
    /// `jsonb`.
    Jsonb,
    /// `text`, `varchar`, `char(n)` or `name`: the binary form is the text itself.
    Text,
    /// `timestamptz`.
    TimestampTz,
    /// Not PostgreSQL's own: an enum, citext, or another type that a person or an extension made.
    Custom(String),
    /// Any other type of PostgreSQL's own.
    Other(String),
}

impl ColumnType {
    /// From the name of the type, or of the one that a domain is based on. `namespace` is empty for `pg_catalog`, as in
    /// pgoutput's Type message.
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

    /// From an OID that pgoutput does not announce: of PostgreSQL's own types, whose OIDs are fixed in `pg_type.dat`.
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

    /// What it is in a stream that has values in text form.
    pub fn in_text_form(self) -> ColumnType {
        match self {
            ColumnType::Bytea => ColumnType::Hex,
            ColumnType::Jsonb => ColumnType::Json,
            other => other,
        }
    }

    /// Whether its values are text, to be read as they are.
    pub fn is_text(&self) -> bool {
        matches!(self, ColumnType::Text | ColumnType::Custom(_))
    }

    /// Whether its values are a document: JSON, or text that may be JSON.
    pub fn is_document(&self) -> bool {
        self.is_json() || *self == ColumnType::Text
    }

    /// Whether its values are JSON.
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
