//! Databases in another encoding than UTF-8: the same record from the initial snapshot and from the stream, and a row without a form in UTF-8
//! stops nothing silently.

use testbed::kafka::create_topic;
use testbed::records::Record;
use testbed::{Database, shared};

use crate::dead_letters::{find, until_dead, with_dead_letters};
use crate::fixture::{PARTITIONS, Site};

async fn site(encoding: &str) -> Site {
    let servers = shared().await.unwrap();
    let database = Database::in_encoding(&servers.postgres_url("postgres"), "relay", encoding).await.unwrap();
    let site = Site::without_topic(database, servers.kafka_bootstrap());
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &[]).await.unwrap();
    site
}

/// A row with these columns as the bytes of an escape string.
async fn insert(site: &Site, key: &str, event_type: &str, payload: &str) {
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', E'{key}', E'{event_type}', E'{payload}')",
        site.aggregate
    ))
    .await;
}

fn of_key<'a>(records: &'a [Record], key: &[u8]) -> Vec<&'a Record> {
    records.iter().filter(|record| record.key.as_deref() == Some(key)).collect()
}

/// PostgreSQL does not know the encoding, so bytes pass as they are; what cannot be a header is a poison row.
#[tokio::test]
async fn in_sql_ascii_bytes_pass_and_what_is_not_utf_8_in_a_header_is_poison() {
    let mut site = site("SQL_ASCII").await;
    with_dead_letters(&mut site, 1, &[]).await;
    let insert_all = async || {
        insert(&site, "utf-8", "t.v1", r#"{"a": "caf\xc3\xa9"}"#).await;
        insert(&site, r"k\xe9", "t.v1", r#"{"a": "caf\xe9"}"#).await;
        insert(&site, "poison", r"t\xe9", "{}").await;
        insert(&site, "behind", "t.v1", "{}").await;
    };
    insert_all().await;
    let relay = site.relay().await;
    let copied = site.until_records(3).await;
    until_dead(&site, 1).await;
    insert_all().await;
    let records = site.until_records(6).await;
    let dead = until_dead(&site, 2).await;
    for (key, payload) in [
        (b"utf-8".as_slice(), b"{\"a\": \"caf\xc3\xa9\"}".as_slice()),
        (b"k\xe9", b"{\"a\": \"caf\xe9\"}"),
        (b"behind", b"{}"),
    ] {
        assert_eq!(of_key(&copied, key).len(), 1);
        let both = of_key(&records, key);
        assert_eq!(both.len(), 2, "{records:?}");
        assert!(both.iter().all(|record| record.value.as_deref() == Some(payload)), "{both:?}");
    }
    assert_eq!(of_key(&dead, b"poison").len(), 2, "{dead:?}");
    let doctor = site.command(0, |text| text, &["doctor"]).await;
    assert!(doctor.out.contains("SQL_ASCII"), "{doctor:?}");
    relay.stop().await;
}

#[tokio::test]
async fn in_latin_1_text_arrives_in_utf_8() {
    let site = site("LATIN1").await;
    insert(&site, r"\xe9t\xe9", "t.v1", r#"{"a": "\xe9"}"#).await;
    let _relay = site.relay().await;
    site.until_records(1).await;
    insert(&site, r"\xe9t\xe9", "t.v1", r#"{"a": "\xe9"}"#).await;
    for record in site.until_records(2).await {
        assert_eq!(record.key.as_deref(), Some("été".as_bytes()));
        assert_eq!(record.value.as_deref(), Some("{\"a\": \"é\"}".as_bytes()));
    }
}

/// The byte 0x81 is undefined in Windows-1252, and PostgreSQL stores it. By the procedure in the documents the row is delivered from the
/// table, and all after it.
#[tokio::test]
async fn text_that_has_no_form_in_utf_8_is_named_and_can_be_corrected() {
    let site = site("WIN1252").await;
    let undefined = r#"{"a": "\x81"}"#;
    insert(&site, "copied", "t.v1", undefined).await;
    let relay = site.launch(|text| text);
    relay.until("/readyz", 503, "TextUntranslatable").await;
    let correct = r#"UPDATE outbox SET payload = '{"a": "?"}' WHERE payload->>'a' <> '?'"#;
    site.execute(correct).await;
    relay.until_ready().await;
    site.until_records(1).await;
    // Before that there is nothing to refill from.
    site.until_value("SELECT delivered_snapshot::text <> '1:1:' FROM outbox_checkpoint", "true").await;

    insert(&site, "streamed", "t.v1", undefined).await;
    insert(&site, "behind", "t.v1", r#"{"a": "?"}"#).await;
    let status = relay.until("/readyz", 503, "TextUntranslatable").await;
    assert!(status.contains("0x81") && status.contains("Text that is not UTF-8"), "{status}");
    site.execute(correct).await;
    relay.stop().await;
    site.until_value(
        &format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{}'", site.slot),
        "false",
    )
    .await;
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    let relay = site.launch(|text| text.replace("slot: {", "onGap: Refill, slot: {"));
    relay.until_ready().await;
    let records = site.until_records(3).await;
    for key in ["copied", "streamed", "behind"] {
        assert_eq!(find(&records, key).value.as_deref(), Some(br#"{"a": "?"}"#.as_slice()));
    }
}
