//! Records that Kafka refuses: the row becomes a dead letter or stops delivery, and the relay is not ready while it
//! lasts.

use std::time::Duration;

use testbed::kafka::{alter_topic, create_topic, grow_topic};
use testbed::records::Record;
use testbed::wait;

use crate::dead_letters::{self, dead_letters, dead_topic, until_dead};
use crate::fixture::{Relay, Site, TIMEOUT, heavy_permit};
use crate::kafka_access::{Guarded, PASSWORD, USER};

/// A size that the topic's `max.message.bytes` allows, but its `segment.bytes` does not.
const TOPIC: [(&str, &str); 2] = [("max.message.bytes", "5000000"), ("segment.bytes", "1048576")];
const LARGER_SEGMENTS: [(&str, &str); 2] = [("max.message.bytes", "5000000"), ("segment.bytes", "10485760")];
const COMPACTED: [(&str, &str); 1] = [("cleanup.policy", "compact")];
const NOT_COMPACTED: [(&str, &str); 1] = [("cleanup.policy", "delete")];

/// A site whose topics have one partition and these settings.
async fn site(topic: &[(&str, &str)], dead_topic_settings: &[(&str, &str)]) -> Site {
    let servers = testbed::shared().await.unwrap();
    let database = testbed::Database::on(&servers.postgres_url("postgres"), "relay").await.unwrap();
    let mut site = Site::without_topic(database, servers.kafka_bootstrap());
    create_topic(&site.bootstrap, &site.topic(), 1, 1, topic).await.unwrap();
    with_dead_letters(&mut site, dead_topic_settings).await;
    site
}

async fn with_dead_letters(site: &mut Site, settings: &[(&str, &str)]) {
    dead_letters::with_dead_letters(site, 1, settings).await;
    site.execute("ALTER TABLE outbox ALTER aggregateid DROP NOT NULL").await;
}

/// Batches as large as the topic's `max.message.bytes` allows.
fn large_records(text: String) -> String {
    text.replace("sink: {", "sink: {maxMessageBytes: 5000000, ")
}

fn stop(text: String) -> String {
    large_records(text).replace("onPoison: DeadLetter", "onPoison: Stop")
}

/// Inserts one row from SQL expressions of aggregatetype, key and payload. Returns its id.
async fn row(site: &Site, kind: &str, key: &str, payload: &str) -> String {
    let insert = format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), {kind}, {key}, 'n.v1', {payload}) RETURNING id::text"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(insert)).fetch_one(&mut site.sql().await).await.unwrap()
}

async fn event(site: &Site, key: &str, payload: &str) -> String {
    row(site, &format!("'{}'", site.aggregate), key, payload).await
}

/// 2 MB that remain larger than a segment after compression.
const LARGE: &str =
    "(SELECT to_jsonb(string_agg(md5(n::text || random()), '')) FROM generate_series(1, 62500) n)";

fn ids(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.header("ce_id").unwrap()).collect()
}

