//! `replay`: the running relay sends events of the table again, and nothing else changes.

mod missing;
mod other_topic;

use std::collections::HashSet;

use serde_json::Value;
use testbed::checker;
use testbed::net;
use testbed::records::Record;
use testbed::wait;

use crate::audit::{audit, differences, until_all_confirmed};
use crate::fixture::{Answer, Site, TIMEOUT, assert_correct, heavy_permit};

/// By the relay with this admin port.
async fn replay(site: &Site, relay: Option<u16>, arguments: &[&str]) -> Answer {
    let port = relay.unwrap_or_else(|| net::free_port().unwrap());
    let arguments: Vec<&str> = ["replay"].iter().chain(arguments).copied().collect();
    site.command(port, |text| text, &arguments).await
}

fn replayed(records: &[Record]) -> Vec<&Record> {
    let mut replayed: Vec<&Record> =
        records.iter().filter(|record| record.header("ce_replay").is_some()).collect();
    replayed.sort_by_key(|record| (record.partition, record.offset));
    replayed
}

#[tokio::test]
async fn the_selected_events_are_sent_again_under_their_ids_in_their_order() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    site.insert([("a", 1), ("b", 2), ("a", 3)]).await;
    site.insert([("a", 4)]).await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid(), '{}', 'a', 'other.v1', '5')",
        site.aggregate
    ))
    .await;
    let before = site.until_records(5).await;
    until_all_confirmed(&site).await;

    let since = ["--since", "2020-01-01T00:00:00Z"];
    let selected = [since[0], since[1], "--key", "a", "--type", "n.v1"];
    let listed = replay(&site, None, &[&selected[..], &["--dry-run"]].concat()).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert_eq!(listed.out.lines().count(), 4, "{listed:?}");
    assert!(listed.out.ends_with("3 events would be sent\n") && listed.out.contains("key a"), "{listed:?}");
    assert_eq!(site.records().await.len(), 5);

    let sent = replay(
        &site,
        Some(relay.admin),
        &[&selected[..], &["--allow-reorder", "--name", "october"]].concat(),
    )
    .await;
    assert_eq!(sent.code, Some(0), "{sent:?}");
    assert!(sent.out.ends_with("3 sent, 0 refused\n"), "{sent:?}");
    let records = site.records().await;
    assert_eq!(records.len(), 8);
    let again = replayed(&records);
    assert_eq!(
        again.iter().map(|record| record.header("ce_replay").unwrap()).collect::<Vec<_>>(),
        ["october"; 3]
    );
    let mut originals: Vec<&Record> = before
        .iter()
        .filter(|record| record.key.as_deref() == Some(b"a") && record.header("ce_type") == Some("n.v1"))
        .collect();
    originals.sort_by_key(|record| record.offset);
    for (again, original) in again.iter().zip(originals) {
        for name in ["ce_id", "ce_time", "ce_type", "ce_source", "content-type"] {
            assert_eq!(again.header(name), original.header(name), "{name}");
        }
        assert_eq!(
            (&again.key, &again.value, again.partition),
            (&original.key, &original.value, original.partition)
        );
        assert_eq!(again.header("ce_sequence"), None);
    }

    // Nothing is sent that was not selected, and what is not there is named.
    let id = before[0].header("ce_id").unwrap();
    let unknown = "00000000-0000-0000-0000-000000000000";
    let (upper, admin) = (id.to_uppercase(), Some(relay.admin));
    let some = replay(&site, admin, &["--id", &upper, "--id", unknown, "--allow-reorder", "--json"]).await;
    assert_eq!(some.code, Some(69), "{some:?}");
    let lines: Vec<Value> = some.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["outcome"], &lines[0]["id"]), (&"sent".into(), &id.into()));
    assert_eq!((&lines[1]["outcome"], &lines[1]["id"]), (&"missing".into(), &unknown.into()));
    assert_eq!(lines[2], serde_json::json!({"sent": 1, "refused": 0}));
    assert_eq!(site.records().await.len(), 9);

    // The stream continues, and an audit does not take replayed events for duplicates.
    site.insert([("a", 6)]).await;
    site.until_records(10).await;
    until_all_confirmed(&site).await;
    let (found, _) = audit(&site, &[]).await;
    assert_eq!((differences(&found), found["delivered"].as_u64()), ([0; 5], Some(6)), "{found}");
    relay.stop().await;

    // Rows that wait for the stream are not replayed.
    site.insert([("a", 7)]).await;
    let listed = replay(&site, None, &[since[0], since[1], "--dry-run"]).await;
    assert!(listed.out.ends_with("6 events would be sent\n"), "{listed:?}");
}

