//! One outbox row, as it stands in an Insert message or in the answer to a query: values have the same form in both.
//!
//! In the stream columns are found by name in the Relation message that precedes the rows, never in the catalog,
//! which may already show a later schema. Only the five columns of Debezium's outbox table are required.

use std::borrow::Cow;

use outbox::column;
use pg_replication::PgTime;
use pg_replication::pgoutput::Column;
use uuid::Uuid;

/// Type OIDs of `pg_type.dat`: fixed for ever.
mod oid {
    pub const BYTEA: u32 = 17;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;
    pub const JSON: u32 = 114;
    /// Types whose binary form is the text itself: "char", name, text, bpchar, varchar.
    pub const TEXTS: [u32; 5] = [18, 19, 25, 1042, 1043];
    /// From here on types are somebody's own: enums, domains, citext. Their binary form is that of another type.
    pub const FIRST_OWN: u32 = 16_384;
}

/// The first byte of jsonb's binary form: its version.
const JSONB_VERSION: u8 = 1;

/// Why a row or its table cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The table lacks a column.
    #[error("the outbox table has no column '{0}'; its columns are described in docs/OUTBOX.md")]
    NoColumn(String),
    /// A column has a type whose wire form is not what a consumer could read.
    #[error(
        "column '{0}' of the outbox table has a type that the relay does not read; docs/OUTBOX.md lists the types"
    )]
    Type(String),
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
    OccurredAt,
    Ignored,
}

/// How to read rows of the outbox table: made from each Relation message, and for each query.
#[derive(Debug)]
pub struct Layout {
    names: Vec<String>,
    /// Role and type OID of each column.
    columns: Vec<(Role, u32)>,
    /// Index of the column that selects the topic.
    route_by: usize,
    payload_type: u32,
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
    /// Trace context.
    pub traceparent: Option<&'a str>,
    /// Trace context.
    pub tracestate: Option<&'a str>,
    /// Time of writing.
    pub occurred_at: Option<PgTime>,
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
    /// Finds the columns of the outbox table among `columns`, names with type OIDs; `route_by` names the column that
    /// selects the topic.
    pub fn new<'a>(
        columns: impl IntoIterator<Item = (&'a str, u32)>,
        route_by: &str,
    ) -> Result<Layout, RowError> {
        let (names, types): (Vec<&str>, Vec<u32>) = columns.into_iter().unzip();
        let find = |name: &str| {
            names.iter().position(|column| *column == name).ok_or_else(|| RowError::NoColumn(name.to_owned()))
        };
        for required in [column::ID, column::AGGREGATE_TYPE, column::AGGREGATE_ID, column::TYPE] {
            find(required)?;
        }
        let payload = find(column::PAYLOAD)?;
        let columns: Vec<(Role, u32)> = names.iter().map(|name| role(name)).zip(types).collect();
        let route_by = find(route_by)?;
        for (index, ((role, oid), name)) in columns.iter().zip(&names).enumerate() {
            if !is_readable(*role, *oid) || (index == route_by && !is_text(*oid)) {
                return Err(RowError::Type((*name).to_owned()));
            }
        }
        let payload_type = columns.get(payload).map_or(0, |(_, oid)| *oid);
        let names = names.into_iter().map(str::to_owned).collect();
        Ok(Layout { names, columns, route_by, payload_type })
    }

    /// Media type of the payload, where its column's type tells.
    pub fn content_type(&self) -> Option<&'static str> {
        content_type(self.payload_type)
    }

    /// Whether `column` is the one that selects the topic.
    pub fn routes_by(&self, column: &str) -> bool {
        self.names.get(self.route_by).is_some_and(|name| name == column)
    }

    /// The text of one column of a row; `None` if there is no such column, or no text in it.
    pub fn text<'a>(&self, values: impl IntoIterator<Item = Column<'a>>, column: &str) -> Option<&'a str> {
        let index = self.names.iter().position(|name| name == column)?;
        text(values.into_iter().nth(index)?, ROUTING_COLUMN).ok()?
    }

    /// Reads one row, given its values in the order of the columns.
    pub fn read<'a>(&self, values: impl IntoIterator<Item = Column<'a>>) -> Result<OutboxRow<'a>, RowError> {
        let mut row = Remains::default();
        let mut found = 0;
        for (index, value) in values.into_iter().enumerate() {
            found += 1;
            let Some((role, oid)) = self.columns.get(index) else { continue };
            if index == self.route_by {
                row.route_by = text(value, ROUTING_COLUMN)?;
            }
            row.set(*role, *oid, value)?;
        }
        if found != self.columns.len() {
            return Err(RowError::ColumnCount { expected: self.columns.len(), found });
        }
        row.finish()
    }

    /// Reads what can be read of a row that [`Layout::read`] refuses.
    pub fn salvage<'a>(&self, values: impl IntoIterator<Item = Column<'a>>) -> Remains<'a> {
        let mut row = Remains::default();
        for (index, (value, (role, oid))) in values.into_iter().zip(&self.columns).enumerate() {
            if index == self.route_by {
                match text(value, ROUTING_COLUMN) {
                    Ok(text) => row.route_by = text,
                    Err(error) => row.lack(&error),
                }
            }
            if let Err(error) = row.set(*role, *oid, value) {
                row.lack(&error);
            }
        }
        row
    }
}

