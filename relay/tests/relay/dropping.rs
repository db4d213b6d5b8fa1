//! Old partitions are dropped while relays and writers run and crash, and no event is lost. The steps of
//! `outbox_maintain` are tested in [`crate::retention`].

use testbed::kafka::create_topic;
use testbed::records::read_all;
use testbed::wait;

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, assert_correct, heavy_permit};

/// Partitions of days long past with rows of type `old.v1`, which go to a dedicated topic.
struct Past<'a> {
    site: &'a Site,
    written: usize,
}

impl Past<'_> {
    async fn of(site: &Site) -> Past<'_> {
        let past = Past { site, written: 0 };
        past.make(&past.topic()).await;
        past
    }

    /// Creates the topic without retention: Kafka would delete records that are this old.
    async fn make(&self, topic: &str) {
        let by_arrival = [("message.timestamp.type", "LogAppendTime")];
        create_topic(&self.site.bootstrap, topic, PARTITIONS, 1, &by_arrival).await.unwrap();
    }

    fn topic(&self) -> String {
        format!("{}_old", self.site.topic())
    }

    /// A partition of January 2020 with rows.
    async fn write(&mut self, day: u32, rows: usize) {
        let site = self.site;
        site.execute(&format!(
            "CREATE TABLE IF NOT EXISTS outbox_p202001{day:02} PARTITION OF outbox
             FOR VALUES FROM ('2020-01-{day:02} 00:00Z') TO (timestamptz '2020-01-{day:02} 00:00Z' + interval '1 day')"
        ))
        .await;
        site.execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, occurred_at)
             SELECT gen_random_uuid(), '{}_old', 'k' || n % 10, 'old.v1', '2020-01-{day:02} 12:00Z'
             FROM generate_series(1, {rows}) n",
            site.aggregate
        ))
        .await;
        self.written += rows;
    }

    async fn exists(&self, day: u32) -> bool {
        self.site.value(&format!("to_regclass('outbox_p202001{day:02}') IS NOT NULL")).await.unwrap()
            == "true"
    }

    async fn until_dropped(&self, day: u32, relay: &Relay) {
        wait::until(format!("January {day} dropped"), TIMEOUT, async || {
            if self.exists(day).await { Err(relay.status_text().await) } else { Ok(()) }
        })
        .await
        .unwrap();
    }

    /// Waits until the checkpoints show that every old row is delivered.
    async fn until_delivered(&self) {
        let delivered = "SELECT bool_and(pg_visible_in_snapshot(xid, delivered_snapshot))
                         FROM outbox, outbox_checkpoint WHERE occurred_at < '2021-01-01'";
        wait::until("a snapshot that shows the past as delivered", TIMEOUT, async || {
            match self.site.value(delivered).await.as_deref() {
                Some("true") => Ok(()),
                seen => Err(format!("{seen:?}")),
            }
        })
        .await
        .unwrap();
    }

    /// Asserts that each old row is in Kafka once, whether its partition was dropped or not.
    async fn each_is_there_once(&self) {
        let topic = self.topic();
        let records = wait::until(format!("{} old events", self.written), TIMEOUT, async || {
            let records = read_all(&self.site.bootstrap, &[&topic]).await.unwrap();
            if records.len() >= self.written { Ok(records) } else { Err(records.len()) }
        })
        .await
        .unwrap();
        let ids: std::collections::HashSet<_> = records.iter().map(|record| record.header("ce_id")).collect();
        assert_eq!((records.len(), ids.len()), (self.written, self.written));
    }
}

/// The result of a call with the shortest retention, so that every finished partition is due.
async fn maintain_with_the_clock_ahead(site: &Site) -> (i32, Option<String>) {
    let call = "SELECT dropped, held FROM outbox_maintain('0 hours', '3 days')";
    sqlx::query_as(call).fetch_one(&mut site.sql().await).await.unwrap()
}

#[tokio::test]
async fn r16_partitions_are_dropped_under_load_except_those_that_a_stopped_relay_has_not_delivered() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let relay = site.relay().await;
    let mut past = Past::of(&site).await;
    let load = site.start_load(300.0).await;
    past.write(1, 500).await;
    past.write(2, 500).await;
    past.until_delivered().await;
    relay.kill().await;
    // No relay delivers these rows while time passes.
    past.write(3, 500).await;
    for _ in 0..20 {
        maintain_with_the_clock_ahead(&site).await;
        // The call may give up a lock in favour of the writers, and reports that. It never drops this partition.
        assert!(past.exists(3).await);
    }
    let relay = site.relay().await;
    past.until_dropped(1, &relay).await;
    past.until_dropped(2, &relay).await;
    past.until_delivered().await;
    wait::until("January 3 dropped", TIMEOUT, async || {
        let (_, held) = maintain_with_the_clock_ahead(&site).await;
        if past.exists(3).await { Err(held.unwrap_or_default()) } else { Ok(()) }
    })
    .await
    .unwrap();
    past.each_is_there_once().await;
    assert_correct(&site.verdict(load, &relay).await);
}

/// Two relays with separate names, slots and topics read one table. Rows that a stopped relay has not delivered are
/// kept. The other relay reports this as long as it lasts, and drops the partition automatically afterwards.
#[tokio::test]
async fn r16_a_second_relay_keeps_what_it_has_not_delivered() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    let mut past = Past::of(&site).await;
    let topic = format!("second.{}_old", site.aggregate);
    past.make(&topic).await;
    let second = |text: String| {
        let text =
            text.replace("name: relay", "name: second").replace(&site.slot, &format!("{}_2", site.slot));
        format!("{text}routing: {{replacement: 'second.${{routedByValue}}'}}\n")
    };
    let other = site.launch(second);
    other.until_ready().await;
    let relay = site.relay().await;
    other.stop().await;
    past.write(1, 100).await;
    past.each_is_there_once().await;
    relay.stop().await;
    let relay = site.relay().await;
    relay.until("/status", 200, "outbox_p20200101 stays, because relay").await;
    assert!(past.exists(1).await);
    let other = site.launch(second);
    other.until_ready().await;
    past.until_dropped(1, &relay).await;
    // Nothing blocks the drop any more, whichever of the two relays performs it.
    relay.until("/status", 200, r#""held":null"#).await;
    let records = read_all(&site.bootstrap, &[&topic]).await.unwrap();
    assert_eq!(records.len(), 100, "the second relay has delivered them, too");
}

/// R17: rows in the DEFAULT partition are shown, and so is an old partition that is kept.
#[tokio::test]
async fn r17_rows_in_default_and_old_partitions_are_shown_until_they_are_removed() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let mut past = Past::of(&site).await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
    relay.until("/metrics", 200, "outbox_relay_oldest_partition_age_seconds 0").await;
    past.write(1, 1).await;
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, occurred_at)
         VALUES (gen_random_uuid(), '{}_old', 'k', 'old.v1', '2020-02-01')",
        site.aggregate
    ))
    .await;
    past.written += 1;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 1").await;
    wait::until("an old partition", TIMEOUT, async || {
        let age = relay.metric("outbox_relay_oldest_partition_age_seconds").await;
        if age > 100_000_000.0 { Ok(()) } else { Err(age) }
    })
    .await
    .unwrap();
    past.until_delivered().await;
    relay.stop().await;
    let relay = site.relay().await;
    past.until_dropped(1, &relay).await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
    relay.until("/metrics", 200, "outbox_relay_oldest_partition_age_seconds 0").await;
    past.each_is_there_once().await;
}