#[tokio::test]
async fn a_replay_that_is_not_clear_or_not_possible_sends_nothing() {
    let site = Site::shared().await;
    let since = ["--since", "2020-01-01T00:00:00Z"];
    for (arguments, expected) in [
        (&["--allow-reorder"][..], "--id"),
        (&since[..], "--allow-reorder"),
        (&["--since", "2020-01-01T00:00:00Z", "--allow-reorder", "--rate", "0"][..], "--rate"),
        (&["--missing"][..], "--allow-reorder"),
        (&["--missing", "--allow-reorder", "--topic", "t"][..], "--topic"),
        (&["--missing", "--allow-reorder", "--id", "e"][..], "--id"),
        (&["--allow-reorder", "--since", "2020-01-01T00:00:00Z", "--include-unverifiable"][..], "--missing"),
    ] {
        let answer = replay(&site, None, arguments).await;
        assert_eq!(answer.code, Some(64), "{answer:?}");
        assert!(answer.err.contains(expected), "{answer:?}");
    }
    let all = [since[0], since[1], "--allow-reorder"];
    let answer = replay(&site, None, &all).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("no relay answers at 127.0.0.1"), "{answer:?}");
    let relay = site.relay().await;
    let answer = replay(&site, Some(relay.admin), &[&all[..], &["--name", "a name"]].concat()).await;
    assert!(answer.err.contains("says: the name of the replay"), "{answer:?}");
    relay.stop().await;
    // A relay that does not hold the slot.
    site.execute("ALTER TABLE outbox DROP COLUMN payload").await;
    let standing = site.launch(|text| text);
    standing.until("/readyz", 503, "").await;
    let answer = replay(&site, Some(standing.admin), &all).await;
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("this relay does not stream"), "{answer:?}");
}

/// Under load, with a relay that dies in the middle: every event of the stream once, in order, and replayed ones at most
/// once.
#[tokio::test]
async fn a_replay_under_load_and_a_crash_leave_the_stream_as_it_is() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let load = site.start_load(300.0).await;
    site.until_records(600).await;
    until_first_snapshot(&site).await;
    let all = ["--since", "2020-01-01T00:00:00Z", "--allow-reorder", "--name", "crash"];
    let port = relay.admin;
    let (answer, ()) = tokio::join!(replay(&site, Some(port), &all), async {
        site.until_records(800).await;
        wait_for_replayed(&site, 20).await;
        relay.kill().await;
    });
    assert_eq!(answer.code, Some(69), "{answer:?}");
    let relay = site.relay().await;
    let answer = replay(
        &site,
        Some(relay.admin),
        &["--since", "2020-01-01T00:00:00Z", "--allow-reorder", "--name", "again"],
    )
    .await;
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let mut log = load.stop().await.unwrap();
    log.settle(site.database.url(), "outbox").await.unwrap();
    site.until_confirmed(&relay).await;
    let records = site.records().await;
    let (again, stream): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|record| record.header("ce_replay").is_some());
    assert_correct(&checker::check(&log, &stream));
    let mut known = HashSet::new();
    for record in &again {
        let event = (record.header("ce_replay").unwrap(), record.header("ce_id").unwrap());
        assert!(known.insert(event), "{event:?} is there twice");
    }
    let complete = again.iter().filter(|record| record.header("ce_replay") == Some("again")).count();
    assert!(complete >= 200, "{complete}");
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
}

async fn until_first_snapshot(site: &Site) {
    site.until_value("SELECT delivered_snapshot::text <> '1:1:' FROM outbox_checkpoint", "true").await;
    let some = "SELECT count(*) > 200 FROM outbox o, outbox_checkpoint c WHERE pg_visible_in_snapshot(o.xid, c.delivered_snapshot)";
    site.until_value(some, "true").await;
}

async fn wait_for_replayed(site: &Site, count: usize) {
    wait::until(format!("{count} replayed events"), TIMEOUT, async || {
        let records = site.records().await;
        let seen = replayed(&records).len();
        if seen >= count { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
}
