//! Column types: a row results in the same record from the initial snapshot and from the stream, or its table is
//! rejected before anything is sent.

use futures::StreamExt;
use futures::stream;
use testbed::records::Record;
use testbed::wait;

use crate::dead_letters::dead_letters;
use crate::fixture::{Site, TIMEOUT};
use crate::poison;

/// The number of relays that run at the same time.
const AT_ONCE: usize = 4;
const UUID: &str = "0198f3a2-7c1d-7e4b-9a55-1f2e3d4c5b6a";

/// Types that a service may have created.
const TYPES: &str = "
    CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION hstore; CREATE EXTENSION isn;
    CREATE DOMAIN an_id AS uuid; CREATE DOMAIN nested_id AS an_id CHECK (VALUE IS NOT NULL);
    CREATE DOMAIN a_name AS varchar(80); CREATE DOMAIN a_document AS jsonb; CREATE DOMAIN some_bytes AS bytea;
    CREATE DOMAIN numbers AS int[]; CREATE DOMAIN a_number AS bigint; CREATE DOMAIN loose AS citext;
    CREATE TYPE mood AS ENUM ('Happy', 'sad'); CREATE DOMAIN a_mood AS mood; CREATE DOMAIN moods AS mood[];
    CREATE TYPE pair AS (at timestamptz, for_long interval, share float8, raw bytea);
    CREATE TYPE span AS RANGE (subtype = timestamptz);";

/// Settings of the database, none of which may change the records.
const SETTINGS: [&str; 5] = [
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'Asia/Tokyo'",
    "extra_float_digits = 0",
    "bytea_output = 'escape'",
];

async fn site(changes: &str) -> Site {
    let site = Site::shared().await;
    let database = site.database.name();
    let settings = SETTINGS.map(|setting| format!("ALTER DATABASE \"{database}\" SET {setting};"));
    site.execute(&settings.concat()).await;
    site.execute(&format!("{TYPES} ALTER TABLE outbox DROP CONSTRAINT outbox_headers_object;")).await;
    site.execute(changes).await;
    site
}

/// A table that the relay reads, and the record of its row.
struct Readable {
    /// Columns with their types.
    types: &'static [(&'static str, &'static str)],
    /// SQL values of some columns; the other columns have simple values.
    values: &'static [(&'static str, &'static str)],
    key: &'static [u8],
    value: &'static [u8],
    headers: &'static [(&'static str, &'static str)],
}

