//! One outbox row, from an Insert message of the stream or from the result of a query: values have the same format in
//! both.
//!
//! Columns of the stream are matched by name with the Relation message that precedes the rows, never with the catalog,
//! which may already show a later schema. Only the five columns of Debezium's outbox table are required.

use std::borrow::Cow;

use outbox::column;
use pg_replication::PgTime;
use pg_replication::pgoutput::Column;

use super::column_type::ColumnType;
use super::value;

/// Why a row or its table cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("the outbox table has no column '{0}'; its columns are described in docs/OUTBOX.md")]
    NoColumn(String),
    /// A column has a type that would not give consumers a readable value.
    #[error("column '{column}' of the outbox table has type {found}, but the relay reads {allowed} there")]
    Type { column: String, found: String, allowed: &'static str },
    #[error("column '{0}' is NULL")]
    Null(&'static str),
    #[error("column '{0}' has a value that cannot be read")]
    Malformed(&'static str),
    #[error("column '{column}' has {bytes} bytes, more than any record may have")]
    Oversized { column: &'static str, bytes: usize },
    #[error("column '{column}' has a value that CloudEvents does not allow there: it must be {allowed}")]
    Attribute { column: &'static str, allowed: &'static str },
    /// The row does not match the columns its Relation message announced.
    #[error("the row has {found} columns, but its table has {expected}")]
    ColumnCount { expected: usize, found: usize },
}

/// What the relay uses a column for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Id,
    AggregateType,
    AggregateId,
    Type,
    Payload,
    Headers,
    TraceParent,
    TraceState,
    Subject,
    DataSchema,
    DataContentType,
    OccurredAt,
    Ignored,
}

/// How to read rows of the outbox table: built from each Relation message, and for each query.
#[derive(Debug)]
pub struct Layout {
    names: Vec<String>,
    columns: Vec<(Role, ColumnType)>,
    /// Index of the column that selects the topic.
    route_by: usize,
    /// Media type of the payload, where the column's type determines it.
    content_type: Option<&'static str>,
    /// Values in text format above this size are rejected, as the stream rejects those in binary format.
    largest_value: usize,
}

/// An outbox row; texts borrow from the message.
#[derive(Debug)]
pub struct OutboxRow<'a> {
    pub id: EventId<'a>,
    pub key: Option<Cow<'a, [u8]>>,
    pub event_type: &'a str,
    /// Value of the column that selects the topic.
    pub route_by: Option<&'a str>,
    /// Value of the record; `None` is a tombstone.
    pub payload: Option<Cow<'a, [u8]>>,
    /// Extra headers as JSON text.
    pub headers: Option<&'a [u8]>,
    pub attributes: Attributes<'a>,
    pub occurred_at: Option<PgTime>,
}

impl OutboxRow<'_> {
    /// The bytes that choose the partition: the key, or the id of an event without one.
    pub fn partition_key(&self) -> &[u8] {
        self.key.as_deref().unwrap_or_else(|| self.id.as_bytes())
    }
}

/// CloudEvents attributes that an event may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    pub content_type: Option<&'a str>,
    pub subject: Option<&'a str>,
    pub data_schema: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    pub tracestate: Option<&'a str>,
}

/// An event id: usually a uuid; text whatever its wire format.
#[derive(Debug)]
pub enum EventId<'a> {
    /// From a uuid column in binary format.
    Uuid([u8; 36]),
    /// From any other column.
    Text(&'a [u8]),
}

impl EventId<'_> {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            EventId::Uuid(text) => text,
            EventId::Text(text) => text,
        }
    }
}

impl Layout {
    /// Finds the columns of the outbox table among `columns`, which are names with types; `route_by` names the column
    /// that selects the topic.
    pub fn new<'a>(
        columns: impl IntoIterator<Item = (&'a str, ColumnType)>,
        route_by: &str,
    ) -> Result<Layout, RowError> {
        let (names, types): (Vec<&str>, Vec<ColumnType>) = columns.into_iter().unzip();
        let find = |name: &str| {
            names.iter().position(|column| *column == name).ok_or_else(|| RowError::NoColumn(name.to_owned()))
        };
        for required in [column::ID, column::AGGREGATE_TYPE, column::AGGREGATE_ID, column::TYPE] {
            find(required)?;
        }
        let payload = find(column::PAYLOAD)?;
        let is_json = types.get(payload).is_some_and(ColumnType::is_json);
        let route_by = find(route_by)?;
        let mut columns = Vec::with_capacity(names.len());
        for (index, (name, kind)) in names.iter().zip(types).enumerate() {
            let role = match role(name) {
                // The column's type already says that the payload is JSON.
                Role::DataContentType if is_json => Role::Ignored,
                role => role,
            };
            let allowed =
                if index == route_by && !kind.is_text() { Some(TEXT) } else { allowed(role, &kind) };
            if let Some(allowed) = allowed {
                return Err(RowError::Type { column: (*name).to_owned(), found: kind.to_string(), allowed });
            }
            columns.push((role, kind));
        }
        let names = names.into_iter().map(str::to_owned).collect();
        let content_type = is_json.then_some(JSON_MEDIA_TYPE);
        Ok(Layout { names, columns, route_by, content_type, largest_value: usize::MAX })
    }