/// Queries `/readyz` every 50 ms: the relay must not report that it is ready.
async fn never_ready(relay: &Relay, for_long: Duration) {
    let until = tokio::time::Instant::now() + for_long;
    while tokio::time::Instant::now() < until {
        let (status, text) = relay.ask("/readyz").await.unwrap();
        assert_eq!(status, 503, "{text}\n{}", relay.program.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn times_ready_again(log: &str) -> usize {
    log.matches("ready again").count()
}

#[tokio::test]
async fn a_row_without_a_key_in_a_compacted_topic_becomes_a_dead_letter() {
    let site = site(&COMPACTED, &[]).await;
    let relay = site.relay().await;
    let first = event(&site, "'k'", "'1'").await;
    let keyless = event(&site, "NULL", "'2'").await;
    let last = event(&site, "'k'", "'3'").await;
    assert_eq!(ids(&site.until_records(2).await), [first.as_str(), last.as_str()]);
    let letters = until_dead(&site, 1).await;
    assert_eq!(ids(&letters), [keyless.as_str()]);
    assert_eq!(letters[0].key, None);
    assert_eq!(letters[0].header("dead_letter_reason"), Some("no_key"));
    assert!(letters[0].header("dead_letter_error").unwrap().contains("is compacted"), "{letters:?}");
    site.until_confirmed(&relay).await;
    assert_eq!(
        relay.metric("outbox_relay_producer_rebuilds_total").await,
        0.0,
        "the refusal was predictable"
    );
}

#[tokio::test]
async fn a_row_without_a_key_stops_delivery_until_the_topic_is_no_longer_compacted() {
    let site = site(&COMPACTED, &[]).await;
    let relay = site.launch(stop);
    relay.until_ready().await;
    let first = event(&site, "'k'", "'1'").await;
    let keyless = event(&site, "NULL", "'2'").await;
    let last = event(&site, "'k'", "'3'").await;
    let shown = relay.until("/readyz", 503, "PoisonRow").await;
    assert!(shown.contains(&format!("event {keyless} at 0000000")), "{shown}");
    assert!(shown.contains(&format!("topic {} is compacted", site.topic())), "{shown}");
    assert_eq!(ids(&site.until_records(1).await), [first.as_str()]);
    never_ready(&relay, Duration::from_secs(2)).await;
    alter_topic(&site.bootstrap, &site.topic(), &NOT_COMPACTED).await.unwrap();
    relay.until_ready().await;
    let records = site.until_records(3).await;
    assert_eq!(ids(&records), [first.as_str(), keyless.as_str(), last.as_str()]);
    site.until_confirmed(&relay).await;
}

/// First the broker refuses, then the relay reads the settings again and applies them.
#[tokio::test]
async fn a_topic_may_become_compacted_while_the_relay_runs() {
    let site = site(&[], &[]).await;
    let relay = site.relay().await;
    let first = event(&site, "NULL", "'1'").await;
    site.until_records(1).await;
    alter_topic(&site.bootstrap, &site.topic(), &COMPACTED).await.unwrap();
    let keyless = event(&site, "NULL", "'2'").await;
    let last = event(&site, "'k'", "'3'").await;
    assert_eq!(ids(&site.until_records(2).await), [first.as_str(), last.as_str()]);
    let letters = until_dead(&site, 1).await;
    assert_eq!(ids(&letters), [keyless.as_str()]);
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    relay.kill().await;
    let relay = site.relay().await;
    site.until_confirmed(&relay).await;
    assert_eq!((site.records().await.len(), dead_letters(&site).await.len()), (2, 1));
}

#[tokio::test]
async fn a_row_that_only_the_broker_can_check_becomes_a_dead_letter_and_the_others_are_delivered() {
    let _permit = heavy_permit().await;
    let site = site(&TOPIC, &[]).await;
    let relay = site.launch(large_records);
    relay.until_ready().await;
    let first = event(&site, "'k'", "'1'").await;
    let refused = [event(&site, "'k'", LARGE).await, event(&site, "'k'", LARGE).await];
    let last = event(&site, "'k'", "'2'").await;
    let letters = until_dead(&site, 2).await;
    assert_eq!(ids(&letters), [refused[0].as_str(), refused[1].as_str()]);
    for letter in &letters {
        assert_eq!(letter.header("dead_letter_reason"), Some("refused"));
        let error = letter.header("dead_letter_error").unwrap();
        assert!(error.contains("MessageBatchTooLarge"), "{error}");
        assert_eq!(letter.header("dead_letter_topic"), Some(site.topic().as_str()));
    }
    assert_eq!(ids(&site.until_records(2).await), [first.as_str(), last.as_str()]);
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    // Refusals of confirmed rows are dropped.
    wait::until("the refusals are forgotten", TIMEOUT, async || {
        let mapping = site.value("SELECT mapping::text FROM outbox_checkpoint").await.unwrap();
        if mapping.contains("refused") { Err(mapping) } else { Ok(()) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_refused_row_stops_delivery_and_the_relay_is_not_ready_until_the_broker_accepts_it() {
    let _permit = heavy_permit().await;
    let site = site(&TOPIC, &[]).await;
    let relay = site.launch(stop);
    relay.until_ready().await;
    let first = event(&site, "'k'", "'1'").await;
    site.until_records(1).await;
    let before = times_ready_again(&relay.program.log());
    let refused = event(&site, "'k'", LARGE).await;
    let last = event(&site, "'k'", "'2'").await;
    relay.until("/readyz", 503, "").await;
    let until_poison = relay.until("/readyz", 503, "PoisonRow");
    let (shown, ()) = tokio::join!(until_poison, never_ready(&relay, Duration::from_secs(5)));
    for part in [&format!("event {refused} at 0000000"), &site.topic(), "MessageBatchTooLarge"] {
        assert!(shown.contains(part), "{shown}");
    }
    // Longer than the retry interval of the row.
    never_ready(&relay, Duration::from_secs(15)).await;
    assert!(relay.status().await["lastProblem"]["until"].is_null());
    let log = relay.program.log();
    assert_eq!(times_ready_again(&log), before, "{log}");

    // The new session knows the refusal from its start.
    relay.kill().await;
    let relay = site.launch(stop);
    relay.until("/readyz", 503, &format!("PoisonRow: event {refused}")).await;
    assert_eq!(ids(&site.records().await), [first.as_str()]);

    alter_topic(&site.bootstrap, &site.topic(), &LARGER_SEGMENTS).await.unwrap();
    relay.until_ready().await;
    assert_eq!(ids(&site.until_records(3).await), [first.as_str(), refused.as_str(), last.as_str()]);
    site.until_confirmed(&relay).await;
    relay.kill().await;
    let relay = site.launch(stop);
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    assert_eq!(site.records().await.len(), 3);
}

#[tokio::test]
async fn kill_9_while_rows_are_refused_leaves_each_exactly_once() {
    let _permit = heavy_permit().await;
    let site = site(&TOPIC, &[]).await;
    site.launch(large_records).kill().await;
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    for n in 0..4 {
        good.push(event(&site, "'k'", &format!("'{n}'")).await);
        refused.push(event(&site, "'k'", LARGE).await);
    }
    for pause in [600, 1_500, 900, 2_000, 1_200] {
        let relay = site.launch(large_records);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        relay.kill().await;
    }
    let relay = site.launch(large_records);
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    assert_eq!(ids(&site.records().await), good);
    assert_eq!(ids(&dead_letters(&site).await), refused);
}

#[tokio::test]
async fn a_snapshot_continues_after_rows_that_the_broker_refuses() {
    let _permit = heavy_permit().await;
    let site = site(&TOPIC, &[]).await;
    let first = event(&site, "'k'", "'1'").await;
    let refused = event(&site, "'k'", LARGE).await;
    let last = event(&site, "'k'", "'2'").await;
    let relay = site.launch(large_records);
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    assert_eq!(ids(&site.until_records(2).await), [first.as_str(), last.as_str()]);
    assert_eq!(ids(&until_dead(&site, 1).await), [refused.as_str()]);
    relay.until_ready().await;
}

#[tokio::test]
async fn a_dead_letter_topic_that_accepts_no_keyless_record_is_named() {
    let site = site(&[], &COMPACTED).await;
    let relay = site.relay().await;
    let lost = row(&site, "'no topic'", "NULL", "'1'").await;
    let last = event(&site, "'k'", "'2'").await;
    let shown = relay.until("/readyz", 503, "PoisonRow").await;
    assert!(shown.contains(&format!("event {lost} at ")), "{shown}");
    assert!(shown.contains(&format!("topic {} is compacted", dead_topic(&site))), "{shown}");
    never_ready(&relay, Duration::from_secs(2)).await;
    alter_topic(&site.bootstrap, &dead_topic(&site), &NOT_COMPACTED).await.unwrap();
    relay.until_ready().await;
    assert_eq!(ids(&until_dead(&site, 1).await), [lost.as_str()]);
    assert_eq!(ids(&site.until_records(1).await), [last.as_str()]);
}

#[tokio::test]
async fn a_dead_letter_topic_that_refuses_is_named_and_retried() {
    let _permit = heavy_permit().await;
    let site = site(&[], &TOPIC).await;
    let relay = site.launch(large_records);
    relay.until_ready().await;
    let lost = row(&site, "'no topic'", "'k'", LARGE).await;
    let last = event(&site, "'k'", "'2'").await;
    let shown = relay.until("/readyz", 503, "PoisonRow").await;
    assert!(shown.contains(&format!("event {lost} at ")), "{shown}");
    assert!(shown.contains(&format!("Kafka refused the record for topic {}", dead_topic(&site))), "{shown}");
    never_ready(&relay, Duration::from_secs(15)).await;
    alter_topic(&site.bootstrap, &dead_topic(&site), &LARGER_SEGMENTS).await.unwrap();
    relay.until_ready().await;
    assert_eq!(ids(&until_dead(&site, 1).await), [lost.as_str()]);
    assert_eq!(ids(&site.until_records(1).await), [last.as_str()]);
    site.until_confirmed(&relay).await;
}

#[tokio::test]
async fn no_event_goes_to_kafkas_internal_topics_or_to_illegal_ones() {
    let mut site = site(&[], &[]).await;
    site.extra.push_str("routing: {replacement: '${routedByValue}'}\n");
    let relay = site.relay().await;
    let topics = ["__consumer_offsets", "__transaction_state", "__cluster_metadata", ".", "..", "a b", ""];
    let mut lost = Vec::new();
    for topic in topics.into_iter().chain([&*"x".repeat(250)]) {
        lost.push(row(&site, &format!("'{topic}'"), "'k'", "'1'").await);
    }
    let last = row(&site, &format!("'{}'", site.topic()), "'k'", "'2'").await;
    assert_eq!(ids(&site.until_records(1).await), [last.as_str()]);
    let letters = until_dead(&site, lost.len()).await;
    assert_eq!(ids(&letters), lost);
    assert!(letters.iter().all(|letter| letter.header("dead_letter_reason") == Some("unroutable")));
    let error = letters[0].header("dead_letter_error").unwrap();
    assert!(error.contains("'__consumer_offsets' is an internal topic of Kafka"), "{error}");
    site.until_confirmed(&relay).await;
}

/// The producers know the new partitions before a record is sent there.
#[tokio::test]
async fn a_topic_that_grows_is_no_error() {
    let site = site(&[], &[]).await;
    let relay = site.relay().await;
    site.insert([("k", 0)]).await;
    site.until_records(1).await;
    for partitions in [2, 3, 5] {
        grow_topic(&site.bootstrap, &site.topic(), partitions).await.unwrap();
        wait::until(format!("records in partition {}", partitions - 1), TIMEOUT, async || {
            let keys: Vec<String> = (0..40).map(|n| format!("key-{n}")).collect();
            site.insert(keys.iter().map(|key| (key.as_str(), 1))).await;
            let records = site.records().await;
            let found = records.iter().any(|record| record.partition == partitions - 1);
            if found { Ok(()) } else { Err(records.len()) }
        })
        .await
        .unwrap();
    }
    site.until_confirmed(&relay).await;
    assert_eq!(relay.metric("outbox_relay_produce_errors_total").await, 0.0);
    assert_eq!(relay.metric("outbox_relay_producer_rebuilds_total").await, 0.0);
}

/// If the relay may not read the topic's settings, the broker's response decides.
#[tokio::test]
async fn without_describe_configs_the_broker_decides() {
    let _permit = heavy_permit().await;
    let mut guarded = Guarded::start(true).await;
    with_dead_letters(&mut guarded.site, &[]).await;
    let (site, kafka) = (&guarded.site, &guarded.kafka);
    let settings = [
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "20000"),
        ("message.timestamp.before.max.ms", "3600000"),
    ];
    alter_topic(&site.bootstrap, &site.topic(), &settings).await.unwrap();
    for topic in [site.topic(), dead_topic(site)] {
        kafka.allow(USER, &topic, &["Write", "Describe", "Read"]).await.unwrap();
    }
    let relay = guarded.relay(&guarded.tls("ca.pem"), &guarded.sasl("PLAIN"));
    relay.until_ready().await;
    let first = event(site, "'k'", "'1'").await;
    let keyless = event(site, "NULL", "'2'").await;
    let large = "(SELECT to_jsonb(string_agg(md5(n::text || random()), '')) FROM generate_series(1, 2000) n)";
    let large = event(site, "'k'", large).await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, occurred_at)
         VALUES (gen_random_uuid(), '{}', 'k', 'old.v1', '3', now() - interval '2 days')",
        site.aggregate
    ))
    .await;
    let last = event(site, "'k'", "'4'").await;
    let letters = until_dead(site, 2).await;
    // The rows of different partitions become dead letters in any order.
    for (id, code) in [(&keyless, "InvalidRecord"), (&large, "MessageSizeTooLarge")] {
        let letter = letters.iter().find(|letter| letter.header("ce_id") == Some(id.as_str())).unwrap();
        assert_eq!(letter.header("dead_letter_reason"), Some("refused"));
        assert!(letter.header("dead_letter_error").unwrap().contains(code), "{letter:?}");
    }
    let records = site.until_records(3).await;
    assert_eq!(records[1].header("ce_type"), Some("old.v1"), "with the time of its sending");
    assert_eq!((records[0].header("ce_id"), records[2].header("ce_id")), (Some(&*first), Some(&*last)));
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
}

#[tokio::test]
async fn a_missing_permission_is_shown_until_it_is_granted() {
    let _permit = heavy_permit().await;
    let guarded = Guarded::start(true).await;
    let (site, kafka) = (&guarded.site, &guarded.kafka);
    kafka.allow(USER, &site.topic(), &["Describe", "Read", "DESCRIBE_CONFIGS"]).await.unwrap();
    site.insert([("a", 1), ("b", 2), ("c", 3)]).await;
    let relay = guarded.relay(&guarded.tls("ca.pem"), &guarded.sasl("PLAIN"));
    // A producer gets no producer id while it may not write to any topic.
    relay.until("/readyz", 503, "KafkaPermissionDenied: a producer has failed").await;
    kafka.allow(USER, "another", &["Write"]).await.unwrap();
    let refused = format!("KafkaPermissionDenied: Kafka refused a record for {}/", site.topic());
    relay.until("/readyz", 503, &refused).await;
    never_ready(&relay, Duration::from_secs(12)).await;
    assert!(relay.status().await["lastProblem"]["until"].is_null());
    let log = relay.program.log();
    assert_eq!(times_ready_again(&log), 0, "{log}");
    kafka.allow(USER, &site.topic(), &["Write"]).await.unwrap();
    relay.until_ready().await;
    site.until_records(3).await;
    site.judge_table(&relay).await;
}

/// The relay detects that authentication works again without sending a record.
#[tokio::test]
async fn failed_authentication_is_shown_until_it_works_again_without_a_row() {
    let _permit = heavy_permit().await;
    let guarded = Guarded::start(false).await;
    guarded.write("password", "wrong-secret");
    let relay = guarded.relay(&guarded.tls("ca.pem"), &guarded.sasl("PLAIN"));
    relay.until("/readyz", 503, "KafkaAuthenticationFailed").await;
    never_ready(&relay, Duration::from_secs(12)).await;
    let log = relay.program.log();
    assert_eq!(times_ready_again(&log), 0, "{log}");
    guarded.write("password", PASSWORD);
    relay.until_ready().await;
}
