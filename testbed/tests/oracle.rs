//! Load, reader and checker against real servers, with no relay between: the test itself carries rows to Kafka, so
//! it knows what the verdict has to be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use sqlx::Row;
use testbed::checker::{Verdict, check};
use testbed::load::{Backlog, Fate, Load, LoadOptions, Log, write_backlog};
use testbed::log_ends::LogEnds;
use testbed::postgres::{Postgres, PostgresOptions};
use testbed::records::{Record, Tail, read_all};
use testbed::{Database, kafka, shared, unique, wait};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(120);

/// Waits until the load has committed `rows`.
async fn committed(load: &Load, rows: u64) {
    wait::until(format!("{rows} committed rows"), SOON, async || match load.committed() {
        seen if seen >= rows => Ok(()),
        seen => Err(seen),
    })
    .await
    .unwrap();
}

/// A load in `topic` that rolls back a lot.
fn options(topic: &str) -> LoadOptions {
    LoadOptions {
        rate: None,
        rollback_percent: 25,
        savepoint_percent: 40,
        topic: topic.to_owned(),
        ..LoadOptions::default()
    }
}

fn ids(log: &Log, fate: Fate) -> HashSet<Uuid> {
    log.rows().iter().filter(|row| row.fate == fate).map(|row| row.id).collect()
}

/// What a faultless relay would send: every row of the table in insertion order.
async fn rows(database: &Database, topic: &str) -> Vec<Record> {
    let mut connection = database.connect().await.unwrap();
    let sql =
        "SELECT id::text, type, aggregateid, payload::text, headers ->> 'load-key' FROM outbox ORDER BY seq";
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    let text = |row: &sqlx::postgres::PgRow, column: usize| Some(row.get::<String, _>(column).into_bytes());
    let record = |row: sqlx::postgres::PgRow| Record {
        topic: topic.to_owned(),
        partition: 0,
        offset: 0,
        timestamp: None,
        key: text(&row, 2),
        value: text(&row, 3),
        headers: vec![
            ("ce_id".to_owned(), text(&row, 0)),
            ("ce_type".to_owned(), text(&row, 1)),
            ("load-key".to_owned(), text(&row, 4)),
        ],
    };
    rows.into_iter().map(record).collect()
}

/// Appends records to their topic, in this order per key.
async fn produce(records: &[Record]) {
    let bootstrap = shared().await.unwrap().kafka_bootstrap();
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for record in records {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        let key = record.key.clone().unwrap();
        let value = record.value.clone().unwrap();
        producer.send(BaseRecord::to(&record.topic).key(&key).payload(&value).headers(headers)).unwrap();
    }
    tokio::task::spawn_blocking(move || producer.flush(SOON).unwrap()).await.unwrap();
}

async fn judge(log: &Log, topic: &str) -> Verdict {
    check(log, &read_all(shared().await.unwrap().kafka_bootstrap(), &[topic]).await.unwrap())
}

/// Counts of lost, phantom, duplicate, reordered, corrupted.
fn counts(verdict: &Verdict) -> [usize; 5] {
    verdict.findings().map(|(_, findings)| findings.count)
}

#[tokio::test]
async fn a_faithful_copy_is_right_and_every_fault_in_kafka_is_found() {
    let database = Database::fresh("oracle").await.unwrap();
    let topic = unique("oracle");
    let bootstrap = shared().await.unwrap().kafka_bootstrap();
    kafka::create_topic(bootstrap, &topic, 3, 1, &[]).await.unwrap();
    let load = Load::start(database.url(), options(&topic)).await.unwrap();
    committed(&load, 500).await;
    let log = load.stop().await.unwrap();
    assert!(log.count(Fate::RolledBack) > 0, "nothing was rolled back");

    let rows = rows(&database, &topic).await;
    let (last, all_but_last) = rows.split_last().unwrap();
    produce(all_but_last).await;
    let verdict = judge(&log, &topic).await;
    assert_eq!(counts(&verdict), [1, 0, 0, 0, 0], "{verdict}");
    assert_eq!(verdict.lost.examples[0].id, last.event_id(), "{verdict}");

    produce(std::slice::from_ref(last)).await;
    let verdict = judge(&log, &topic).await;
    assert!(verdict.is_right(), "{verdict}");
    assert_eq!(verdict.records, log.count(Fate::Committed));

    // Each fault stays in the topic, so the counts add up.
    produce(&rows[..3]).await;
    let verdict = judge(&log, &topic).await;
    assert_eq!(counts(&verdict), [0, 0, 3, 0, 0], "{verdict}");
    let mut changed = rows[0].clone();
    changed.value = Some(b"{}".to_vec());
    produce(&[changed]).await;
    let verdict = judge(&log, &topic).await;
    assert_eq!(counts(&verdict), [0, 0, 4, 0, 1], "{verdict}");
    let rolled_back = log.rows().iter().find(|row| row.fate == Fate::RolledBack).unwrap();
    let mut phantom = rows[0].clone();
    phantom.headers[0].1 = Some(rolled_back.id.to_string().into_bytes());
    produce(&[phantom]).await;
    let verdict = judge(&log, &topic).await;
    assert_eq!(counts(&verdict), [0, 1, 4, 0, 1], "{verdict}");
}

