//! CloudEvents attributes are valid; otherwise the row is poison, or the setting is rejected.

use testbed::records::Record;

use crate::dead_letters::dead_letters;
use crate::fixture::Site;
use crate::poison;

/// Column, SQL value, and part of the error.
const POISON: [(&str, &str, &str); 11] = [
    ("type", "''", "column 'type'"),
    ("type", "E'a\\nb'", "no control characters"),
    ("type", "U&'a\\FFFE'", "column 'type'"),
    ("id", "''", "column 'id'"),
    ("id", "E'a\\x7fb'", "column 'id'"),
    ("subject", "''", "column 'subject'"),
    ("dataschema", "'basket.json'", "absolute URI"),
    ("datacontenttype", "'avro'", "media type"),
    ("datacontenttype", "'application/cloudevents+json'", "media type"),
    ("tracestate", "E'a\\tb'", "column 'tracestate'"),
    ("headers", "'{\"content-type\": \"avro\"}'", "content-type"),
];

fn insert(aggregate: &str, key: &str, column: &str, value: &str) -> String {
    let id = if column == "id" { value } else { "gen_random_uuid()::text" };
    let kind = if column == "type" { value } else { "'a.v1'" };
    let (more, its) = match column {
        "id" | "type" => (String::new(), String::new()),
        _ => (format!(", {column}"), format!(", {value}")),
    };
    format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload{more})
         VALUES ({id}, '{aggregate}', '{key}', {kind}, 'text'{its})"
    )
}

async fn site() -> Site {
    let site = poison::site().await;
    site.execute(
        "ALTER TABLE outbox ALTER id TYPE text, ALTER payload TYPE text, ADD subject text, ADD dataschema text,
         ADD datacontenttype text",
    )
    .await;
    site
}

/// An invalid attribute makes its row poison, both in the initial snapshot and in the stream. Delivery of other rows
/// continues.
#[tokio::test]
async fn rows_that_are_no_cloudevents_become_dead_letters() {
    let site = site().await;
    let write = async |half: usize| {
        for (n, (column, value, _)) in POISON.iter().enumerate().filter(|(n, _)| n % 2 == half) {
            site.execute(&insert(&site.aggregate, &n.to_string(), column, value)).await;
        }
        site.execute(&insert(&site.aggregate, "good", "subject", "'s'")).await;
    };
    write(0).await;
    let relay = site.relay().await;
    write(1).await;
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    let letters = dead_letters(&site).await;
    assert_eq!((site.records().await.len(), letters.len()), (2, POISON.len()));
    for (n, (column, _, error)) in POISON.iter().enumerate() {
        let of = |letter: &&Record| letter.key.as_deref() == Some(n.to_string().as_bytes());
        let letter = letters.iter().find(of).unwrap();
        let reason = if *column == "headers" { "headers" } else { "attribute" };
        assert_eq!(letter.header("dead_letter_reason"), Some(reason), "{letter:?}");
        assert!(letter.header("dead_letter_error").unwrap().contains(error), "{letter:?}");
        // The dead letter does not contain the invalid value, but names its column.
        if reason == "attribute" {
            assert_eq!(letter.header("dead_letter_omitted"), Some(*column));
        }
        assert_eq!(letter.value.as_deref(), Some(&b"text"[..]));
    }
    // They are still invalid when they are replayed.
    let all = site.command(relay.admin, |text| text, &["dead-letters", "replay", "--all"]).await;
    assert!(all.out.contains(&format!("0 sent, {} refused", POISON.len())), "{all:?}");
    relay.until_ready().await;
}

/// If poison stops delivery, the error names the column.
#[tokio::test]
async fn a_row_that_is_no_cloudevent_stops_delivery() {
    let site = site().await;
    let relay = site.launch(|text| text.replace("onPoison: DeadLetter", "onPoison: Stop"));
    relay.until_ready().await;
    site.execute(&insert(&site.aggregate, "k", "type", "''")).await;
    let said = relay.until("/readyz", 503, "PoisonRow").await;
    assert!(said.contains("column 'type'"), "{said}");
    assert!(site.records().await.is_empty());
}

/// The writer defines the content type of a payload that is not JSON: for each row, or by the column's default.
#[tokio::test]
async fn the_writer_says_what_text_and_bytes_are() {
    let site = site().await;
    let relay = site.relay().await;
    let aggregate = &site.aggregate;
    site.execute(&insert(aggregate, "column", "datacontenttype", "'text/plain; charset=utf-8'")).await;
    site.execute(&insert(aggregate, "header", "headers", "'{\"Content-Type\": \"application/avro\"}'")).await;
    site.execute(&insert(aggregate, "none", "subject", "NULL")).await;
    // JSON has a known content type. The trace context is in the headers that instrumentation reads.
    site.execute("ALTER TABLE outbox ALTER payload TYPE jsonb USING to_jsonb(payload)").await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, traceparent, tracestate, datacontenttype)
         VALUES ('j', '{aggregate}', 'json', 'a.v1', '{{}}', '00-t', 'k=v', 'text/plain')"
    ))
    .await;
    let records = site.until_records(4).await;
    let of = |key: &str| records.iter().find(|record| record.key.as_deref() == Some(key.as_bytes())).unwrap();
    assert_eq!(of("column").header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(of("header").header("content-type"), Some("application/avro"));
    assert!(of("none").headers.iter().all(|(name, _)| name != "content-type" && name != "ce_subject"));
    for (name, value) in [
        ("content-type", "application/json"),
        ("traceparent", "00-t"),
        ("ce_traceparent", "00-t"),
        ("tracestate", "k=v"),
        ("ce_tracestate", "k=v"),
    ] {
        assert_eq!(of("json").header(name), Some(value));
    }
    site.until_confirmed(&relay).await;
}

/// The source is a URI-reference with any names in it.
#[tokio::test]
async fn a_source_is_a_uri_reference() {
    let site = Site::shared().await;
    for source in ["basket service", "", "/büro"] {
        let edit = |text: String| {
            text.replace("user: postgres,", &format!("user: postgres, eventSource: '{source}',"))
        };
        for command in ["run", "doctor"] {
            let answer = site.command(1, edit, &[command]).await;
            assert_eq!(answer.code, Some(64), "{answer:?}");
            assert!(answer.err.contains("source.eventSource: "), "{answer:?}");
        }
    }
    site.execute(
        "CREATE SCHEMA \"büro\"; ALTER TABLE outbox SET SCHEMA \"büro\"; ALTER TABLE \"büro\".outbox RENAME TO \"aus gänge\";
         ALTER TABLE outbox_checkpoint SET SCHEMA \"büro\"",
    )
    .await;
    let edit = |text: String| text.replace("user: postgres,", "user: postgres, table: 'büro.aus gänge',");
    let insert = format!(
        "INSERT INTO \"büro\".\"aus gänge\" (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', 'k', 't.v1', '1')",
        site.aggregate
    );
    let relay = site.launch(edit);
    relay.until_ready().await;
    site.execute(&insert).await;
    site.until_records(1).await;
    // The relay recognises its own records by the source.
    relay.kill().await;
    let relay = site.launch(edit);
    relay.until_ready().await;
    site.execute(&insert).await;
    let source = format!("/{}/b%C3%BCro.aus%20g%C3%A4nge", site.database.name());
    let records = site.until_records(2).await;
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.header("ce_source") == Some(&source)), "{records:?}");
}