/// Whether the relay reads the column of that name, besides the one that selects the topic.
pub fn is_read(name: &str) -> bool {
    role(name) != Role::Ignored
}

/// What the column that selects the topic is called in errors.
const ROUTING_COLUMN: &str = "routing column";

/// Whether values of that type can be read in that role. A domain over jsonb would bring jsonb's version byte along.
/// Media type of a payload, where its column's type, by OID, tells.
pub fn content_type(payload_type: u32) -> Option<&'static str> {
    matches!(payload_type, oid::JSON | oid::JSONB).then_some("application/json")
}

/// Whether a column of the type with this OID holds bytes as they are.
pub fn is_bytes(column_type: u32) -> bool {
    column_type == oid::BYTEA
}

/// Whether values of the type with this OID have a fixed size.
pub fn is_fixed(column_type: u32) -> bool {
    matches!(column_type, oid::UUID | oid::TIMESTAMPTZ)
}

/// Bytes that a value of the type with this OID has in binary form besides its text.
pub fn bytes_besides_text(column_type: u32) -> usize {
    usize::from(column_type == oid::JSONB)
}

/// The type that a query returns when it casts a document to text: the same without jsonb's version.
pub fn read_as_text(column_type: u32) -> u32 {
    if column_type == oid::JSONB { oid::JSON } else { column_type }
}

fn is_readable(role: Role, oid: u32) -> bool {
    match role {
        Role::Id => oid == oid::UUID || is_text(oid),
        Role::AggregateId => oid == oid::UUID || oid == oid::BYTEA || is_text(oid),
        Role::Type | Role::TraceParent | Role::TraceState => is_text(oid),
        Role::Payload => oid == oid::BYTEA || is_document(oid),
        Role::Headers => is_document(oid),
        Role::AggregateType | Role::OccurredAt | Role::Ignored => true,
    }
}

/// Whether a value may be taken for text: surely, or because it is somebody's own type, an enum for example, and
/// turns out to be UTF-8.
fn is_text(oid: u32) -> bool {
    oid::TEXTS.contains(&oid) || oid >= oid::FIRST_OWN
}

fn is_document(oid: u32) -> bool {
    oid == oid::JSON || oid == oid::JSONB || oid::TEXTS.contains(&oid)
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
        column::OCCURRED_AT => Role::OccurredAt,
        _ => Role::Ignored,
    }
}

/// A row as far as it could be read; texts borrow from the message.
#[derive(Debug, Default)]
pub struct Remains<'a> {
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
    /// Trace context.
    pub traceparent: Option<&'a str>,
    /// Trace context.
    pub tracestate: Option<&'a str>,
    /// Time of writing.
    pub occurred_at: Option<PgTime>,
    /// Columns that have a value which cannot be read, or was too large to be.
    pub unreadable: Vec<&'static str>,
    /// How many bytes the values have that were too large.
    pub left_out: usize,
}

impl<'a> From<OutboxRow<'a>> for Remains<'a> {
    fn from(row: OutboxRow<'a>) -> Self {
        Remains {
            id: Some(row.id),
            key: row.key,
            event_type: Some(row.event_type),
            route_by: row.route_by,
            payload: row.payload,
            headers: row.headers,
            traceparent: row.traceparent,
            tracestate: row.tracestate,
            occurred_at: row.occurred_at,
            unreadable: Vec::new(),
            left_out: 0,
        }
    }
}

impl<'a> Remains<'a> {
    fn set(&mut self, role: Role, oid: u32, value: Column<'a>) -> Result<(), RowError> {
        match role {
            Role::Id => self.id = event_id(value, oid)?,
            Role::AggregateType | Role::Ignored => {}
            Role::AggregateId => self.key = key(value, oid)?,
            Role::Type => self.event_type = text(value, column::TYPE)?,
            Role::Payload => self.payload = payload(value, oid)?,
            Role::Headers => self.headers = json_text(value, oid, column::HEADERS)?,
            Role::TraceParent => self.traceparent = text(value, column::TRACEPARENT)?,
            Role::TraceState => self.tracestate = text(value, column::TRACESTATE)?,
            Role::OccurredAt => self.occurred_at = timestamp(value, oid)?,
        }
        Ok(())
    }

    /// Takes note of a value that is not there.
    fn lack(&mut self, error: &RowError) {
        match error {
            RowError::Malformed(column) => self.unreadable.push(column),
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
            traceparent: self.traceparent,
            tracestate: self.tracestate,
            occurred_at: self.occurred_at,
        })
    }
}

