use super::*;
use proptest::prelude::*;

/// A value to be put into a row.
#[derive(Debug, Clone)]
enum Value {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Value {
    fn as_column(&self) -> Column<'_> {
        match self {
            Value::Null => Column::Null,
            Value::Unchanged => Column::Unchanged,
            Value::Text(bytes) => Column::Text(bytes),
            Value::Binary(bytes) => Column::Binary(bytes),
        }
    }
}

fn values() -> impl Strategy<Value = Vec<Value>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        bytes().prop_map(Value::Text),
        bytes().prop_map(Value::Binary),
    ];
    prop::collection::vec(value, 0..12)
}

fn put_row(out: &mut Vec<u8>, marker: u8, row: &[Value]) {
    out.push(marker);
    out.extend((row.len() as u16).to_be_bytes());
    for value in row {
        let (kind, bytes) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(bytes) => (b't', Some(bytes)),
            Value::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.push(kind);
        if let Some(bytes) = bytes {
            out.extend((bytes.len() as i32).to_be_bytes());
            out.extend(bytes);
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn insert(relation: u32, row: &[Value]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(relation.to_be_bytes());
    put_row(&mut out, b'N', row);
    out
}

fn update(relation: u32, old: Option<&[Value]>, new: &[Value]) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(relation.to_be_bytes());
    if let Some(old) = old {
        put_row(&mut out, b'O', old);
    }
    put_row(&mut out, b'N', new);
    out
}

fn relation(oid: u32, names: &[&str]) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(oid.to_be_bytes());
    put_text(&mut out, "public");
    put_text(&mut out, "outbox");
    out.push(b'd');
    out.extend((names.len() as u16).to_be_bytes());
    for (n, name) in names.iter().enumerate() {
        out.push(u8::from(n == 0));
        put_text(&mut out, name);
        out.extend(25_u32.to_be_bytes());
        out.extend((-1_i32).to_be_bytes());
    }
    out
}

fn logical(content: &[u8]) -> Vec<u8> {
    let mut out = vec![b'M', 1];
    out.extend(0x16_B374_D848_u64.to_be_bytes());
    put_text(&mut out, "heartbeat");
    out.extend((content.len() as i32).to_be_bytes());
    out.extend(content);
    out
}

fn fixed(tag: u8, flags: &[u8], numbers: &[u64], tail: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(flags);
    numbers.iter().for_each(|number| out.extend(number.to_be_bytes()));
    out.extend(tail);
    out
}

/// One well-formed message of every kind.
fn every_kind() -> Vec<Vec<u8>> {
    let row = [Value::Text(b"a".to_vec()), Value::Null, Value::Binary(vec![0; 16]), Value::Unchanged];
    let mut delete = vec![b'D', 0, 0, 0, 7];
    put_row(&mut delete, b'K', &row);
    vec![
        fixed(b'B', &[], &[100, 5], &9_u32.to_be_bytes()),
        fixed(b'C', &[0], &[100, 140, 5], &[]),
        relation(7, &["id", "payload"]),
        insert(7, &row),
        update(7, None, &row),
        update(7, Some(&row), &row),
        delete,
        fixed(b'T', &[0, 0, 0, 2, 3], &[0x0000_0007_0000_0008], &[]),
        fixed(b'O', &[], &[100], b"upstream\0"),
        fixed(b'Y', &[0, 0, 0, 9], &[], b"public\0mood\0"),
        logical(b"ping"),
    ]
}

#[test]
fn reads_the_frame_of_a_transaction() {
    let messages = every_kind();
    let at = |lsn: u64| CommitLsn::new(Lsn::from(lsn));
    let time = PgTime::from_micros(5);
    let begin = Begin { final_lsn: at(100), commit_time: time, xid: 9 };
    assert_eq!(Message::parse(&messages[0]), Ok(Message::Begin(begin)));
    let commit = Commit { commit_lsn: at(100), end_lsn: EndLsn::new(Lsn::from(140)), commit_time: time };
    assert_eq!(Message::parse(&messages[1]), Ok(Message::Commit(commit)));
}

#[test]
fn reads_a_table_with_its_columns() {
    let bytes = relation(7, &["id", "payload"]);
    let Ok(Message::Relation(relation)) = Message::parse(&bytes) else { panic!("not a relation") };
    assert_eq!((relation.oid, relation.namespace, relation.name), (7, "public", "outbox"));
    assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
    let columns: Vec<_> = relation.columns().map(|c| (c.key, c.name, c.type_oid, c.type_modifier)).collect();
    assert_eq!(columns, [(true, "id", 25, -1), (false, "payload", 25, -1)]);
}

#[test]
fn reads_the_rest() {
    let messages = every_kind();
    let Ok(Message::Truncate(truncate)) = Message::parse(&messages[7]) else { panic!("not a truncate") };
    assert_eq!(truncate.relations().collect::<Vec<_>>(), [7, 8]);
    assert!(truncate.cascade && truncate.restart_identity);
    let origin = Origin { lsn: Lsn::from(100), name: "upstream" };
    assert_eq!(Message::parse(&messages[8]), Ok(Message::Origin(origin)));
    let mood = Type { oid: 9, namespace: "public", name: "mood" };
    assert_eq!(Message::parse(&messages[9]), Ok(Message::Type(mood)));
    let Ok(Message::Logical(logical)) = Message::parse(&messages[10]) else { panic!("not a message") };
    assert_eq!((logical.transactional, logical.prefix, logical.content), (true, "heartbeat", &b"ping"[..]));
    assert_eq!(logical.lsn.to_string(), "16/B374D848");
    let Ok(Message::Delete(delete)) = Message::parse(&messages[6]) else { panic!("not a delete") };
    assert_eq!((delete.relation, delete.old.len()), (7, 4));
}

#[test]
fn says_what_is_wrong() {
    let unknown = Message::parse(b"S12345678").unwrap_err();
    assert_eq!(unknown, DecodeError::UnknownTag { tag: b'S' });
    let empty = Message::parse(b"").unwrap_err();
    assert!(matches!(empty, DecodeError::Malformed { .. }));
    let truncated = Message::parse(b"I\0\0").unwrap_err();
    assert_eq!(truncated, DecodeError::Malformed { message: "Insert", what: "ends too early" });
    let negative = Message::parse(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff").unwrap_err();
    assert_eq!(negative, DecodeError::Malformed { message: "Insert", what: "has a negative length" });
}

#[test]
fn every_prefix_and_every_extension_is_rejected() {
    for message in every_kind() {
        assert!(Message::parse(&message).is_ok(), "{message:?}");
        for end in 0..message.len() {
            assert!(Message::parse(&message[..end]).is_err(), "{:?}", &message[..end]);
        }
        let longer = [&message[..], &[0]].concat();
        assert!(Message::parse(&longer).is_err(), "{longer:?}");
    }
}

/// Reads all there is to read, so that a panic anywhere in it shows.
fn exhaust(bytes: &[u8]) {
    let tuples: [Option<Tuple>; 2] = match Message::parse(bytes) {
        Ok(Message::Insert(insert)) => [Some(insert.tuple), None],
        Ok(Message::Update(update)) => [update.old, Some(update.new)],
        Ok(Message::Delete(delete)) => [Some(delete.old), None],
        Ok(Message::Relation(relation)) => {
            assert_eq!(relation.columns().count(), relation.columns().len());
            [None, None]
        }
        Ok(Message::Truncate(truncate)) => {
            assert_eq!(truncate.relations().count(), truncate.relations().len());
            [None, None]
        }
        _ => [None, None],
    };
    for tuple in tuples.into_iter().flatten() {
        assert_eq!(tuple.columns().count(), tuple.len());
    }
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were_sent(relation: u32, old in prop::option::of(values()), new in values()) {
        let expected: Vec<_> = new.iter().map(Value::as_column).collect();
        let bytes = insert(relation, &new);
        let Ok(Message::Insert(read)) = Message::parse(&bytes) else { panic!("not an insert") };
        prop_assert_eq!(read.relation, relation);
        prop_assert_eq!(read.tuple.columns().collect::<Vec<_>>(), expected.clone());

        let bytes = update(relation, old.as_deref(), &new);
        let Ok(Message::Update(read)) = Message::parse(&bytes) else { panic!("not an update") };
        prop_assert_eq!(read.new.columns().collect::<Vec<_>>(), expected);
        let before: Option<Vec<_>> = read.old.map(|tuple| tuple.columns().collect());
        let sent: Option<Vec<_>> = old.as_ref().map(|row| row.iter().map(Value::as_column).collect());
        prop_assert_eq!(before, sent);
    }

    #[test]
    fn arbitrary_bytes_never_panic(tag in prop::sample::select(b"BCRIUDTOYM\0".to_vec()), body: Vec<u8>) {
        exhaust(&body);
        exhaust(&[&[tag], &body[..]].concat());
    }

    #[test]
    fn mutated_messages_never_panic(
        kind in 0..11_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut: prop::sample::Index,
    ) {
        let mut message = every_kind().swap_remove(kind);
        for (at, byte) in &changes {
            let at = at.index(message.len());
            message[at] = *byte;
        }
        exhaust(&message);
        exhaust(&message[..cut.index(message.len())]);
    }
}