#[tokio::test]
async fn rows_carried_in_the_wrong_order_are_reordered() {
    let database = Database::fresh("oracle_order").await.unwrap();
    let topic = unique("oracle_order");
    kafka::create_topic(shared().await.unwrap().kafka_bootstrap(), &topic, 3, 1, &[]).await.unwrap();
    let load = Load::start(database.url(), options(&topic)).await.unwrap();
    committed(&load, 300).await;
    let log = load.stop().await.unwrap();
    let mut rows = rows(&database, &topic).await;
    let first = rows.remove(0);
    let next = rows.iter().position(|row| row.key == first.key).unwrap();
    rows.insert(next + 1, first);
    produce(&rows).await;
    let verdict = judge(&log, &topic).await;
    assert_eq!(counts(&verdict), [0, 0, 0, 1, 0], "{verdict}");
}

#[tokio::test]
async fn a_tail_sees_what_is_there_and_what_comes() {
    let topic = unique("tail");
    let bootstrap = shared().await.unwrap().kafka_bootstrap();
    kafka::create_topic(bootstrap, &topic, 3, 1, &[]).await.unwrap();
    let record = |number: u32| Record {
        topic: topic.clone(),
        partition: 0,
        offset: 0,
        timestamp: None,
        key: Some(number.to_string().into_bytes()),
        value: Some(b"{}".to_vec()),
        headers: vec![("ce_id".to_owned(), Some(Uuid::from_u128(number.into()).to_string().into_bytes()))],
    };
    produce(&(0..10).map(record).collect::<Vec<_>>()).await;
    let tail = Tail::start(bootstrap, &[&topic]).await.unwrap();
    let mut seen = HashSet::new();
    for _ in 0..10 {
        seen.insert(tokio::time::timeout(SOON, tail.next()).await.unwrap().unwrap().event_id().unwrap());
    }
    produce(&(10..20).map(record).collect::<Vec<_>>()).await;
    for _ in 0..10 {
        seen.insert(tokio::time::timeout(SOON, tail.next()).await.unwrap().unwrap().event_id().unwrap());
    }
    assert_eq!(seen, (0..20).map(Uuid::from_u128).collect());
    assert!(Tail::start(bootstrap, &["no-such-topic"]).await.is_err());
}

#[tokio::test]
async fn the_log_is_what_the_table_holds_although_postgres_was_killed() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let database = Database::on(&postgres.url("postgres"), "killed").await.unwrap();
    let load = Load::start(database.url(), options("t")).await.unwrap();
    committed(&load, 200).await;
    postgres.kill().await.unwrap();
    let before = load.committed();
    postgres.start_again().await.unwrap();
    committed(&load, before + 200).await;
    let mut log = load.stop().await.unwrap();
    log.settle(database.url(), "outbox").await.unwrap();
    let table = Log::of_table(database.url(), "outbox", |_| "t".to_owned()).await.unwrap();
    assert_eq!(ids(&log, Fate::Committed), ids(&table, Fate::Committed));
    assert_eq!(log.count(Fate::Indeterminate), 0);
    let digests = |log: &Log| -> HashSet<(Uuid, Option<u64>)> {
        log.rows().iter().filter(|row| row.fate == Fate::Committed).map(|row| (row.id, row.payload)).collect()
    };
    assert_eq!(digests(&log), digests(&table), "the payload is logged as the database gives it");
}