fn raw<'a>(value: Column<'a>, column: &'static str) -> Result<Option<&'a [u8]>, RowError> {
    match value {
        Column::Null | Column::Unchanged => Ok(None),
        Column::Text(bytes) | Column::Binary(bytes) => Ok(Some(bytes)),
        Column::Oversized(bytes) => Err(RowError::Oversized { column, bytes }),
    }
}

fn text<'a>(value: Column<'a>, name: &'static str) -> Result<Option<&'a str>, RowError> {
    raw(value, name)?
        .map(|bytes| std::str::from_utf8(bytes).map_err(|_| RowError::Malformed(name)))
        .transpose()
}

fn event_id<'a>(value: Column<'a>, oid: u32) -> Result<Option<EventId<'a>>, RowError> {
    match value {
        Column::Binary(bytes) if oid == oid::UUID => Ok(Some(EventId::Uuid(uuid_text(bytes, column::ID)?))),
        other => Ok(raw(other, column::ID)?.map(EventId::Text)),
    }
}

fn uuid_text(bytes: &[u8], name: &'static str) -> Result<[u8; 36], RowError> {
    let uuid = Uuid::from_slice(bytes).map_err(|_| RowError::Malformed(name))?;
    let mut text = [0; 36];
    uuid.as_hyphenated().encode_lower(&mut text);
    Ok(text)
}

/// A uuid as text, as Debezium and everybody who reads keys has it; it is the one type that costs an allocation.
fn key<'a>(value: Column<'a>, oid: u32) -> Result<Option<Cow<'a, [u8]>>, RowError> {
    let Some(bytes) = raw(value, column::AGGREGATE_ID)? else { return Ok(None) };
    if oid != oid::UUID || matches!(value, Column::Text(_)) {
        return Ok(Some(Cow::Borrowed(bytes)));
    }
    Ok(Some(Cow::Owned(uuid_text(bytes, column::AGGREGATE_ID)?.to_vec())))
}

fn json_text<'a>(value: Column<'a>, oid: u32, column: &'static str) -> Result<Option<&'a [u8]>, RowError> {
    match value {
        Column::Binary(bytes) if oid == oid::JSONB => match bytes.split_first() {
            Some((&JSONB_VERSION, json)) => Ok(Some(json)),
            _ => Err(RowError::Malformed(column)),
        },
        Column::Oversized(bytes) if oid == oid::JSONB => {
            Err(RowError::Oversized { column, bytes: bytes.saturating_sub(1) })
        }
        other => raw(other, column),
    }
}

fn payload<'a>(value: Column<'a>, oid: u32) -> Result<Option<Cow<'a, [u8]>>, RowError> {
    match value {
        Column::Text(hex) if oid == oid::BYTEA => decode_hex(hex).map(|bytes| Some(Cow::Owned(bytes))),
        other => Ok(json_text(other, oid, column::PAYLOAD)?.map(Cow::Borrowed)),
    }
}

/// bytea in text mode: `\x` and two digits a byte.
fn decode_hex(text: &[u8]) -> Result<Vec<u8>, RowError> {
    let malformed = || RowError::Malformed(column::PAYLOAD);
    let digits = text.strip_prefix(b"\\x").ok_or_else(malformed)?;
    let (pairs, odd) = digits.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(malformed());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect::<Option<_>>()
        .ok_or_else(malformed)
}

fn timestamp(value: Column<'_>, oid: u32) -> Result<Option<PgTime>, RowError> {
    let malformed = || RowError::Malformed(column::OCCURRED_AT);
    match value {
        Column::Binary(bytes) if oid == oid::TIMESTAMPTZ => {
            let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| malformed())?;
            Ok(Some(PgTime::from_micros(i64::from_be_bytes(bytes))).filter(|time| has_year(*time)))
        }
        // Another type under this name: not ours to interpret; the commit time stands in.
        Column::Binary(_) | Column::Oversized(_) => Ok(None),
        other => text(other, column::OCCURRED_AT)?
            .map(|text| parse_timestamp(text).ok_or_else(malformed))
            .transpose(),
    }
}

/// The years 1 to 9999, in microseconds since 1970.
const YEARS: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// RFC 3339, and so `ce_time`, has years of four digits; infinity has none. Where there is no such time the commit's
/// stands in.
fn has_year(time: PgTime) -> bool {
    YEARS.contains(&time.unix_micros())
}

/// `2026-11-24 10:37:12.123456+00`, the ISO form the connection asks for.
fn parse_timestamp(text: &str) -> Option<PgTime> {
    let time = chrono::DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
    let epoch = PgTime::default().unix_micros();
    Some(PgTime::from_micros(time.timestamp_micros().checked_sub(epoch)?))
}
