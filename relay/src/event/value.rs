//! Values of a row. Text and binary format of a value decode to the same bytes: which format arrives depends on the
//! session, but the record must not.

use std::borrow::Cow;

use outbox::{attribute, column};
use pg_replication::PgTime;
use pg_replication::pgoutput::Column;
use uuid::Uuid;

use super::column_type::ColumnType;
use super::row::{EventId, RowError};

/// The first byte of jsonb's binary format: its version.
const JSONB_VERSION: u8 = 1;

/// The prefix of bytea's text format.
pub const HEX_PREFIX: &str = "\\x";

fn raw<'a>(value: Column<'a>, column: &'static str) -> Result<Option<&'a [u8]>, RowError> {
    match value {
        Column::Null | Column::Unchanged => Ok(None),
        Column::Text(bytes) | Column::Binary(bytes) => Ok(Some(bytes)),
        Column::Oversized(bytes) => Err(RowError::Oversized { column, bytes }),
    }
}

/// The size of a value that takes `bytes` on the wire.
pub(super) fn size(bytes: usize, kind: &ColumnType) -> usize {
    match kind {
        ColumnType::Hex => bytes.saturating_sub(HEX_PREFIX.len()) / 2,
        ColumnType::Jsonb => bytes.saturating_sub(1),
        _ => bytes,
    }
}

/// The value as received, unless it is too large.
fn whole<'a>(value: Column<'a>, kind: &ColumnType, name: &'static str) -> Result<Option<&'a [u8]>, RowError> {
    match value {
        Column::Oversized(bytes) => Err(RowError::Oversized { column: name, bytes: size(bytes, kind) }),
        other => raw(other, name),
    }
}

/// A value of a text type.
pub(super) fn text<'a>(value: Column<'a>, name: &'static str) -> Result<Option<&'a str>, RowError> {
    raw(value, name)?.map(|bytes| utf8(bytes, name)).transpose()
}

fn utf8<'a>(bytes: &'a [u8], name: &'static str) -> Result<&'a str, RowError> {
    std::str::from_utf8(bytes).map_err(|_| RowError::Malformed(name))
}

/// A value that becomes a CloudEvents attribute.
pub(super) fn attribute<'a>(value: Column<'a>, name: &'static str) -> Result<Option<&'a str>, RowError> {
    text(value, name)?.map(|text| checked(text, name)).transpose()
}

/// An empty trace context counts as absent.
pub(super) fn trace<'a>(value: Column<'a>, name: &'static str) -> Result<Option<&'a str>, RowError> {
    text(value, name)?.filter(|text| !text.is_empty()).map(|text| checked(text, name)).transpose()
}

/// `text`, if CloudEvents allows it for this column's attribute.
pub fn checked<'a>(text: &'a str, column: &'static str) -> Result<&'a str, RowError> {
    let (holds, allowed): (fn(&str) -> bool, _) = match column {
        column::DATA_SCHEMA => (attribute::is_uri, "an absolute URI"),
        column::DATA_CONTENT_TYPE => {
            (attribute::is_content_type, "a media type, and not application/cloudevents")
        }
        _ => (attribute::is_text, "a non-empty text with no control characters"),
    };
    if holds(text) { Ok(text) } else { Err(RowError::Attribute { column, allowed }) }
}

pub(super) fn event_id<'a>(value: Column<'a>, kind: &ColumnType) -> Result<Option<EventId<'a>>, RowError> {
    match (kind, value) {
        (ColumnType::Uuid, Column::Binary(bytes)) => Ok(Some(EventId::Uuid(uuid_text(bytes, column::ID)?))),
        _ => Ok(attribute(value, column::ID)?.map(|text| EventId::Text(text.as_bytes()))),
    }
}

fn uuid_text(bytes: &[u8], name: &'static str) -> Result<[u8; 36], RowError> {
    let uuid = Uuid::from_slice(bytes).map_err(|_| RowError::Malformed(name))?;
    let mut text = [0; 36];
    uuid.as_hyphenated().encode_lower(&mut text);
    Ok(text)
}

/// A uuid is sent as text, which Debezium and readers of keys expect; it is the only type that costs an allocation.
pub(super) fn key<'a>(value: Column<'a>, kind: &ColumnType) -> Result<Option<Cow<'a, [u8]>>, RowError> {
    match (kind, value) {
        (ColumnType::Uuid, Column::Binary(bytes)) => {
            Ok(Some(Cow::Owned(uuid_text(bytes, column::AGGREGATE_ID)?.to_vec())))
        }
        _ => bytes(value, kind, column::AGGREGATE_ID),
    }
}

pub(super) fn payload<'a>(value: Column<'a>, kind: &ColumnType) -> Result<Option<Cow<'a, [u8]>>, RowError> {
    match kind {
        ColumnType::Jsonb => Ok(json_text(value, kind, column::PAYLOAD)?.map(Cow::Borrowed)),
        _ => bytes(value, kind, column::PAYLOAD),
    }
}

fn bytes<'a>(
    value: Column<'a>,
    kind: &ColumnType,
    name: &'static str,
) -> Result<Option<Cow<'a, [u8]>>, RowError> {
    let bytes = whole(value, kind, name)?;
    match (kind, bytes) {
        (ColumnType::Hex, Some(hex)) => {
            Ok(Some(Cow::Owned(decode_hex(hex).ok_or(RowError::Malformed(name))?)))
        }
        _ => Ok(bytes.map(Cow::Borrowed)),
    }
}