    /// The same for a stream with values in text format, where bytea takes two digits per byte.
    #[must_use]
    pub fn in_text_form(mut self, largest_value: usize) -> Layout {
        self.columns = self.columns.into_iter().map(|(role, kind)| (role, kind.in_text_form())).collect();
        Layout { largest_value, ..self }
    }

    fn within_limit<'a>(&self, value: Column<'a>, kind: &ColumnType) -> Column<'a> {
        match value {
            Column::Text(text) if value::size(text.len(), kind) > self.largest_value => {
                Column::Oversized(text.len())
            }
            other => other,
        }
    }

    /// Whether a column has a type that can only be read in text format.
    pub fn needs_text(&self) -> bool {
        self.columns.iter().any(|(_, kind)| matches!(kind, ColumnType::Custom(_)))
    }

    /// Whether `column` selects the topic.
    pub fn routes_by(&self, column: &str) -> bool {
        self.names.get(self.route_by).is_some_and(|name| name == column)
    }

    /// The text of one column of a row; `None` if there is no such column, or its value is not text.
    pub fn text<'a>(&self, values: impl IntoIterator<Item = Column<'a>>, column: &str) -> Option<&'a str> {
        let index = self.names.iter().position(|name| name == column)?;
        let (_, kind) = self.columns.get(index).filter(|(_, kind)| kind.is_text())?;
        value::text(self.within_limit(values.into_iter().nth(index)?, kind), ROUTING_COLUMN).ok()?
    }

    /// Reads one row, given its values in the order of the columns.
    pub fn read<'a>(&self, values: impl IntoIterator<Item = Column<'a>>) -> Result<OutboxRow<'a>, RowError> {
        let mut row = self.blank();
        let mut found = 0;
        for (index, value) in values.into_iter().enumerate() {
            found += 1;
            let Some((role, kind)) = self.columns.get(index) else { continue };
            let value = self.within_limit(value, kind);
            if index == self.route_by {
                row.route_by = value::text(value, ROUTING_COLUMN)?;
            }
            row.set(*role, kind, value)?;
        }
        if found != self.columns.len() {
            return Err(RowError::ColumnCount { expected: self.columns.len(), found });
        }
        row.finish()
    }

    /// Reads as much as possible of a row that [`Layout::read`] rejects.
    pub fn decode_lenient<'a>(&self, values: impl IntoIterator<Item = Column<'a>>) -> PartialRow<'a> {
        let mut row = self.blank();
        for (index, (value, (role, kind))) in values.into_iter().zip(&self.columns).enumerate() {
            let value = self.within_limit(value, kind);
            if index == self.route_by {
                match value::text(value, ROUTING_COLUMN) {
                    Ok(text) => row.route_by = text,
                    Err(error) => row.on_missing(&error),
                }
            }
            if let Err(error) = row.set(*role, kind, value) {
                row.on_missing(&error);
            }
        }
        row
    }

    fn blank<'a>(&self) -> PartialRow<'a> {
        let attributes = Attributes { content_type: self.content_type, ..Attributes::default() };
        PartialRow { attributes, ..PartialRow::default() }
    }
}

/// The columns that the relay reads, apart from the one that selects the topic.
const ROLES: [(&str, Role); 12] = [
    (column::ID, Role::Id),
    (column::AGGREGATE_TYPE, Role::AggregateType),
    (column::AGGREGATE_ID, Role::AggregateId),
    (column::TYPE, Role::Type),
    (column::PAYLOAD, Role::Payload),
    (column::HEADERS, Role::Headers),
    (column::TRACEPARENT, Role::TraceParent),
    (column::TRACESTATE, Role::TraceState),
    (column::SUBJECT, Role::Subject),
    (column::DATA_SCHEMA, Role::DataSchema),
    (column::DATA_CONTENT_TYPE, Role::DataContentType),
    (column::OCCURRED_AT, Role::OccurredAt),
];

/// The names of the columns that the relay reads, apart from the one that selects the topic.
pub fn columns_read<'a>() -> impl Iterator<Item = &'a str> {
    ROLES.iter().map(|(name, _)| *name)
}

/// Whether the relay reads the column with this name, apart from the one that selects the topic.
pub fn is_read(name: &str) -> bool {
    role(name) != Role::Ignored
}

