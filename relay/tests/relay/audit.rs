//! `audit`: every way in which the table and Kafka can differ is found, and nothing else.

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use sqlx::Executor;
use testbed::kafka::{create_topic, delete_records};
use testbed::{net, unique};

use crate::dead_letters::{until_dead, with_dead_letters};
use crate::fixture::{Answer, PARTITIONS, Relay, Site, TIMEOUT, assert_correct};
use crate::procedures::statements;
use crate::replay::Appender;

/// A table that becomes the partition of yesterday: its rows were committed outside of the outbox, so the stream does
/// not have them.
pub const LATE: &str = "CREATE TABLE late (LIKE outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS)";

pub async fn audit(site: &Site, arguments: &[&str]) -> (Value, Answer) {
    let port = net::free_port().unwrap();
    let all: Vec<&str> = ["audit"].iter().chain(arguments).copied().collect();
    let json: Vec<&str> = all.iter().chain(&["--json"]).copied().collect();
    let json = site.command(port, |text| text, &json).await;
    let lines = site.command(port, |text| text, &all).await;
    assert_eq!(json.code, lines.code, "{json:?} {lines:?}");
    (serde_json::from_str(&json.out).unwrap_or_else(|_| panic!("{json:?}")), lines)
}

/// The number of rows or records of each kind of difference.
pub fn differences(found: &Value) -> [usize; 5] {
    ["missing", "duplicates", "phantoms", "outOfOrder", "unverifiable"]
        .map(|kind| found[kind].as_array().unwrap().len())
}

/// Waits until the checkpoint counts all present rows as delivered.
pub async fn until_all_confirmed(site: &Site) {
    let open = "SELECT count(*) FROM outbox o, outbox_checkpoint c WHERE NOT pg_visible_in_snapshot(o.xid, c.delivered_snapshot)";
    site.until_value(open, "0").await;
}

/// A row of yesterday that the relay never reads. Returns its id.
pub async fn insert_late(site: &Site, key: &str) -> String {
    let yesterday = "date_trunc('day', now(), 'UTC') - interval '12 hours'";
    let insert = format!(
        "INSERT INTO late (id, aggregatetype, aggregateid, type, payload, occurred_at, seq)
         VALUES (gen_random_uuid(), '{}', '{key}', 'n.v1', '1', {yesterday}, nextval(pg_get_serial_sequence('outbox', 'seq')))
         RETURNING id",
        site.aggregate
    );
    let id: uuid::Uuid =
        sqlx::query_scalar(sqlx::AssertSqlSafe(insert)).fetch_one(&mut site.sql().await).await.unwrap();
    id.to_string()
}

pub async fn attach_late(site: &Site) {
    let [from, to] =
        ["- interval '1 day'", ""].map(|offset| format!("date_trunc('day', now(), 'UTC') {offset}"));
    let range = format!("SELECT format('FOR VALUES FROM (%L) TO (%L)', {from}, {to})");
    let range = site.value(&range).await.unwrap();
    site.execute(&format!("ALTER TABLE outbox ATTACH PARTITION late {range}")).await;
}

/// A time that a query returns, as `ce_time` shows it.
async fn time_of(site: &Site, query: &str) -> String {
    let format = r#"YYYY-MM-DD"T"HH24:MI:SS.US"Z""#;
    site.value(&format!("SELECT to_char(({query}) AT TIME ZONE 'UTC', '{format}')")).await.unwrap()
}

/// Yesterday's rows are after it.
pub async fn two_days_ago(site: &Site) -> String {
    time_of(site, "SELECT now() - interval '2 days'").await
}

