//! One outbox row, as it stands in an Insert message or in the answer to a query: values have the same form in both.
//!
//! In the stream columns are found by name in the Relation message that precedes the rows, never in the catalog,
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
    /// The table lacks a column.
    #[error("the outbox table has no column '{0}'; its columns are described in docs/OUTBOX.md")]
    NoColumn(String),
    /// A column has a type whose wire form is not what a consumer could read.
    #[error("column '{column}' of the outbox table has type {found}, but the relay reads {allowed} there")]
    Type {
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A column that must have a value is NULL.
    #[error("column '{0}' is NULL")]
    Null(&'static str),
    /// A value is not what its column's type promises.
    #[error("column '{0}' has a value that cannot be read")]
    Malformed(&'static str),
    /// A value is larger than any record may be, and was left where it is.
    #[error("column '{column}' has {bytes} bytes, more than any record may have")]
    Oversized {
        /// Its column.
        column: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A value is none that an attribute of a CloudEvent may have.
    #[error("column '{column}' has a value that CloudEvents do not allow there: it has to be {allowed}")]
    Attribute {
        /// The column.
        column: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
    /// The row does not have the columns its relation announced.
    #[error("the row has {found} columns, its table has {expected}")]
    ColumnCount {
        /// Columns of the table.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
}

/// What a column is to the relay.
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

/// How to read rows of the outbox table: made from each Relation message, and for each query.
#[derive(Debug)]
pub struct Layout {
    names: Vec<String>,
    columns: Vec<(Role, ColumnType)>,
    /// Index of the column that selects the topic.
    route_by: usize,
    /// Media type of the payload, where its column's type tells.
    content_type: Option<&'static str>,
    /// A larger value in text form is too large, as it is for the stream where it is in binary form.
    largest_value: usize,
}

/// An outbox row; texts borrow from the message.
#[derive(Debug)]
pub struct OutboxRow<'a> {
    /// Event id.
    pub id: EventId<'a>,
    /// Kafka key.
    pub key: Option<Cow<'a, [u8]>>,
    /// Event type.
    pub event_type: &'a str,
    /// Value of the routing column.
    pub route_by: Option<&'a str>,
    /// Value of the record; `None` is a tombstone.
    pub payload: Option<Cow<'a, [u8]>>,
    /// Extra headers as JSON text.
    pub headers: Option<&'a [u8]>,
    /// What describes the event besides.
    pub attributes: Attributes<'a>,
    /// Time of writing.
    pub occurred_at: Option<PgTime>,
}

/// Attributes that an event may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// What the event is about.
    pub subject: Option<&'a str>,
    /// URI of the payload's schema.
    pub data_schema: Option<&'a str>,
    /// Trace context.
    pub traceparent: Option<&'a str>,
    /// Trace context.
    pub tracestate: Option<&'a str>,
}

/// An event id: usually a uuid, as text whatever its wire form.
#[derive(Debug)]
pub enum EventId<'a> {
    /// From a uuid column in binary form.
    Uuid([u8; 36]),
    /// From any other column.
    Text(&'a [u8]),
}

impl EventId<'_> {
    /// The id as text.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            EventId::Uuid(text) => text,
            EventId::Text(text) => text,
        }
    }
}

impl Layout {
    /// Finds the columns of the outbox table among `columns`, names with types; `route_by` names the column that
    /// selects the topic.
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
                // What JSON is, its type says.
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

    /// The same for a stream that has values in text form, where bytes take two digits each.
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

    /// Whether a column has a type that is read in text form only.
    pub fn needs_text(&self) -> bool {
        self.columns.iter().any(|(_, kind)| matches!(kind, ColumnType::Custom(_)))
    }

    /// Whether `column` is the one that selects the topic.
    pub fn routes_by(&self, column: &str) -> bool {
        self.names.get(self.route_by).is_some_and(|name| name == column)
    }

    /// The text of one column of a row; `None` if there is no such column, or no text in it.
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

    /// Reads what can be read of a row that [`Layout::read`] refuses.
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

/// Whether the relay reads the column of that name, besides the one that selects the topic.
pub fn is_read(name: &str) -> bool {
    role(name) != Role::Ignored
}

/// What the column that selects the topic is called in errors.
const ROUTING_COLUMN: &str = "routing column";

/// Media type of JSON.
pub const JSON_MEDIA_TYPE: &str = "application/json";

/// What a text column may be, for an error.
const TEXT: &str =
    "text, varchar, char(n), name, an enum, or the text of a type that is not PostgreSQL's own";

/// What a column in that role may be, if values of its type cannot be read there.
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

fn role(name: &str) -> Role {
    match name {
        column::ID => Role::Id,
        column::AGGREGATE_TYPE => Role::AggregateType,
        column::AGGREGATE_ID => Role::AggregateId,
        column::TYPE => Role::Type,
        column::PAYLOAD => Role::Payload,
        column::HEADERS => Role::Headers,
        column::TRACEPARENT => Role::TraceParent,
        column::TRACESTATE => Role::TraceState,
        column::SUBJECT => Role::Subject,
        column::DATA_SCHEMA => Role::DataSchema,
        column::DATA_CONTENT_TYPE => Role::DataContentType,
        column::OCCURRED_AT => Role::OccurredAt,
        _ => Role::Ignored,
    }
}

/// A row as far as it could be read; texts borrow from the message.
#[derive(Debug, Default)]
pub struct PartialRow<'a> {
    /// Event id.
    pub id: Option<EventId<'a>>,
    /// Kafka key.
    pub key: Option<Cow<'a, [u8]>>,
    /// Event type.
    pub event_type: Option<&'a str>,
    /// Value of the routing column.
    pub route_by: Option<&'a str>,
    /// Value of the record.
    pub payload: Option<Cow<'a, [u8]>>,
    /// Extra headers as JSON text.
    pub headers: Option<&'a [u8]>,
    /// What describes the event besides.
    pub attributes: Attributes<'a>,
    /// Time of writing.
    pub occurred_at: Option<PgTime>,
    /// Columns that have a value which cannot be read, cannot be in a record, or was too large to be read.
    pub unreadable: Vec<&'static str>,
    /// How many bytes the values have that were too large.
    pub left_out: usize,
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
            left_out: 0,
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

    /// Takes note of a value that is not there.
    fn on_missing(&mut self, error: &RowError) {
        match error {
            RowError::Malformed(column) | RowError::Attribute { column, .. } => self.unreadable.push(column),
            RowError::Oversized { column, bytes } => {
                self.unreadable.push(column);
                self.left_out += bytes;
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