fn role(name: &str) -> Role {
    ROLES.iter().find(|(known, _)| *known == name).map_or(Role::Ignored, |(_, role)| *role)
}

/// The name of the column that selects the topic, in errors.
const ROUTING_COLUMN: &str = "routing column";

pub const JSON_MEDIA_TYPE: &str = "application/json";

/// Types allowed for a text column, for error messages.
const TEXT: &str =
    "text, varchar, char(n), name, an enum, or the text of a type that is not PostgreSQL's own";

/// The types allowed in that role, if values of this type cannot be read there.
fn allowed(role: Role, kind: &ColumnType) -> Option<&'static str> {
    let (readable, allowed) = match role {
        Role::Id => (kind.is_text() || *kind == ColumnType::Uuid, "uuid and text of any kind"),
        Role::AggregateId => (
            kind.is_text() || matches!(kind, ColumnType::Uuid | ColumnType::Bytea),
            "text of any kind, uuid and bytea",
        ),
        Role::Payload => (
            kind.is_document() || *kind == ColumnType::Bytea,
            "jsonb, json, text, varchar, char(n), name and bytea",
        ),
        Role::Headers => (kind.is_document(), "jsonb, json, text, varchar, char(n) and name"),
        Role::Type
        | Role::TraceParent
        | Role::TraceState
        | Role::Subject
        | Role::DataSchema
        | Role::DataContentType => (kind.is_text(), TEXT),
        Role::AggregateType | Role::OccurredAt | Role::Ignored => (true, ""),
    };
    (!readable).then_some(allowed)
}

/// The readable part of a row; texts borrow from the message.
#[derive(Debug, Default)]
pub struct PartialRow<'a> {
    pub id: Option<EventId<'a>>,
    pub key: Option<Cow<'a, [u8]>>,
    pub event_type: Option<&'a str>,
    pub route_by: Option<&'a str>,
    pub payload: Option<Cow<'a, [u8]>>,
    pub headers: Option<&'a [u8]>,
    pub attributes: Attributes<'a>,
    pub occurred_at: Option<PgTime>,
    /// Columns whose value cannot be read, is not allowed in a record, or was too large to read.
    pub unreadable: Vec<&'static str>,
    /// Total size of the values that were too large.
    pub omitted_bytes: usize,
}

impl<'a> From<OutboxRow<'a>> for PartialRow<'a> {
    fn from(row: OutboxRow<'a>) -> Self {
        PartialRow {
            id: Some(row.id),
            key: row.key,
            event_type: Some(row.event_type),
            route_by: row.route_by,
            payload: row.payload,
            headers: row.headers,
            attributes: row.attributes,
            occurred_at: row.occurred_at,
            unreadable: Vec::new(),
            omitted_bytes: 0,
        }
    }
}

impl<'a> PartialRow<'a> {
    fn set(&mut self, role: Role, kind: &ColumnType, value: Column<'a>) -> Result<(), RowError> {
        let attributes = &mut self.attributes;
        match role {
            Role::Id => self.id = value::event_id(value, kind)?,
            Role::AggregateType | Role::Ignored => {}
            Role::AggregateId => self.key = value::key(value, kind)?,
            Role::Type => self.event_type = value::attribute(value, column::TYPE)?,
            Role::Payload => self.payload = value::payload(value, kind)?,
            Role::Headers => self.headers = value::json_text(value, kind, column::HEADERS)?,
            Role::TraceParent => attributes.traceparent = value::trace(value, column::TRACEPARENT)?,
            Role::TraceState => attributes.tracestate = value::trace(value, column::TRACESTATE)?,
            Role::Subject => attributes.subject = value::attribute(value, column::SUBJECT)?,
            Role::DataSchema => attributes.data_schema = value::attribute(value, column::DATA_SCHEMA)?,
            Role::DataContentType => {
                attributes.content_type = value::attribute(value, column::DATA_CONTENT_TYPE)?;
            }
            Role::OccurredAt => self.occurred_at = value::timestamp(value, kind)?,
        }
        Ok(())
    }

    /// Records that a value is missing.
    fn on_missing(&mut self, error: &RowError) {
        match error {
            RowError::Malformed(column) | RowError::Attribute { column, .. } => self.unreadable.push(column),
            RowError::Oversized { column, bytes } => {
                self.unreadable.push(column);
                self.omitted_bytes += bytes;
            }
            _ => {}
        }
    }

    fn finish(self) -> Result<OutboxRow<'a>, RowError> {
        Ok(OutboxRow {
            id: self.id.ok_or(RowError::Null(column::ID))?,
            key: self.key,
            event_type: self.event_type.ok_or(RowError::Null(column::TYPE))?,
            route_by: self.route_by,
            payload: self.payload,
            headers: self.headers,
            attributes: self.attributes,
            occurred_at: self.occurred_at,
        })
    }
}
