use proptest::prelude::*;

use crate::framing::{Framing, MemoryLimit};
use crate::pgoutput::{Column, Message};
use crate::report::server_error;
use crate::stream::parse_frame;
use crate::{Frame, SqlState};

const SMALL: usize = 64;
const LARGEST_VALUE: usize = 100;
const OURS: u32 = 7;
const FOREIGN: u32 = 8;

/// Of the outbox the first three columns are wanted.
fn limit() -> MemoryLimit {
    MemoryLimit {
        largest_value: LARGEST_VALUE,
        is_wanted: Box::new(|relation, column| relation.name == "outbox" && column.name != "other"),
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

fn xlog(data: &[u8]) -> Vec<u8> {
    message(b'd', &[&[b'w'][..], &[1; 24], data].concat())
}

fn relation(oid: u32, name: &str) -> Vec<u8> {
    let columns = ["id", "payload", "headers", "other"];
    let mut data = [&[b'R'][..], &oid.to_be_bytes(), b"public\0", name.as_bytes(), b"\0d\0\x04"].concat();
    for column in columns {
        data.extend([&[0][..], column.as_bytes(), &[0; 9]].concat());
    }
    xlog(&data)
}

fn insert(oid: u32, values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut data = [&[b'I'][..], &oid.to_be_bytes(), b"N", &(values.len() as u16).to_be_bytes()].concat();
    for value in values {
        match value {
            None => data.push(b'n'),
            Some(bytes) => data.extend([&b"b"[..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()),
        }
    }
    xlog(&data)
}

/// What comes out of `bytes`, arriving in pieces of this size: tags with bodies, without those skipped; or the error
/// behind them.
fn read(bytes: &[u8], piece: usize) -> Vec<Result<(u8, Vec<u8>), String>> {
    let mut framing = Framing::new();
    framing.set_small(SMALL);
    framing.limit(limit());
    let (mut left, mut read) = (bytes, Vec::new());
    loop {
        let ready = framing.ready();
        match framing.take() {
            Ok(Some(frame)) => {
                assert!(ready.unwrap(), "taken although it was not ready");
                if let Ok(Frame::XLogData { data, .. }) = parse_frame(frame.body.clone()) {
                    framing.announce(&data);
                    // A message may be empty as it was sent, too.
                    assert!(!frame.skipped || data.is_empty(), "{data:?}");
                }
                if !frame.skipped {
                    read.push(Ok((frame.tag, frame.body.to_vec())));
                }
            }
            Ok(None) if left.is_empty() => return read,
            Ok(None) => {
                let (now, later) = left.split_at(piece.min(left.len()));
                framing.space().extend_from_slice(now);
                left = later;
            }
            Err(error) => {
                read.push(Err(error.to_string()));
                return read;
            }
        }
    }
}

/// The columns of the only row, arriving byte by byte behind its relation.
fn row(oid: u32, values: &[Option<Vec<u8>>]) -> Option<Vec<Column<'static>>> {
    let bytes = [relation(OURS, "outbox"), relation(FOREIGN, "other"), insert(oid, values)].concat();
    let mut frames = read(&bytes, 1);
    assert!(frames.len() == 2 || frames.len() == 3, "{frames:?}");
    let (_, body) = frames.drain(2..).next()?.unwrap();
    let body: &'static [u8] = body.leak();
    let Ok(Message::Insert(insert)) = Message::parse(&body[25..]) else { panic!("{body:?}") };
    Some(insert.tuple.columns().collect())
}

#[test]
fn a_large_value_is_known_by_its_size_and_the_rest_of_its_row_is_whole() {
    let long = vec![b'x'; LARGEST_VALUE + 1];
    let fits = vec![b'y'; LARGEST_VALUE];
    let columns = row(OURS, &[Some(b"id".to_vec()), Some(long), Some(fits.clone()), Some(fits.clone())]);
    let expected = [
        Column::Binary(b"id"),
        Column::Oversized(LARGEST_VALUE + 1),
        Column::Binary(&fits),
        Column::Oversized(LARGEST_VALUE),
    ];
    assert_eq!(columns.unwrap(), expected, "of the last column nothing is wanted");
}

#[test]
fn a_row_without_a_large_value_is_whole_whatever_is_wanted() {
    let values = [None, Some(vec![1; 40]), None, Some(vec![2; 10])];
    let columns = row(OURS, &values).unwrap();
    assert_eq!(columns, [Column::Null, Column::Binary(&[1; 40]), Column::Null, Column::Binary(&[2; 10])]);
}

#[test]
fn messages_that_are_not_needed_leave_nothing_and_the_next_is_read() {
    assert_eq!(row(FOREIGN, &[Some(vec![0; 500])]), None);
    let logical = xlog(&[&b"M\x01"[..], &[0; 8], b"app\0\0\0\x01\xF4", &[0; 500]].concat());
    let commit = xlog(&[&b"C"[..], &[0; 25]].concat());
    let frames = read(&[logical, commit].concat(), 7);
    assert!(matches!(frames.as_slice(), [Ok((b'd', body))] if body[25] == b'C'), "{frames:?}");
}

#[test]
fn a_message_that_is_sent_without_content_is_not_skipped() {
    assert_eq!(read(&xlog(&[]), 7).len(), 1);
}

#[test]
fn an_inconsistent_row_is_rejected_as_early_as_possible() {
    let good = insert(OURS, &[Some(vec![0; 300]), None]);
    let broken = |at: usize, byte: u8| {
        let mut row = good.clone();
        row[at] = byte;
        read(&[relation(OURS, "outbox"), row].concat(), 3).pop().unwrap().unwrap_err()
    };
    let columns = 5 + 25 + 6;
    assert!(broken(columns - 1, b'K').contains("has no new row"));
    assert!(broken(columns + 1, 9).contains("ends too early"));
    assert!(broken(columns + 1, 1).contains("has bytes left over"));
    assert!(broken(columns + 2, b'z').contains("column of unknown kind"));
    assert!(broken(columns + 3, 0xFF).contains("negative length"));
    assert!(broken(columns + 4, 0x7F).contains("ends too early"));
}

#[test]
fn the_beginning_of_a_long_error_is_kept_and_readable() {
    for filler in [b'm', 0] {
        let text = vec![filler; 200_000];
        let body = [&b"VERROR\0C42501\0M"[..], &text, b"\0Dmore\0\0"].concat();
        let frames = read(&message(b'E', &body), 1000);
        let Some(Ok((b'E', body))) = frames.first() else { panic!("{frames:?}") };
        let error = server_error(body).unwrap();
        assert_eq!(error.code, SqlState::INSUFFICIENT_PRIVILEGE);
        assert!(body.len() < 100_000 && error.message.len() < 10_000);
    }
}

#[test]
fn an_impossible_message_is_rejected_before_it_arrives() {
    for (tag, body) in [(b'D', vec![0; 100]), (b'd', [&[b'w'][..], &[0; 24], b"R", &[0; 40]].concat())] {
        let mut bytes = message(tag, &body);
        bytes[1..5].copy_from_slice(&(1_u32 << 29).to_be_bytes());
        assert!(read(&bytes, 1).pop().unwrap().unwrap_err().contains("bytes"), "{tag}");
    }
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let value = prop::option::of(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(any::<u8>(), 90..300)
    ]);
    let oid = prop::sample::select(vec![OURS, FOREIGN, 9]);
    let tag = prop::sample::select(b"dENSDk".to_vec());
    let data = prop::sample::select(b"IMUDTOBCRY".to_vec());
    prop_oneof![
        (oid, prop::collection::vec(value, 0..6)).prop_map(|(oid, values)| insert(oid, &values)),
        (data, prop::collection::vec(any::<u8>(), 0..400))
            .prop_map(|(kind, rest)| xlog(&[&[kind], &rest[..]].concat())),
        (tag, prop::collection::vec(any::<u8>(), 0..400)).prop_map(|(tag, body)| message(tag, &body)),
        Just(relation(OURS, "outbox")),
        Just(relation(FOREIGN, "other")),
    ]
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same(
        messages in prop::collection::vec(any_message(), 0..12),
        cut in 0..40_usize,
        piece in 1..700_usize,
    ) {
        let mut bytes = [relation(OURS, "outbox"), messages.concat()].concat();
        bytes.truncate(bytes.len().saturating_sub(cut));
        prop_assert_eq!(read(&bytes, piece), read(&bytes, usize::MAX));
    }
}