#[tokio::test]
async fn delivered_rows_dead_letters_and_waiting_rows_are_no_differences() {
    let mut site = Site::shared().await;
    with_dead_letters(&mut site, PARTITIONS, &[]).await;
    let relay = site.relay().await;
    let load = site.start_load(300.0).await;
    site.until_records(300).await;
    // It becomes a dead letter, and is replayed once its topic can be found.
    let poison = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), 'no topic', 'k', 'n.v1', '1')";
    site.execute(poison).await;
    until_dead(&site, 1).await;
    let (found, lines) = audit(&site, &[]).await;
    assert_eq!((differences(&found), lines.code), ([0; 5], Some(0)), "under load: {found} {lines:?}");
    assert_correct(&site.verdict(load, &relay).await);
    until_all_confirmed(&site).await;
    relay.stop().await;
    site.insert([("waits", 1), ("waits", 2)]).await;
    let (found, lines) = audit(&site, &[]).await;
    assert_eq!((differences(&found), lines.code), ([0; 5], Some(0)), "{found} {lines:?}");
    let records = site.records().await.len();
    assert_eq!(found["rows"], records + 3, "{found}");
    let counts = ["delivered", "deadLetters", "waiting", "republished"].map(|name| found[name].as_u64());
    assert_eq!(counts, [Some(records as u64), Some(1), Some(2), Some(0)]);
    assert_eq!(found["topics"][site.topic()]["records"], records);
    for line in [format!("delivered     {records}"), "waiting       2".into(), "missing       0".into()] {
        assert!(lines.out.lines().any(|shown| shown == line), "{line} in {lines:?}");
    }

    // The two that wait are not in a period that ends before them.
    let until = time_of(&site, "SELECT min(occurred_at) FROM outbox WHERE aggregateid = 'waits'").await;
    let (found, _) = audit(&site, &["--until", &until]).await;
    assert_eq!((differences(&found), found["waiting"].as_u64()), ([0; 5], Some(0)), "{found}");
}

#[tokio::test]
async fn a_missing_event_a_duplicate_a_phantom_and_a_wrong_order_are_found() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.execute(LATE).await;
    let (missing, disordered) = (insert_late(&site, "late").await, insert_late(&site, "k").await);
    site.insert([("k", 1), ("k", 2), ("k", 3)]).await;
    let records = site.until_records(3).await;
    attach_late(&site).await;
    site.insert([("k", 4)]).await;
    site.until_records(4).await;
    until_all_confirmed(&site).await;
    relay.stop().await;

    let since = two_days_ago(&site).await;
    let scope = ["--since", since.as_str()];
    let (found, lines) = audit(&site, &scope).await;
    assert_eq!((differences(&found), lines.code), ([2, 0, 0, 0, 0], Some(69)), "{found}");
    assert_eq!([&found["missing"][0]["id"], &found["missing"][1]["id"]], [&*missing, &*disordered]);
    assert_eq!(found["missing"][0]["key"], "late");
    assert!(lines.out.contains(&missing) && lines.out.contains("key late"), "{lines:?}");

    // Another process appends: the row that was missing behind newer ones, and a record once more.
    let appender = Appender::new(&site, &[]);
    let like = records.iter().find(|record| record.offset == 0).unwrap();
    let time = time_of(&site, &format!("SELECT occurred_at FROM outbox WHERE id = '{disordered}'")).await;
    appender.append(like, &[("ce_id", &disordered), ("ce_time", &time)]);
    appender.append(like, &[]);
    // A row of another database, and one of this database that does not exist any more.
    appender.append(like, &[("ce_source", "/other/public.outbox"), ("ce_id", "theirs")]);
    let removed = records.iter().find(|record| record.offset == 2).unwrap().header("ce_id").unwrap();
    site.execute(&format!("DELETE FROM outbox WHERE id = '{removed}'")).await;
    let (found, lines) = audit(&site, &scope).await;
    assert_eq!((differences(&found), lines.code), ([1, 1, 1, 1, 0], Some(69)), "{found}");
    assert_eq!(found["duplicates"][0]["id"], like.header("ce_id").unwrap());
    assert_eq!(found["phantoms"][0]["id"], removed);
    assert_eq!(found["outOfOrder"][0]["id"], disordered);
    assert_eq!(found["outOfOrder"][0]["offset"], 4);
    let place = format!("{}/{} at offset 5", site.topic(), like.partition);
    assert!(lines.out.contains(&place), "{lines:?}");

    // The documented procedure.
    let seq = found["missing"][0]["seq"].as_i64().unwrap();
    let insert = statements("Republish missing events").pop().unwrap();
    let insert = format!("CREATE TEMPORARY TABLE missing AS SELECT {seq}::bigint AS seq; {insert}");
    site.sql().await.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
    let relay = site.relay().await;
    site.until_confirmed(&relay).await;
    until_all_confirmed(&site).await;
    relay.stop().await;
    let (found, _) = audit(&site, &scope).await;
    assert_eq!(differences(&found), [0, 1, 1, 1, 0], "{found}");
    assert_eq!(found["republished"], 1);
}

