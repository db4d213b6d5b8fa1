//! Memory is bounded by configuration, for any number of waiting rows.

use testbed::load::{Backlog, write_backlog};
use testbed::postgres::PgVersion;
use testbed::records::Record;

use crate::dead_letters::{find, until_dead};
use crate::fixture::{OwnServers, Relay, Site, heavy_permit};
use crate::poison;

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn two_hundred_thousand_rows_wait_while_kafka_is_down() {
    let _permit = heavy_permit().await;
    // A short timeout, so that the server would disconnect a relay that sends no status while it does not read.
    let mut servers = OwnServers::start(PgVersion::V18, &[("wal_sender_timeout", "3s")]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    servers.kafka.stop().await.unwrap();
    let walsender = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    let pid = site.value(&walsender).await;
    assert!(pid.is_some());
    let backlog = Backlog { rows: 200_000, aggregatetype: site.aggregate.clone(), ..Backlog::default() };
    write_backlog(site.database.url(), &backlog).await.unwrap();
    relay.until("/readyz", 503, "KafkaUnreachable").await;
    // Three times as long as the server waits for a status update.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert_eq!(site.value(&walsender).await, pid, "the stream was interrupted while Kafka was down");
    servers.kafka.start_again().await.unwrap();
    relay.until_ready().await;
    site.until_confirmed(&relay).await;
    // Records that Kafka stored without the acknowledgement arriving are found by the scan, so they do not count here.
    let acknowledged = relay.metric("outbox_relay_events_total").await;
    let found = relay.metric("outbox_relay_duplicates_suppressed_total").await;
    assert!(
        acknowledged <= 200_001.0 && acknowledged + found >= 200_001.0,
        "{acknowledged} acknowledged, {found} found"
    );
    let (_, peak) = relay.program.memory().unwrap();
    assert!(peak < 64 * MIB, "the relay had {} MiB at its peak", peak / MIB);
    site.judge_table(&relay).await;
}

/// Inserts one row with these column values, and `null` in the other columns.
async fn insert(site: &Site, key: &str, values: &[(&str, &str)]) {
    let (mut names, mut expressions) = (String::new(), String::new());
    for (name, expression) in values {
        names += &format!(", {name}");
        expressions += &format!(", {expression}");
    }
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type{names})
         VALUES (gen_random_uuid(), '{}', '{key}', 'n.v1'{expressions})",
        site.aggregate
    ))
    .await;
}

/// Rows with values that do not fit into a record, for each kind of column, and one that is delivered although a column
/// that is not part of the record has such a value.
async fn insert_large_rows(site: &Site, round: &str) {
    let large = "to_jsonb(repeat('x', 150000000))";
    insert(site, &format!("payload-{round}"), &[("payload", large)]).await;
    insert(
        site,
        &format!("headers-{round}"),
        &[("headers", "jsonb_build_object('h', repeat('x', 100000000))")],
    )
    .await;
    insert(site, &format!("text-{round}"), &[("tracestate", "repeat('x', 150000000)"), ("payload", "'1'")])
        .await;
    // Ten numbers of a hundred thousand digits each, as text, in a few bytes.
    insert(
        site,
        &format!("digits-{round}"),
        &[(
            "payload",
            "jsonb_build_array(1e131000, 1e131000, 1e131000, 1e131000, \
     1e131000, 1e131000, 1e131000, 1e131000, 1e131000, 1e131000)",
        )],
    )
    .await;
    let many: Vec<(String, &str)> = (0..8).map(|n| (format!("blob{n}"), "repeat('x', 20000000)")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    insert(site, &format!("good-{round}"), &many).await;
}

/// A record without the parts that are unique to its row: id, position, time.
fn shape(letter: &Record) -> Vec<(String, Option<Vec<u8>>)> {
    let own = ["ce_id", "ce_sequence", "ce_time"];
    letter.headers.iter().filter(|(name, _)| !own.contains(&name.as_str())).cloned().collect()
}

fn assert_small(relay: &Relay) {
    let (_, peak) = relay.program.memory().unwrap();
    assert!(peak < 64 * MIB, "the relay had {} MiB at its peak", peak / MIB);
}

#[tokio::test]
async fn rows_of_any_size_use_bounded_memory_and_become_the_same_from_snapshot_and_stream() {
    let _permit = heavy_permit().await;
    let site = poison::site().await;
    for n in 0..8 {
        site.execute(&format!("ALTER TABLE outbox ADD blob{n} text")).await;
    }
    insert_large_rows(&site, "before").await;
    let relay = site.launch(|text| text.replace("source: {", "source: {start: Table, "));
    relay.until_ready().await;
    insert_large_rows(&site, "behind").await;
    let letters = until_dead(&site, 8).await;
    for (kind, omitted, bytes) in [
        ("payload", "payload", 150_000_002),
        ("headers", "headers", 100_000_009),
        ("text", "tracestate", 150_000_000),
        ("digits", "payload", 1_310_030),
    ] {
        let [copied, streamed] = ["before", "behind"].map(|round| find(&letters, &format!("{kind}-{round}")));
        assert_eq!((&copied.value, shape(copied)), (&streamed.value, shape(streamed)), "{kind}");
        assert_eq!(copied.header("dead_letter_reason"), Some("too_large"));
        assert_eq!(copied.header("dead_letter_omitted"), Some(omitted));
        let error = copied.header("dead_letter_error").unwrap();
        let size: usize = error.split(' ').find_map(|word| word.parse().ok()).unwrap();
        assert!(
            (bytes..bytes + 1_000).contains(&size) && error.contains("sink.maxMessageBytes is"),
            "{error}"
        );
    }
    assert_eq!(site.until_records(2).await.len(), 2, "a column that is not read cannot be too large");
    let answer = site.command(relay.admin, |text| text, &["dead-letters", "replay", "--all"]).await;
    assert!(
        answer.out.contains("0 sent, 8 refused") && answer.out.contains("sink.maxMessageBytes"),
        "{answer:?}"
    );
    assert_small(&relay);
}

#[tokio::test]
async fn records_of_other_applications_use_no_memory() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    site.execute("CREATE TABLE other (b text)").await;
    let relay = site.relay().await;
    site.execute("ALTER PUBLICATION outbox ADD TABLE other").await;
    for transactional in [true, false] {
        site.execute(&format!(
            "SELECT pg_logical_emit_message({transactional}, 'other-app', repeat('x', 200000000))"
        ))
        .await;
    }
    site.execute("SELECT pg_logical_emit_message(true, repeat('x', 200000000), '')").await;
    site.execute("INSERT INTO other VALUES (repeat('x', 200000000))").await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    assert_small(&relay);
}
