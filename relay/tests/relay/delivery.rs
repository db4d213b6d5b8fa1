//! Which records arrive, and their content.

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use std::collections::HashMap;
use testbed::kafka::create_topic;
use testbed::records::{Record, read_all};

use crate::fixture::{PARTITIONS, Site, TIMEOUT};

fn text(bytes: Option<&Vec<u8>>) -> Option<&str> {
    bytes.map(|bytes| std::str::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn a_row_becomes_a_cloudevents_record() {
    let site = Site::shared().await;
    let _relay = site.relay().await;
    let insert = format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, traceparent)
         VALUES ('0190a6f8-0000-7000-8000-000000000001', '{}', 'key-1', 'thing.done.v1', '{{\"b\":1,\"a\":[true,null]}}',
                 '{{\"tenant\":\"x\"}}', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')",
        site.aggregate
    );
    site.execute(&insert).await;
    let records = site.until_records(1).await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(text(record.key.as_ref()), Some("key-1"));
    assert_eq!(text(record.value.as_ref()), site.value("SELECT payload::text FROM outbox").await.as_deref());
    let time =
        "to_char((SELECT occurred_at FROM outbox) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let time = site.value(time).await.unwrap();
    let source = format!("/{}/public.outbox", site.database.name());
    let sequence = record.header("ce_sequence").unwrap().to_owned();
    let expected = [
        ("ce_specversion", "1.0"),
        ("ce_id", "0190a6f8-0000-7000-8000-000000000001"),
        ("ce_source", &source),
        ("ce_type", "thing.done.v1"),
        ("ce_time", &time),
        ("ce_sequence", &sequence),
        ("content-type", "application/json"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("ce_traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tenant", "x"),
    ];
    let seen: Vec<(&str, &str)> =
        record.headers.iter().map(|(name, value)| (name.as_str(), text(value.as_ref()).unwrap())).collect();
    assert_eq!(seen, expected);
    let millis = "floor(extract(epoch FROM (SELECT occurred_at FROM outbox)) * 1000)::bigint";
    assert_eq!(record.timestamp.map(|t| t.to_string()), site.value(millis).await);
}

#[tokio::test]
async fn partitions_are_those_of_kafkas_java_client() {
    let site = Site::shared().await;
    let _relay = site.relay().await;
    let keys: Vec<String> = (0..40).map(|n| format!("key-{n}")).collect();
    site.insert(keys.iter().map(|key| (key.as_str(), 1))).await;
    let ours = partition_of_key(&site.until_records(keys.len()).await);
    // librdkafka's murmur2 partitioner is the independent reference.
    let other = format!("{}.murmur2", site.topic());
    create_topic(&site.bootstrap, &other, PARTITIONS, 1, &[]).await.unwrap();
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", &site.bootstrap)
        .set("partitioner", "murmur2")
        .create()
        .unwrap();
    for key in &keys {
        producer.send(BaseRecord::to(&other).key(key).payload("")).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
    let theirs = partition_of_key(&read_all(&site.bootstrap, &[&other]).await.unwrap());
    assert_eq!(ours, theirs);
}

fn partition_of_key(records: &[Record]) -> HashMap<String, i32> {
    records.iter().map(|record| (text(record.key.as_ref()).unwrap().to_owned(), record.partition)).collect()
}

#[tokio::test]
async fn only_what_is_committed_is_published_and_each_row_once() {
    let site = Site::shared().await;
    let _relay = site.relay().await;
    let row = |n: i32| {
        let values = format!("(gen_random_uuid(), '{}', 'k', 'n.v1', '{n}')", site.aggregate);
        format!("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES {values};")
    };
    let statements = format!(
        "BEGIN; {} ROLLBACK; BEGIN; {} SAVEPOINT s; {} ROLLBACK TO s; {} RELEASE s; {} COMMIT;",
        row(-1),
        row(1),
        row(-2),
        row(2),
        row(3)
    );
    site.execute(&statements).await;
    site.insert([("k", 4), ("k", 5), ("k", 6)]).await;
    let mut sql = site.sql().await;
    let copy = "COPY outbox (id, aggregatetype, aggregateid, type, payload) FROM STDIN";
    let mut copying = sql.copy_in_raw(copy).await.unwrap();
    for n in 7..=9 {
        let id = format!("0190a6f8-0000-7000-8000-00000000000{n}");
        copying.send(format!("{id}\t{}\tk\tn.v1\t{n}\n", site.aggregate).into_bytes()).await.unwrap();
    }
    copying.finish().await.unwrap();
    let records = site.until_records(9).await;
    let numbers: Vec<i32> = records.iter().map(number).collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
    let sequences: Vec<&str> = records.iter().map(|record| record.header("ce_sequence").unwrap()).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "positions are distinct and sort as text: {sequences:?}");
}

/// Payloads are `n` or `{"n": n}`.
fn number(record: &Record) -> i32 {
    let value: serde_json::Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
    value.as_i64().or_else(|| value["n"].as_i64()).unwrap() as i32
}

#[tokio::test]
async fn a_table_of_debeziums_five_columns_works_and_nulls_stay_nulls() {
    let mut site = Site::shared().await;
    site.execute(
        "CREATE TABLE debezium_outbox (id uuid, aggregatetype varchar(255), aggregateid varchar(255),
         type varchar(255), payload bytea)",
    )
    .await;
    site.extra = "routing: {regex: '(?<kind>.+)', replacement: 'outbox.event.${kind}'}\n".into();
    let relay = site.launch(|text| {
        text.replace("user: postgres,", "user: postgres, table: public.debezium_outbox, start: Now,")
    });
    relay.until_ready().await;
    let insert = format!(
        "INSERT INTO debezium_outbox VALUES (gen_random_uuid(), '{0}', 'k', 't', '\\x00ff7b'),
                                            (gen_random_uuid(), '{0}', 'k', 't', NULL),
                                            (gen_random_uuid(), '{0}', NULL, 't', '')",
        site.aggregate
    );
    site.execute(&insert).await;
    let mut records = site.until_records(3).await;
    records.sort_by_key(|record| record.header("ce_sequence").unwrap().to_owned());
    let values: Vec<Option<&[u8]>> = records.iter().map(|record| record.value.as_deref()).collect();
    assert_eq!(values, [Some(&b"\x00\xff\x7b"[..]), None, Some(&b""[..])]);
    assert_eq!(text(records[0].key.as_ref()), Some("k"));
    assert_eq!(records[2].key, None);
    assert!(records[0].header("content-type").is_none(), "the content type of bytes is unknown");
}

#[tokio::test]
async fn text_and_json_payloads_arrive_byte_for_byte() {
    for (kind, payload) in [("json", "{ \"b\" : 1,  \"a\":2 }"), ("text", " not json \u{e9} ")] {
        let site = Site::shared().await;
        site.execute(&format!("ALTER TABLE outbox ALTER COLUMN payload TYPE {kind} USING NULL")).await;
        let _relay = site.relay().await;
        let insert =
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid()";
        site.execute(&format!("{insert}, '{}', 'k', 't', '{payload}')", site.aggregate)).await;
        assert_eq!(text(site.until_records(1).await[0].value.as_ref()), Some(payload));
    }
}

#[tokio::test]
async fn a_configured_rule_routes_by_another_column() {
    let mut site = Site::shared().await;
    site.extra = format!(
        "routing: {{byField: type, regex: '(?<kind>[a-z]+)\\.v[0-9]+', replacement: 'outbox.event.{}'}}\n",
        site.aggregate
    );
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    // A row that does not match the rule is not skipped, because that would lose it.
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)";
    site.execute(&format!("{insert} VALUES (gen_random_uuid(), 'x', 'k', 'UNROUTABLE', '1')")).await;
    relay.until("/readyz", 503, "PoisonRow").await;
    assert_eq!(site.records().await.len(), 1);
    assert_eq!(relay.ask("/livez").await.unwrap().0, 200);
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("stopped at a row that cannot be delivered yet"),
        "a row that only a person can help on must not hold up a stop: {log}"
    );
}