const READABLE: [Readable; 9] = [
    Readable {
        types: &[
            ("id", "nested_id"),
            ("aggregateid", "an_id"),
            ("type", "a_name"),
            ("payload", "a_document"),
            ("headers", "a_document"),
            ("traceparent", "a_name"),
        ],
        values: &[("headers", "'{\"own\": \"h\"}'"), ("traceparent", "'00-trace'")],
        key: UUID.as_bytes(),
        value: b"{\"a\": 1}",
        headers: &[
            ("ce_id", UUID),
            ("ce_type", "a.v1"),
            ("content-type", "application/json"),
            ("own", "h"),
            ("traceparent", "00-trace"),
            ("ce_traceparent", "00-trace"),
        ],
    },
    Readable {
        types: &[
            ("aggregatetype", "loose"),
            ("type", "a_mood"),
            ("aggregateid", "citext"),
            ("payload", "json"),
        ],
        values: &[("type", "'Happy'"), ("aggregateid", "'Key'"), ("payload", "'{ \"a\":1}'")],
        key: b"Key",
        value: b"{ \"a\":1}",
        headers: &[("ce_type", "Happy"), ("content-type", "application/json"), ("ce_id", UUID)],
    },
    Readable {
        types: &[("id", "ltree"), ("aggregateid", "ltree"), ("type", "hstore"), ("payload", "bytea")],
        values: &[
            ("id", "'top.id'"),
            ("aggregateid", "'top.science'"),
            ("type", "'a=>1'"),
            ("payload", "'\\x00ff5c'"),
        ],
        key: b"top.science",
        value: b"\x00\xff\\",
        headers: &[("ce_id", "top.id"), ("ce_type", "\"a\"=>\"1\"")],
    },
    Readable {
        // A type without a binary format, and one that is composed of types with many text formats.
        types: &[("id", "ean13"), ("aggregateid", "moods"), ("type", "pair"), ("payload", "text")],
        values: &[
            ("id", "'978-0-393-04002-9'"),
            ("aggregateid", "'{Happy,sad}'"),
            ("type", "ROW('2026-01-02 03:04:05Z', '1 day 2 hours', 0.1::float8, '\\x01')::pair"),
            ("payload", "'  text '"),
        ],
        key: b"{Happy,sad}",
        value: b"  text ",
        headers: &[
            ("ce_id", "978-0-393-04002-9"),
            ("ce_type", "(\"2026-01-02 03:04:05+00\",\"1 day 02:00:00\",0.1,\"\\\\x01\")"),
        ],
    },
    Readable {
        types: &[("id", "char(40)"), ("aggregateid", "char(8)"), ("type", "char(8)"), ("payload", "char(8)")],
        values: &[("aggregateid", "'key'"), ("type", "'a.v1'"), ("payload", "'text'")],
        key: b"key     ",
        value: b"text    ",
        headers: &[("ce_id", "0198f3a2-7c1d-7e4b-9a55-1f2e3d4c5b6a    "), ("ce_type", "a.v1    ")],
    },
    Readable {
        // The same in text format, because of another column.
        types: &[("aggregateid", "char(8)"), ("type", "a_mood"), ("payload", "char(8)"), ("headers", "json")],
        values: &[
            ("aggregateid", "'key'"),
            ("type", "'sad'"),
            ("payload", "'text'"),
            ("headers", "'{\"content-type\": \"text/plain\"}'"),
        ],
        key: b"key     ",
        value: b"text    ",
        headers: &[("ce_type", "sad"), ("content-type", "text/plain"), ("ce_id", UUID)],
    },
    Readable {
        types: &[
            ("aggregateid", "some_bytes"),
            ("type", "information_schema.sql_identifier"),
            ("payload", "some_bytes"),
        ],
        values: &[("aggregateid", "'\\x00ff'"), ("payload", "'\\x5c78ff'")],
        key: b"\x00\xff",
        value: b"\\x\xff",
        headers: &[("ce_type", "a.v1")],
    },
    Readable {
        types: &[
            ("aggregateid", "some_bytes"),
            ("type", "span"),
            ("payload", "some_bytes"),
            ("headers", "text"),
        ],
        values: &[
            ("aggregateid", "'\\x00ff'"),
            ("type", "'[2026-01-02 03:04:05Z,)'"),
            ("payload", "'\\x5c78ff'"),
            ("headers", "'{\"own\": \"h\"}'"),
        ],
        key: b"\x00\xff",
        value: b"\\x\xff",
        headers: &[("ce_type", "[\"2026-01-02 03:04:05+00\",)"), ("own", "h")],
    },
    Readable {
        types: &[
            ("aggregateid", "name"),
            ("payload", "bytea"),
            ("subject", "text"),
            ("dataschema", "varchar(80)"),
            ("datacontenttype", "loose"),
        ],
        values: &[
            ("payload", "'\\x01'"),
            ("subject", "'line/1'"),
            ("dataschema", "'https://shop.example/basket'"),
            ("datacontenttype", "'application/avro; v=1'"),
        ],
        key: UUID.as_bytes(),
        value: b"\x01",
        headers: &[
            ("ce_subject", "line/1"),
            ("ce_dataschema", "https://shop.example/basket"),
            ("content-type", "application/avro; v=1"),
        ],
    },
];

fn changes(types: &[(&str, &str)]) -> String {
    let change = |(column, kind): &(&str, &str)| match *column {
        "subject" | "dataschema" | "datacontenttype" => format!("ALTER TABLE outbox ADD {column} {kind};"),
        _ => format!("ALTER TABLE outbox ALTER {column} TYPE {kind} USING NULL;"),
    };
    types.iter().map(change).collect()
}

fn insert(site: &Site, values: &[(&str, &str)]) -> String {
    let aggregate = format!("'{}'", site.aggregate);
    let id = format!("'{UUID}'");
    let mut row = vec![
        ("id", id.as_str()),
        ("aggregatetype", &aggregate),
        ("aggregateid", &id),
        ("type", "'a.v1'"),
        ("payload", "'{\"a\": 1}'"),
        ("occurred_at", "'2026-01-02 03:04:05.678901Z'"),
    ];
    for (name, value) in values {
        row.retain(|(column, _)| column != name);
        row.push((name, value));
    }
    let (names, values): (Vec<&str>, Vec<&str>) = row.into_iter().unzip();
    format!("INSERT INTO outbox ({}) VALUES ({})", names.join(", "), values.join(", "))
}

