//! Rows that cannot be delivered: they stop delivery, or become dead letters, and nothing is lost either way.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use testbed::kafka::create_topic;
use testbed::records::{Record, read_all};

use crate::dead_letters::{dead_letters, find, until_dead, with_dead_letters};
use crate::fixture::{PARTITIONS, Relay, Site, heavy_permit};

/// Small, so that rows beyond it are cheap.
const LIMIT: usize = 100_000;

pub async fn site() -> Site {
    let mut site = Site::shared().await;
    with_dead_letters(&mut site, PARTITIONS, &[]).await;
    // Rows that a five-column table for Debezium accepts.
    site.execute("ALTER TABLE outbox ALTER id DROP NOT NULL, ALTER aggregatetype DROP NOT NULL").await;
    site
}

fn limited(text: String) -> String {
    text.replace("sink: {", &format!("sink: {{maxMessageBytes: {LIMIT}, "))
}

/// One row: SQL expressions of id, aggregatetype, payload and headers.
async fn row(site: &Site, key: &str, id: &str, kind: &str, payload: &str, headers: &str) {
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers)
         VALUES ({id}, {kind}, '{key}', 'n.v1', {payload}, {headers})"
    ))
    .await;
}

fn text(bytes: Option<&Vec<u8>>) -> Option<&str> {
    bytes.map(|bytes| std::str::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn every_kind_of_poison_becomes_a_dead_letter_and_other_rows_are_delivered() {
    let site = site().await;
    let relay = site.launch(limited);
    relay.until_ready().await;
    let good = format!("'{}'", site.aggregate);
    let id = "gen_random_uuid()";
    row(&site, "good", id, &good, "'1'", "NULL").await;
    row(&site, "unroutable", id, "'no topic'", "'{\"a\": 1}'", "'{\"own\": \"h\"}'").await;
    row(&site, "dead", id, &format!("'{}-dead'", site.aggregate), "'1'", "NULL").await;
    row(&site, "null", id, "NULL", "'1'", "NULL").await;
    row(&site, "good", id, &good, "'2'", "NULL").await;
    row(&site, "nested", id, &good, "'1'", "'{\"a\": {\"b\": 1}}'").await;
    row(&site, "reserved", id, &good, "'1'", "'{\"ce_id\": \"mine\"}'").await;
    let thousand = "(SELECT jsonb_object_agg('header-' || n, n::text) FROM generate_series(1, 1000) n)";
    row(&site, "good", id, &good, "'3'", thousand).await;
    let huge = format!("jsonb_build_object('h', repeat('x', {LIMIT}))");
    row(&site, "huge-header", id, &good, "'1'", &huge).await;
    row(&site, "large", id, &good, &format!("to_jsonb(repeat('x', {LIMIT}))"), "NULL").await;
    row(&site, "far-too-large", id, &good, "to_jsonb(repeat('x', 20000000))", "NULL").await;
    row(&site, "no-id", "NULL", &good, "'1'", "NULL").await;
    row(&site, "good", id, &good, "NULL", "NULL").await;

    let letters = until_dead(&site, 9).await;
    let reasons = [
        ("unroutable", "unroutable", "'outbox.event.no topic' is not a topic name"),
        ("null", "unroutable", "routing column is NULL"),
        ("nested", "headers", "not a flat JSON object"),
        ("reserved", "headers", "sets 'ce_id'"),
        ("huge-header", "too_large", "sink.maxMessageBytes is 100000"),
        ("large", "too_large", "sink.maxMessageBytes is 100000"),
        ("far-too-large", "too_large", "sink.maxMessageBytes is 100000"),
        ("no-id", "unreadable", "column 'id' is NULL"),
    ];
    for (key, reason, error) in reasons {
        let letter = find(&letters, key);
        assert_eq!(letter.header("dead_letter_reason"), Some(reason), "{key}");
        assert!(letter.header("dead_letter_error").unwrap().contains(error), "{letter:?}");
        assert!(letter.header("ce_sequence").is_some() && letter.header("ce_source").is_some());
        let id = site.value(&format!("SELECT id FROM outbox WHERE aggregateid = '{key}'")).await;
        assert_eq!(letter.header("ce_id").map(str::to_owned), id, "{key}");
    }
    let unroutable = find(&letters, "unroutable");
    assert_eq!(text(unroutable.value.as_ref()), Some("{\"a\": 1}"));
    assert_eq!(unroutable.header("dead_letter_headers"), Some("{\"own\": \"h\"}"));
    assert_eq!(unroutable.header("dead_letter_route"), Some("no topic"));
    for key in ["large", "far-too-large"] {
        assert_eq!(find(&letters, key).value, None);
        assert_eq!(find(&letters, key).header("dead_letter_omitted"), Some("payload"));
        assert_eq!(find(&letters, key).header("dead_letter_table"), Some("public.outbox"));
    }
    assert_eq!(text(find(&letters, "huge-header").value.as_ref()), Some("1"));
    assert_eq!(find(&letters, "huge-header").header("dead_letter_omitted"), Some("headers"));
    assert_eq!(find(&letters, "nested").header("dead_letter_topic"), Some(site.topic().as_str()));

    let records = site.until_records(4).await;
    let values: Vec<Option<&str>> = records.iter().map(|record| text(record.value.as_ref())).collect();
    assert_eq!(values, [Some("1"), Some("2"), Some("3"), None]);
    assert_eq!(records[2].headers.iter().filter(|(name, _)| name.starts_with("header-")).count(), 1000);

    site.until_confirmed(&relay).await;
    assert_eq!((site.records().await.len(), dead_letters(&site).await.len()), (4, 9));
    shown(&relay, 9, &["unroutable", "headers", "too_large", "unreadable"]).await;
}

/// Metric and `/status` agree, and show no payload.
async fn shown(relay: &Relay, count: u32, reasons: &[&str]) {
    assert_eq!(relay.metric("outbox_relay_dead_letters_total").await, f64::from(count));
    let status = relay.status().await;
    assert_eq!(status["deadLetters"]["count"], count);
    let last = status["deadLetters"]["last"]["reason"].as_str().unwrap();
    assert!(reasons.contains(&last), "{status}");
    assert_eq!(status["deadLetters"]["last"]["position"].as_str().map(str::len), Some(42), "{status}");
    assert_eq!((status["ready"].as_bool(), &status["problem"]), (Some(true), &Value::Null));
}

#[tokio::test]
async fn a_record_of_exactly_the_limit_is_delivered_and_one_byte_more_is_not() {
    let site = site().await;
    let relay = site.launch(limited);
    relay.until_ready().await;
    let good = format!("'{}'", site.aggregate);
    let id = "gen_random_uuid()";
    row(&site, "k", id, &good, "'0'", "NULL").await;
    // docs/OUTBOX.md: key, value, headers, id, type, source, and 512 bytes; and the two quotes of a JSON text.
    let source = format!("/{}/public.outbox", site.database.name());
    let room = LIMIT - (512 + "k".len() + 36 + "n.v1".len() + source.len() + 2);
    row(&site, "k", id, &good, &format!("to_jsonb(repeat('x', {room}))"), "NULL").await;
    row(&site, "k", id, &good, &format!("to_jsonb(repeat('x', {}))", room + 1), "NULL").await;
    row(&site, "k", id, &good, "to_jsonb(''::text)", "NULL").await;
    let records = site.until_records(3).await;
    let sizes: Vec<usize> = records.iter().map(|record| record.value.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [1, room + 2, 2]);
    let letters = until_dead(&site, 1).await;
    assert_eq!(letters.len(), 1);
    site.until_confirmed(&relay).await;
}

#[tokio::test]
async fn a_blocked_row_is_delivered_once_dead_letters_are_enabled() {
    let site = site().await;
    let relay = site.launch(|text| text.replace("onPoison: DeadLetter", "onPoison: Stop"));
    relay.until_ready().await;
    let good = format!("'{}'", site.aggregate);
    let id = "gen_random_uuid()";
    row(&site, "k", id, &good, "'1'", "NULL").await;
    row(&site, "k", id, "'no topic'", "'2'", "NULL").await;
    row(&site, "k", id, &good, "'3'", "NULL").await;
    relay.until("/readyz", 503, "PoisonRow").await;
    assert_eq!(site.until_records(1).await.len(), 1, "a row overtook a poison row");
    assert!(dead_letters(&site).await.is_empty());
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    let relay = site.relay().await;
    assert_eq!(site.until_records(2).await.len(), 2);
    assert_eq!(text(until_dead(&site, 1).await[0].value.as_ref()), Some("2"));
    site.until_confirmed(&relay).await;
    shown(&relay, 1, &["unroutable"]).await;
}

#[tokio::test]
async fn rows_from_before_the_first_start_become_dead_letters_too() {
    let site = site().await;
    row(&site, "k", "gen_random_uuid()", "'no topic'", "'1'", "NULL").await;
    site.insert([("k", 2)]).await;
    let relay = site.relay().await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let letters = until_dead(&site, 1).await;
    assert_eq!(find(&letters, "k").header("dead_letter_reason"), Some("unroutable"));
    shown(&relay, 1, &["unroutable"]).await;
}

#[tokio::test]
async fn a_dead_letter_waits_for_its_topic_as_any_event_does() {
    let mut site = site().await;
    site.extra = site.extra.replace("-dead'", "-later'");
    let relay = site.relay().await;
    row(&site, "k", "gen_random_uuid()", "'no topic'", "'1'", "NULL").await;
    site.insert([("k", 2)]).await;
    let later = format!("outbox.event.{}-later", site.aggregate);
    relay.until("/readyz", 503, &format!("TopicMissing: topic {later} does not exist")).await;
    assert!(site.records().await.is_empty(), "a row overtook one whose topic does not exist");
    create_topic(&site.bootstrap, &later, 1, 1, &[]).await.unwrap();
    relay.until_ready().await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let letters = read_all(&site.bootstrap, &[&later]).await.unwrap();
    assert_eq!(find(&letters, "k").header("dead_letter_reason"), Some("unroutable"));
}

#[tokio::test]
async fn kill_9_while_dead_letters_are_sent_leaves_each_exactly_once() {
    let _permit = heavy_permit().await;
    let site = site().await;
    site.relay().await.kill().await;
    let writer = async {
        for n in 0..1_500 {
            // One transaction: an event, a dead letter, an event, of one key.
            let kinds = [site.aggregate.as_str(), "no topic", site.aggregate.as_str()];
            let rows: Vec<String> = kinds
                .iter()
                .map(|kind| format!("(gen_random_uuid(), '{kind}', 'key-{}', 'n.v1', '{n}')", n % 7))
                .collect();
            let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES";
            site.execute(&format!("{insert} {}", rows.join(", "))).await;
        }
    };
    let killer = async {
        for pause in [150, 700, 350, 900, 250, 600, 450, 800] {
            let relay = site.launch(|text| text);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            relay.kill().await;
        }
    };
    tokio::join!(writer, killer);
    let relay = site.relay().await;
    site.until_confirmed(&relay).await;
    exactly(&site, &site.records().await, &format!("aggregatetype = '{}'", site.aggregate)).await;
    exactly(&site, &dead_letters(&site).await, "aggregatetype = 'no topic'").await;
}

/// Asserts that the records are the rows that `condition` selects, each once, in the order of their positions and per
/// key.
pub async fn exactly(site: &Site, records: &[Record], condition: &str) {
    let rows = site.value(&format!("SELECT string_agg(id::text, ',') FROM outbox WHERE {condition}")).await;
    let rows = rows.unwrap();
    let expected: BTreeSet<&str> = rows.split(',').collect();
    let ids: Vec<&str> = records.iter().map(|record| record.header("ce_id").unwrap()).collect();
    assert_eq!(ids.len(), expected.len(), "lost or duplicated");
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
    for partition in 0..PARTITIONS {
        let of = || records.iter().filter(|record| record.partition == partition);
        assert!(of().is_sorted_by_key(|record| record.header("ce_sequence").unwrap()));
        let numbers = of().map(|record| text(record.value.as_ref()).unwrap().parse::<u32>().unwrap());
        assert!(numbers.is_sorted(), "the order of a key");
    }
}

/// With this rule a row can be marked as broken by its type, and goes to the same topic as the others.
fn cured(text: String) -> String {
    format!("{text}routing: {{regex: '(?<routedByValue>[^ ]+)( broken)?'}}\n")
}

#[tokio::test]
async fn dead_letters_are_listed_and_sent_again_by_the_running_relay() {
    let site = site().await;
    let ill = site.launch(limited);
    ill.until_ready().await;
    let [routed, large, nested, nowhere] =
        [1, 2, 3, 4].map(|n| format!("0190a6f8-0000-7000-8000-00000000000{n}"));
    let (good, broken) = (format!("'{}'", site.aggregate), format!("'{} broken'", site.aggregate));
    let own = "'{\"own\": \"h\"}'";
    row(&site, "routed", &format!("'{routed}'"), &broken, "'{\"a\": 1}'", own).await;
    row(&site, "large", &format!("'{large}'"), &good, &format!("to_jsonb(repeat('x', {LIMIT}))"), own).await;
    row(&site, "nested", &format!("'{nested}'"), &good, "'1'", "'{\"a\": {}}'").await;
    row(
        &site,
        "nowhere",
        &format!("'{nowhere}'"),
        &broken.replace(" broken", "-nowhere broken"),
        "'1'",
        "NULL",
    )
    .await;
    until_dead(&site, 4).await;

    let list = site.command(ill.admin, |text| text, &["dead-letters", "list"]).await;
    assert_eq!((list.code, list.out.lines().count()), (Some(0), 4), "{list:?}");
    assert!(list.out.contains(&format!("id={large} the record would have")), "{list:?}");
    let list =
        site.command(ill.admin, |text| text, &["dead-letters", "list", "--json", "--limit", "3"]).await;
    let letters: Vec<Value> = list.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(letters.len(), 3);
    assert!(letters.iter().all(|letter| letter["reason"].is_string() && letter["position"].is_string()));
    let future = ["dead-letters", "list", "--since", "2999-01-01T00:00:00Z"];
    assert_eq!(site.command(ill.admin, |text| text, &future).await.out, "");

    let all = ["dead-letters", "replay", "--all"];
    let answer = site.command(ill.admin, limited, &all).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.out.contains("0 sent, 4 refused"), "no cause was corrected: {answer:?}");

    let well = site.launch(cured);
    well.until("/readyz", 200, "standby").await;
    let answer = site.command(well.admin, cured, &all).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("does not stream") && answer.err.contains("running relay"), "{answer:?}");
    let port = ill.admin;
    ill.stop().await;
    let answer = site.command(port, limited, &all).await;
    assert!(answer.code == Some(69) && answer.err.contains("no relay answers"), "{answer:?}");

    well.until("/readyz", 200, "streaming").await;
    let upper = routed.to_uppercase();
    let one = ["dead-letters", "replay", "--id", &upper, "--id", "unknown"];
    let answer = site.command(well.admin, cured, &one).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(
        answer.out.contains("missing  unknown") && answer.out.contains(&format!("sent     {routed}")),
        "{answer:?}"
    );
    let records = site.until_records(1).await;
    let record = find(&records, "routed");
    assert_eq!(record.header("dead_letter_replayed"), Some("true"));
    assert_eq!(record.header("ce_sequence"), None);
    assert_eq!((record.header("own"), text(record.value.as_ref())), (Some("h"), Some("{\"a\": 1}")));

    let answer = site.command(well.admin, cured, &["dead-letters", "replay", "--json", "--all"]).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    let lines: Vec<Value> = answer.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
    assert_eq!(of(&large)["outcome"], "sent", "{answer:?}");
    assert!(of(&nested)["error"].as_str().unwrap().contains("not a flat JSON object"), "{answer:?}");
    assert!(of(&nowhere)["error"].as_str().unwrap().contains("-nowhere does not exist"), "{answer:?}");
    let records = site.until_records(3).await;
    assert_eq!(find(&records, "large").value.as_ref().map(Vec::len), Some(LIMIT + 2), "from the table");
    assert_eq!(find(&records, "large").header("own"), Some("h"));
    assert_eq!(find(&records, "large").header("content-type"), Some("application/json"));

    // The stream continues during replays, and a row after a replay is neither lost nor treated as a duplicate.
    assert_eq!(well.ask("/readyz").await.unwrap().0, 200);
    site.insert([("large", 1), ("routed", 2), ("other", 3)]).await;
    site.until_records(6).await;
    site.until_confirmed(&well).await;
    well.kill().await;
    let well = site.launch(cured);
    well.until_ready().await;
    site.insert([("large", 4)]).await;
    site.until_records(7).await;
    site.until_confirmed(&well).await;
    assert_eq!(site.records().await.len(), 7, "routed was sent again twice, as asked");
    assert_eq!(well.metric("outbox_relay_duplicates_detected_total").await, 0.0);
}

/// Values that do not fit into a dead letter are read from the table again, a binary key byte for byte.
#[tokio::test]
async fn a_key_of_bytes_is_the_same_after_it_was_read_from_the_table() {
    let site = site().await;
    site.execute("ALTER TABLE outbox ALTER COLUMN aggregateid TYPE bytea USING aggregateid::bytea").await;
    let ill = site.launch(limited);
    ill.until_ready().await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', '\\x00ff', 'large.v1', to_jsonb(repeat('x', {LIMIT})))",
        site.aggregate
    ))
    .await;
    until_dead(&site, 1).await;
    ill.stop().await;
    let well = site.launch(cured);
    well.until("/readyz", 200, "streaming").await;
    let answer = site.command(well.admin, cured, &["dead-letters", "replay", "--all"]).await;
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(site.until_records(1).await[0].key.as_deref(), Some(&b"\x00\xff"[..]));
}