pub(super) fn json_text<'a>(
    value: Column<'a>,
    kind: &ColumnType,
    name: &'static str,
) -> Result<Option<&'a [u8]>, RowError> {
    match (kind, value) {
        (ColumnType::Jsonb, Column::Binary(bytes)) => match bytes.split_first() {
            Some((&JSONB_VERSION, json)) => Ok(Some(json)),
            _ => Err(RowError::Malformed(name)),
        },
        _ => whole(value, kind, name),
    }
}

/// bytea in text format: `\x` and two hexadecimal digits per byte.
fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, odd) = text.strip_prefix(HEX_PREFIX.as_bytes())?.as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// A time that RFC 3339 can express; otherwise `None`, as for a column of another type, and the commit time is used.
pub(super) fn timestamp(value: Column<'_>, kind: &ColumnType) -> Result<Option<PgTime>, RowError> {
    let malformed = || RowError::Malformed(column::OCCURRED_AT);
    if *kind != ColumnType::TimestampTz {
        return Ok(None);
    }
    let time = match value {
        Column::Binary(bytes) => {
            let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| malformed())?;
            Some(PgTime::from_micros(i64::from_be_bytes(bytes)))
        }
        other => match text(other, column::OCCURRED_AT)? {
            Some(text) if has_four_digits(text) => Some(parse_timestamp(text).ok_or_else(malformed)?),
            _ => None,
        },
    };
    Ok(time.filter(|time| has_year(*time)))
}

/// The years 1 to 9999, in microseconds since 1970.
const YEARS: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// RFC 3339, and so `ce_time`, has years of four digits; infinity has no year.
fn has_year(time: PgTime) -> bool {
    YEARS.contains(&time.unix_micros())
}

/// The same check for the text format, where the year comes first and the era last if it is BC.
fn has_four_digits(text: &str) -> bool {
    text.find('-') == Some(4) && !text.ends_with(" BC")
}

/// `2026-11-24 10:37:12.123456+00`, the ISO format the connection requests.
fn parse_timestamp(text: &str) -> Option<PgTime> {
    let time = chrono::DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
    let epoch = PgTime::default().unix_micros();
    Some(PgTime::from_micros(time.timestamp_micros().checked_sub(epoch)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_same_in_text_and_in_binary_form() {
        let uuid = Uuid::from_u128(0x0198_f3a2_7c1d_7e4b_9a55_1f2e_3d4c_5b6a);
        let text = uuid.to_string();
        for (kind, text, binary) in [
            (ColumnType::Uuid, text.as_bytes(), &uuid.as_bytes()[..]),
            (ColumnType::Bytea, b"\\x00ff5c", b"\x00\xff\\"),
            (ColumnType::Text, b"a  ", b"a  "),
        ] {
            let text = key(Column::Text(text), &kind.clone().in_text_form());
            assert_eq!(text.unwrap(), key(Column::Binary(binary), &kind).unwrap(), "{kind}");
        }
        let id = |value| event_id(value, &ColumnType::Uuid).unwrap().unwrap().as_bytes().to_vec();
        assert_eq!(id(Column::Text(text.as_bytes())), id(Column::Binary(uuid.as_bytes())));
        let jsonb = |value| payload(value, &ColumnType::Jsonb).unwrap();
        let oversized = |bytes, kind: ColumnType| payload(Column::Oversized(bytes), &kind);
        let error = Err(RowError::Oversized { column: column::PAYLOAD, bytes: 10 });
        assert_eq!(oversized(22, ColumnType::Hex), error);
        assert_eq!(oversized(11, ColumnType::Jsonb), error);
        assert_eq!(oversized(10, ColumnType::Bytea), error);
        assert_eq!(jsonb(Column::Text(b"{\"a\": 1}")), jsonb(Column::Binary(b"\x01{\"a\": 1}")));
    }

    #[test]
    fn a_time_is_the_same_in_text_and_in_binary_form() {
        let of = |text: &str| timestamp(Column::Text(text.as_bytes()), &ColumnType::TimestampTz).unwrap();
        let sent =
            |micros: i64| timestamp(Column::Binary(&micros.to_be_bytes()), &ColumnType::TimestampTz).unwrap();
        for (text, micros) in [
            ("2000-01-01 00:00:00.000001+00", 1),
            ("1999-12-31 23:59:59+00", -1_000_000),
            ("0001-01-01 00:00:00+00", -63_082_281_600_000_000),
            ("9999-12-31 23:59:59.999999+00", 252_455_615_999_999_999),
        ] {
            assert_eq!(of(text), Some(PgTime::from_micros(micros)), "{text}");
            assert_eq!(sent(micros), of(text));
        }
        for text in ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "12345-01-01 00:00:00+00"] {
            assert_eq!(of(text), None, "{text}");
        }
        for micros in [i64::MIN, i64::MAX, -63_082_281_600_000_001, 252_455_616_000_000_000] {
            assert_eq!(sent(micros), None, "{micros}");
        }
        let other = ColumnType::built_in(1114);
        assert_eq!(timestamp(Column::Text(b"2000-01-01 00:00:00"), &other), Ok(None));
    }

    #[test]
    fn an_attribute_is_what_cloudevents_allows() {
        let refused = |text: &'static str, column| checked(text, column).unwrap_err().to_string();
        assert!(refused("", column::TYPE).contains("column 'type'"));
        assert!(refused("a\nb", column::ID).contains("no control characters"));
        assert!(refused("/a", column::DATA_SCHEMA).contains("absolute URI"));
        assert!(refused("avro", column::DATA_CONTENT_TYPE).contains("media type"));
        assert_eq!(trace(Column::Text(b""), column::TRACESTATE), Ok(None));
        assert_eq!(attribute(Column::Text(b"\xff"), column::TYPE), Err(RowError::Malformed(column::TYPE)));
    }
}