/// A record without its offset, and without its Kafka timestamp, which differs from the row's time if the row is old.
fn content(record: &Record) -> Record {
    let mut content = Record { offset: 0, timestamp: None, ..record.clone() };
    content.headers.retain(|(name, _)| name != "ce_sequence");
    content
}

async fn read(case: &Readable) {
    let site = site(&changes(case.types)).await;
    let insert = insert(&site, case.values);
    site.execute(&insert).await;
    let relay = site.relay().await;
    site.until_records(1).await;
    site.execute(&insert).await;
    let records = site.until_records(2).await;
    assert_eq!(content(&records[0]), content(&records[1]), "{:?}", case.types);
    assert_eq!(records[0].key.as_deref(), Some(case.key), "{:?}", case.types);
    assert_eq!(records[0].value.as_deref(), Some(case.value), "{:?}", case.types);
    assert_eq!(records[0].header("ce_time"), Some("2026-01-02T03:04:05.678901Z"));
    for (name, value) in case.headers {
        assert_eq!(records[0].header(name), Some(*value), "{:?}", case.types);
    }
    relay.stop().await;
}

/// R24: one row, one record.
#[tokio::test]
async fn r24_a_row_results_in_the_same_record_from_the_snapshot_and_from_the_stream() {
    stream::iter(&READABLE).for_each_concurrent(AT_ONCE, read).await;
}

/// Column, and a type that it must not have.
const REFUSED: [(&str, &str); 43] = [
    ("id", "bigint"),
    ("id", "a_number"),
    ("id", "bytea"),
    ("id", "jsonb"),
    ("id", "\"char\""),
    ("id", "timestamptz"),
    ("aggregateid", "a_number"),
    ("aggregateid", "numbers"),
    ("aggregateid", "smallint"),
    ("aggregateid", "numeric"),
    ("aggregateid", "money"),
    ("aggregateid", "float8"),
    ("aggregateid", "boolean"),
    ("aggregateid", "date"),
    ("aggregateid", "timestamp"),
    ("aggregateid", "timestamptz"),
    ("aggregateid", "interval"),
    ("aggregateid", "inet"),
    ("aggregateid", "cidr"),
    ("aggregateid", "macaddr"),
    ("aggregateid", "bit(3)"),
    ("aggregateid", "a_document"),
    ("aggregateid", "oid"),
    ("aggregateid", "pg_lsn"),
    ("aggregateid", "xid8"),
    ("aggregateid", "uuid[]"),
    ("aggregateid", "int4range"),
    ("aggregateid", "int4multirange"),
    ("aggregateid", "tsvector"),
    ("aggregateid", "aclitem"),
    ("type", "an_id"),
    ("type", "bytea"),
    ("type", "regclass"),
    ("payload", "numbers"),
    ("payload", "xml"),
    ("payload", "hstore"),
    ("payload", "pair"),
    ("headers", "hstore"),
    ("headers", "some_bytes"),
    ("traceparent", "uuid"),
    ("aggregatetype", "an_id"),
    ("subject", "int"),
    ("dataschema", "a_document"),
];

/// The relay rejects a table when it starts, even an empty one, and doctor reports the same. Nothing is created or
/// sent.
async fn refused(site: &Site, table: usize, column: &str, made: String) {
    let name = format!("refused_{table}");
    site.execute(&format!("CREATE TABLE {name} (LIKE outbox INCLUDING DEFAULTS)")).await;
    site.execute(&made.replace("outbox", &name)).await;
    let slot = format!("{}_{table}", site.slot);
    let edit = |text: String| {
        text.replace("user: postgres,", &format!("user: postgres, table: public.{name},"))
            .replace(&site.slot, &slot)
    };
    let relay = site.launch(edit);
    let said = relay.until("/readyz", 503, "TableUnsuitable").await;
    assert!(said.contains(&format!("'{column}'")), "{said}");
    let doctor = site.command(relay.admin, edit, &["doctor"]).await;
    assert_eq!(doctor.code, Some(69), "{doctor:?}");
    assert!(doctor.out.contains(&format!("column '{column}'")), "{doctor:?}");
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(site.value(&slots).await.as_deref(), Some("0"));
    relay.stop().await;
}

/// R24: a table whose values could only be sent in PostgreSQL's binary format, or would differ between snapshot and
/// stream.
#[tokio::test]
async fn r24_a_table_that_cannot_be_read_is_refused_before_anything_is_sent() {
    let site = site("").await;
    let tables: Vec<(&str, String)> = REFUSED.iter().map(|case| (case.0, changes(&[*case]))).collect();
    let cases = stream::iter(tables.into_iter().enumerate());
    cases.for_each_concurrent(AT_ONCE, |(n, (column, made))| refused(&site, n, column, made)).await;
    assert!(site.records().await.is_empty());
}