#[tokio::test]
async fn a_backlog_has_all_its_rows_in_transactions_of_the_wanted_size() {
    let database = Database::fresh("backlog").await.unwrap();
    let backlog = Backlog { rows: 1_000, rows_per_transaction: vec![7], keys: 10, ..Backlog::default() };
    write_backlog(database.url(), &backlog).await.unwrap();
    let log = Log::of_table(database.url(), "outbox", str::to_owned).await.unwrap();
    assert_eq!(log.count(Fate::Committed), 1_000);
    let keys: HashSet<&str> = log.rows().iter().map(|row| &*row.key).collect();
    assert_eq!(keys.len(), 10);
    let mut connection = database.connect().await.unwrap();
    let transactions: i64 = sqlx::query_scalar("SELECT count(DISTINCT xid) FROM outbox")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(transactions, 143, "1,000 rows by sevens");
}

#[tokio::test]
async fn payloads_of_a_backlog_are_as_large_for_postgresql_as_for_a_reader() {
    let database = Database::fresh("backlog").await.unwrap();
    let backlog = Backlog { rows: 3, filler_bytes: 20_000, ..Backlog::default() };
    write_backlog(database.url(), &backlog).await.unwrap();
    let mut connection = database.connect().await.unwrap();
    let sizes = "SELECT length(payload ->> 'filler'), pg_column_size(payload) FROM outbox";
    let found: Vec<(i32, i32)> = sqlx::query_as(sizes).fetch_all(&mut connection).await.unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|(text, stored)| *text == 20_000 && stored >= text), "{found:?}");
}

#[tokio::test]
async fn transactions_of_a_backlog_take_turns_in_size_and_type() {
    let database = Database::fresh("backlog").await.unwrap();
    let backlog = Backlog { rows: 25, rows_per_transaction: vec![1, 10], types: 3, ..Backlog::default() };
    write_backlog(database.url(), &backlog).await.unwrap();
    let mut connection = database.connect().await.unwrap();
    let by_transaction = "SELECT min(aggregatetype), count(*) FROM outbox GROUP BY xid ORDER BY min(seq)";
    let transactions: Vec<(String, i64)> =
        sqlx::query_as(by_transaction).fetch_all(&mut connection).await.unwrap();
    let rows: Vec<i64> = transactions.iter().map(|(_, rows)| *rows).collect();
    assert_eq!(rows, [1, 10, 1, 10, 1, 2]);
    let types: Vec<&str> = transactions.iter().map(|(aggregatetype, _)| aggregatetype.as_str()).collect();
    assert_eq!(types, ["load-0", "load-1", "load-2", "load-0", "load-1", "load-2"]);
    assert_eq!(backlog.aggregatetypes(), ["load-0", "load-1", "load-2"]);
}

#[tokio::test]
async fn the_ends_of_logs_say_how_many_records_there_are_and_when_they_were_appended() {
    let bootstrap = shared().await.unwrap().kafka_bootstrap();
    let topics = [unique("ends"), unique("ends")];
    for topic in &topics {
        let by_arrival = [("message.timestamp.type", "LogAppendTime")];
        kafka::create_topic(bootstrap, topic, 3, 1, &by_arrival).await.unwrap();
    }
    let logs = LogEnds::open(bootstrap, &topics).await.unwrap();
    assert_eq!(logs.records().await.unwrap(), 0);
    assert_eq!(logs.appended().await.unwrap(), None);
    for topic in topics.iter().cycle().take(11) {
        let record = Record {
            topic: topic.clone(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: Some(Uuid::new_v4().into_bytes().to_vec()),
            value: Some(b"{}".to_vec()),
            headers: Vec::new(),
        };
        produce(&[record]).await;
    }
    let found = read_all(bootstrap, &[&topics[0], &topics[1]]).await.unwrap();
    let time =
        |record: &Record| SystemTime::UNIX_EPOCH + Duration::from_millis(record.timestamp.unwrap() as u64);
    let mut partitions: BTreeMap<(&str, i32), Vec<SystemTime>> = BTreeMap::new();
    for record in &found {
        partitions.entry((&record.topic, record.partition)).or_default().push(time(record));
    }
    assert_eq!(logs.records().await.unwrap(), 11);
    let appended = logs.appended().await.unwrap().unwrap();
    assert_eq!(Some(appended.first), found.iter().map(time).min());
    assert_eq!(Some(appended.last), found.iter().map(time).max());
    let middles = partitions.values().map(|times| times[times.len() / 2]);
    let middle: Duration = middles.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap()).sum();
    assert_eq!(appended.middle, SystemTime::UNIX_EPOCH + middle / partitions.len() as u32);
    let later = LogEnds::open(bootstrap, &topics).await.unwrap();
    assert_eq!(later.records().await.unwrap(), 0);
    assert!(LogEnds::open(bootstrap, &["no-such-topic".to_owned()]).await.is_err());
}
