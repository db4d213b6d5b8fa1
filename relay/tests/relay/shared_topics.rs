//! Topics with other producers: their records cost the relay a bounded amount, and hide nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use testbed::kafka::{alter_topic, create_topic};
use testbed::{unique, wait};

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, assert_correct};
use crate::proxied::until_more;
use crate::replay::{six_rows_ahead, until_metric};

/// Maximum number of threads that a session adds to those of an idle relay.
const FEW_THREADS: usize = 32;

/// Another application that writes to all partitions of a topic, one record after the acknowledgement of the previous
/// one.
struct Stranger {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Stranger {
    fn start(bootstrap: &str, topic: &str) -> Stranger {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).set("linger.ms", "0").create().unwrap();
        let (stop, topic) = (Arc::new(AtomicBool::new(false)), topic.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let partition = (sent % PARTITIONS as u64) as i32;
                let record = BaseRecord::<str, str>::to(&topic).partition(partition).payload("a stranger's");
                producer.send(record).map_err(|(error, _)| error).unwrap();
                producer.poll(Duration::from_micros(500));
                sent += 1;
            }
            producer.flush(TIMEOUT).unwrap();
            sent
        });
        Stranger { stop, thread: Some(thread) }
    }

    /// Returns how many records it has written.
    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn threads(relay: &Relay) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", relay.program.pid())).unwrap().count()
}

/// R21: nearly every batch of the relay follows a gap. The number of threads stays low, and other queries complete: a
/// topic that was just created is found, and a successor's scan ends although the other application never stops.
#[tokio::test]
async fn r21_another_application_writes_to_the_topic_continuously() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let few = threads(&relay) + FEW_THREADS;
    let stranger = Stranger::start(&site.bootstrap, &site.topic());
    let load = site.start_load(400.0).await;
    for _ in 0..40 {
        until_more(&relay, 100.0).await;
        let threads = threads(&relay);
        assert!(threads <= few, "{threads} threads");
    }
    let topic = unique("found");
    create_topic(&site.bootstrap, &format!("outbox.event.{topic}"), 1, 1, &[]).await.unwrap();
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES";
    site.execute(&format!("{insert} (gen_random_uuid(), '{topic}', 'k', 'n.v1', '{{}}')")).await;
    wait::until("the topic to be found", TIMEOUT, async || {
        let known =
            format!("SELECT mapping #> '{{current,topics}}' ? 'outbox.event.{topic}' FROM outbox_checkpoint");
        if site.value(&known).await.as_deref() == Some("true") { Ok(()) } else { Err("not yet") }
    })
    .await
    .unwrap();
    relay.kill().await;
    let relay = site.relay().await;
    until_more(&relay, 100.0).await;
    assert!(threads(&relay) <= few);
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
    let log = load.stop().await.unwrap();
    assert!(stranger.stop() > 1000);
    // The checker knows only records of the outbox.
    let source = format!("/{}/public.outbox", site.database.name());
    let mut log = log;
    log.settle(site.database.url(), "outbox").await.unwrap();
    site.until_confirmed(&relay).await;
    let ours: Vec<_> = site
        .records()
        .await
        .into_iter()
        .filter(|record| record.header("ce_source") == Some(&source))
        .collect();
    assert_correct(&testbed::checker::check(&log, &ours));
}

/// Records of another application in the range of a scan: without headers, with the outbox's `ce_source` and no
/// position, far larger than a fetch, and in a transaction that stays open.
#[tokio::test]
async fn r21_a_scan_skips_the_records_of_other_applications() {
    let (site, records) = six_rows_ahead().await;
    alter_topic(&site.bootstrap, &site.topic(), &[("max.message.bytes", "30000000")]).await.unwrap();
    let partition = records[6].partition;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &site.bootstrap)
        .set("message.max.bytes", "30000000")
        .set("transactional.id", unique("open"))
        .create()
        .unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    let topic = site.topic();
    let large = vec![b'x'; 20_000_000];
    let source = format!("/{}/public.outbox", site.database.name());
    let headers = |position: &'static str| {
        let headers = OwnedHeaders::new().insert(Header { key: "ce_source", value: Some(&source) });
        headers.insert(Header { key: "ce_sequence", value: Some(position) })
    };
    let record = || BaseRecord::<str, [u8]>::to(&topic).partition(partition);
    for record in [
        record().payload(b"no headers"),
        record().payload(&large),
        record().headers(headers("ffffffff")),
        record().headers(headers("FFFFFFFF-FFFFFFFFFFFFFFFF-FFFFFFFFFFFFFFFF")),
        record().headers(headers("")),
    ] {
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
    let relay = site.relay().await;
    site.insert([("k", 7)]).await;
    until_metric(&relay, "outbox_relay_duplicates_suppressed_total", 6.0).await;
    until_metric(&relay, "outbox_relay_events_total", 1.0).await;
    site.until_confirmed(&relay).await;
    producer.abort_transaction(TIMEOUT).unwrap();
    // The control record has an offset, but is not returned.
    site.insert([("k", 8)]).await;
    until_metric(&relay, "outbox_relay_events_total", 2.0).await;
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
    relay.kill().await;
    let relay = site.relay().await;
    site.insert([("k", 9)]).await;
    site.until_confirmed(&relay).await;
    let mut seen: Vec<i64> = site
        .records()
        .await
        .iter()
        .filter(|record| record.header("ce_id").is_some())
        .map(|record| {
            let value: serde_json::Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
            value["n"].as_i64().unwrap()
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..=9).collect::<Vec<_>>());
}