/// R24: a type that appears while the relay streams. The stream switches to text format for a type that needs it, and
/// stops at a row with a type that cannot be read.
#[tokio::test]
async fn r24_types_that_appear_while_the_relay_streams() {
    let site = site("ALTER TABLE outbox ALTER aggregateid DROP NOT NULL").await;
    let relay = site.relay().await;
    let key = |value: &str| insert(&site, &[("aggregateid", value)]);
    site.execute(&key("'a.b'")).await;
    site.execute("ALTER TABLE outbox ALTER aggregateid TYPE ltree USING aggregateid::ltree").await;
    site.execute(&key("'c.d'")).await;
    // The catalog no longer has the type.
    site.execute("ALTER TABLE outbox ALTER aggregateid TYPE an_id USING NULL").await;
    site.execute(&key(&format!("'{UUID}'"))).await;
    site.until_records(3).await;
    site.until_confirmed(&relay).await;
    let mut records = site.records().await;
    records.sort_by_key(|record| record.header("ce_sequence").unwrap().to_owned());
    let sent: Vec<&[u8]> = records.iter().map(|record| record.key.as_deref().unwrap()).collect();
    assert_eq!(sent, [&b"a.b"[..], b"c.d", UUID.as_bytes()]);
    relay.until_ready().await;

    site.execute("ALTER TABLE outbox ALTER aggregateid TYPE bigint USING NULL").await;
    relay.until_ready().await;
    site.execute(&key("7")).await;
    let said = relay.until("/readyz", 503, "TableUnsuitable").await;
    assert!(said.contains("column 'aggregateid'"), "{said}");
    assert_eq!(site.records().await.len(), 3);
    let doctor = site.command(relay.admin, |text| text, &["doctor"]).await;
    assert!(doctor.out.contains("has type int8"), "{doctor:?}");
}

/// A type that is created and dropped while the relay is stopped: only the WAL has its rows.
#[tokio::test]
async fn r24_a_type_that_is_gone_when_its_rows_are_read() {
    let site = site("").await;
    site.relay().await.stop().await;
    site.execute("ALTER TABLE outbox ALTER type TYPE mood USING type::mood").await;
    site.execute(&insert(&site, &[("type", "'Happy'")])).await;
    site.execute("ALTER TABLE outbox ALTER type TYPE text; DROP TYPE mood CASCADE").await;
    site.execute(&insert(&site, &[])).await;
    let _relay = site.relay().await;
    wait::until("both types", TIMEOUT, async || {
        let records = site.records().await;
        let mut types: Vec<_> = records.iter().map(|record| record.header("ce_type").unwrap()).collect();
        types.sort_unstable();
        if types == ["Happy", "a.v1"] { Ok(()) } else { Err(format!("{types:?}")) }
    })
    .await
    .unwrap();
}

/// R24: in text format a byte takes two digits in the stream, but limits apply to the number of bytes.
#[tokio::test]
async fn r24_large_bytes_in_text_form() {
    let site = poison::site().await;
    site.execute(&format!(
        "{TYPES} ALTER TABLE outbox ALTER payload TYPE bytea USING NULL, ADD feeling mood"
    ))
    .await;
    let bytes = |mib: f64| format!("decode(repeat('5c', {}), 'hex')", (mib * 1_000_000.0) as u32);
    let write = async || {
        for payload in [bytes(0.9), bytes(1.5), bytes(3.0)] {
            site.execute(&insert(&site, &[("payload", &payload)])).await;
        }
    };
    write().await;
    let relay = site.relay().await;
    site.until_records(1).await;
    write().await;
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    let records: Vec<Record> = site.records().await.iter().map(content).collect();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0], records[1]);
    assert_eq!(records[0].value, Some(vec![b'\\'; 900_000]));
    let mut letters: Vec<Record> = dead_letters(&site).await.iter().map(content).collect();
    letters.sort_by_key(|letter| letter.header("dead_letter_error").unwrap().to_owned());
    assert_eq!(letters.len(), 4);
    assert_eq!((&letters[0], &letters[2]), (&letters[1], &letters[3]));
    assert_eq!(letters[0].header("dead_letter_reason"), Some("too_large"));
}