/// Another producer's open transaction hides nothing behind it, and control records at the ends of partitions are no
/// records that are still to come.
#[tokio::test]
async fn transactions_of_other_producers_hide_nothing() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &site.bootstrap)
        .set("transactional.id", unique("open"))
        .create()
        .unwrap();
    other.init_transactions(TIMEOUT).unwrap();
    other.begin_transaction().unwrap();
    let topic = site.topic();
    for partition in 0..PARTITIONS {
        let record = BaseRecord::<str, str>::to(&topic).partition(partition).payload("theirs");
        other.send(record).map_err(|(error, _)| error).unwrap();
    }
    other.flush(TIMEOUT).unwrap();
    site.insert(["a", "b", "c", "d", "e", "f"].map(|key| (key, 1))).await;
    until_all_confirmed(&site).await;
    let (found, _) = audit(&site, &[]).await;
    assert_eq!((differences(&found), found["delivered"].as_u64()), ([0; 5], Some(6)), "{found}");
    other.abort_transaction(TIMEOUT).unwrap();
    let (found, _) = audit(&site, &[]).await;
    assert_eq!((differences(&found), found["delivered"].as_u64()), ([0; 5], Some(6)), "{found}");
    relay.stop().await;
}

/// What retention has removed is not called missing, and neither is what compaction may have removed.
#[tokio::test]
async fn records_that_were_removed_are_not_called_missing() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("k", 1), ("k", 2)]).await;
    let records = site.until_records(2).await;
    until_all_confirmed(&site).await;
    delete_records(&site.bootstrap, &site.topic(), records[0].partition).await.unwrap();
    let (found, lines) = audit(&site, &[]).await;
    assert_eq!((differences(&found), lines.code), ([0, 0, 0, 0, 2], Some(69)), "{found}");
    assert!(lines.out.contains("retention has removed records from before"), "{lines:?}");
    site.insert([("k", 3)]).await;
    site.until_records(1).await;
    until_all_confirmed(&site).await;
    let (found, _) = audit(&site, &[]).await;
    assert_eq!((differences(&found), found["delivered"].as_u64()), ([0, 0, 0, 0, 2], Some(1)), "{found}");
    relay.stop().await;

    let compacted = compacted_site().await;
    let (found, lines) = audit(&compacted, &["--since", &two_days_ago(&compacted).await]).await;
    assert_eq!((differences(&found), lines.code), ([0, 0, 0, 0, 1], Some(69)), "{found}");
    assert!(lines.out.contains("is compacted"), "{lines:?}");
}

/// A site whose topic is compacted, with one row that was delivered and one that was not.
async fn compacted_site() -> Site {
    let servers = testbed::shared().await.unwrap();
    let database = testbed::Database::on(&servers.postgres_url("postgres"), "relay").await.unwrap();
    let site = Site::without_topic(database, servers.kafka_bootstrap());
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &[("cleanup.policy", "compact")])
        .await
        .unwrap();
    let relay: Relay = site.relay().await;
    site.execute(LATE).await;
    insert_late(&site, "late").await;
    attach_late(&site).await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    until_all_confirmed(&site).await;
    relay.stop().await;
    site
}

#[tokio::test]
async fn what_cannot_be_compared_is_said() {
    let site = Site::shared().await;
    let port = net::free_port().unwrap();
    let answer = site.command(port, |text| text, &["audit"]).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("relay relay has no checkpoint yet"), "{answer:?}");
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    relay.stop().await;
    let answer = site.command(port, |text| text, &["audit", "--until", "2020-01-01T00:00:00Z"]).await;
    assert!(answer.err.contains("the period is empty"), "{answer:?}");
    assert_eq!(answer.code, Some(69));
    site.execute("ALTER TABLE outbox DROP COLUMN xid").await;
    let answer = site.command(port, |text| text, &["audit"]).await;
    assert!(
        answer.err.contains("no columns seq") && answer.err.contains("outbox-relay audit needs"),
        "{answer:?}"
    );
    let answer = site.command(port, |text| text, &["audit", "--since", "yesterday"]).await;
    assert_eq!(answer.code, Some(64), "{answer:?}");
}
