//! `where`: what has become of an event, in each state that it can be in.

use serde_json::Value;
use testbed::kafka::delete_topic;
use testbed::{net, unique, wait};

use crate::dead_letters::{dead_topic, until_dead, with_dead_letters};
use crate::fixture::{Answer, Relay, Site, TIMEOUT};

async fn find(site: &Site, relay: Option<&Relay>, id: &str) -> (Value, Answer) {
    let port = relay.map_or_else(|| net::free_port().unwrap(), |relay| relay.admin);
    let json = site.command(port, |text| text, &["where", "--json", "--id", id]).await;
    let lines = site.command(port, |text| text, &["where", "--id", id]).await;
    assert_eq!(json.code, lines.code, "{json:?} {lines:?}");
    (serde_json::from_str(&json.out).unwrap(), lines)
}

async fn insert(site: &Site, aggregate: &str) -> String {
    let insert = format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{aggregate}', 'k', 'n.v1', '1') RETURNING id"
    );
    sqlx::query_scalar::<_, uuid::Uuid>(sqlx::AssertSqlSafe(insert))
        .fetch_one(&mut site.sql().await)
        .await
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn an_event_is_found_in_its_topic_while_it_waits_and_among_dead_letters() {
    let mut site = Site::shared().await;
    with_dead_letters(&mut site, 2, &[]).await;
    let relay = site.relay().await;
    insert(&site, &site.aggregate).await;
    let id = insert(&site, &site.aggregate).await;
    let records = site.until_records(2).await;
    // However its id is written.
    let (found, lines) = find(&site, Some(&relay), &id.to_uppercase()).await;
    assert_eq!((found["state"].as_str(), lines.code), (Some("acknowledged"), Some(0)), "{found} {lines:?}");
    let record = records.iter().find(|record| record.offset == 1).unwrap();
    assert_eq!((&found["record"]["topic"], &found["record"]["offset"]), (&site.topic().into(), &1.into()));
    assert_eq!(found["record"]["partition"], record.partition);
    assert_eq!((&found["relayPhase"], &found["read"]), (&"streaming".into(), &true.into()));
    assert!(
        lines.out.starts_with("acknowledged: ") && lines.out.contains("database  committed"),
        "{lines:?}"
    );

    // It has no topic, so it becomes a dead letter.
    let poison = insert(&site, "no topic").await;
    until_dead(&site, 1).await;
    let (found, lines) = find(&site, Some(&relay), &poison).await;
    assert_eq!((found["state"].as_str(), lines.code), (Some("deadLetter"), Some(69)), "{found}");
    assert_eq!(found["record"]["topic"], dead_topic(&site));

    // The relay says what it waits for.
    let homeless = insert(&site, &unique("nowhere")).await;
    relay.until("/readyz", 503, "TopicMissing").await;
    let (found, lines) = find(&site, Some(&relay), &homeless).await;
    assert_eq!((found["state"].as_str(), lines.code), (Some("waiting"), Some(69)), "{found}");
    assert!(lines.out.starts_with("waiting: the relay reports TopicMissing: "), "{lines:?}");

    // Nothing delivers it.
    relay.stop().await;
    let waiting = insert(&site, &site.aggregate).await;
    let (found, lines) = find(&site, None, &waiting).await;
    assert_eq!((found["state"].as_str(), lines.code), (Some("waiting"), Some(69)), "{found}");
    assert!(lines.out.contains("no relay answers at 127.0.0.1"), "{lines:?}");
    assert_eq!((&found["committed"]["confirmed"], &found["record"]), (&false.into(), &Value::Null));

    let (found, lines) = find(&site, None, "00000000-0000-0000-0000-000000000000").await;
    assert_eq!((found["state"].as_str(), lines.code), (Some("notCommitted"), Some(69)), "{found}");
    let (found, _) = find(&site, None, "no UUID").await;
    assert_eq!(found["state"], "unknown", "{found}");
}

/// Its topic was recreated: the checkpoint counts the event as delivered, and no record is left.
#[tokio::test]
async fn an_event_whose_record_is_gone_is_told_from_one_that_waits() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let id = insert(&site, &site.aggregate).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    let is_delivered =
        "SELECT pg_visible_in_snapshot(o.xid, c.delivered_snapshot) FROM outbox o, outbox_checkpoint c";
    wait::until("the row in the delivered snapshot", TIMEOUT, async || {
        match site.value(is_delivered).await.as_deref() {
            Some("true") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    relay.stop().await;
    delete_topic(&site.bootstrap, &site.topic()).await.unwrap();
    // Brokers may show the topic for a moment after its deletion.
    wait::until("an event without a record", TIMEOUT, async || {
        let (found, _) = find(&site, None, &id).await;
        let is_removed = found["state"] == "removed" && found["committed"]["confirmed"] == true;
        if is_removed { Ok(()) } else { Err(found) }
    })
    .await
    .unwrap();
}
