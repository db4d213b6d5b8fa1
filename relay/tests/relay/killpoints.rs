//! The relay dies under load at each durability boundary (`src/failpoint.rs` has the table), and the next one
//! continues: no event is lost or duplicated, and order is kept. At the moment of death every confirmed row is in
//! Kafka.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;

use sqlx::AssertSqlSafe;
use testbed::load::{Load, LoadOptions};
use testbed::postgres::PgVersion;
use testbed::unique;
use uuid::Uuid;

use crate::dead_letters::dead_letters;
use crate::fixture::{OwnServers, Relay, Site, TIMEOUT, assert_correct, heavy_permit};
use crate::poison;

/// The signal that ends a process that called `abort`.
const SIGABRT: i32 = 6;
/// See `process::EXIT_BUG`.
const EXIT_BUG: i32 = 70;

#[tokio::test]
async fn after_a_read_before_decoding() {
    dies_under_load("after-read=150*off->return").await;
}

#[tokio::test]
async fn after_decoding_before_sending() {
    dies_under_load("after-decode=150*off->return").await;
}

/// The rows sent so far get 50 ms to reach the broker.
#[tokio::test]
async fn within_a_transaction() {
    dies_under_load("in-transaction=1500*off->return(50)").await;
}

/// Enough time for the broker to append and acknowledge everything, after the relay has died.
#[tokio::test]
async fn all_sent_and_no_acknowledgement_seen() {
    dies_under_load("all-sent=150*off->return(500)").await;
}

#[tokio::test]
async fn acknowledged_in_part() {
    dies_under_load("partly-acknowledged=1300*off->return").await;
}

#[tokio::test]
async fn acknowledged_and_not_stored() {
    dies_under_load("all-acknowledged=150*off->return").await;
}

#[tokio::test]
async fn stored_and_not_confirmed() {
    dies_under_load("checkpoint-stored=15*off->return").await;
}

/// PostgreSQL dies, too, and restores an older confirmed position than it had received.
#[tokio::test]
async fn confirmed_and_not_kept_by_postgres() {
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[]).await;
    let run = KillpointRun::on(servers.site().await).await;
    run.dies_at("status-sent=15*off->return").await;
    let confirmed = run.confirmed().await;
    servers.postgres.kill().await.unwrap();
    servers.postgres.start_again().await.unwrap();
    run.confirmed_is_in_kafka().await;
    let kept = run.confirmed().await;
    assert!(kept <= confirmed, "{kept} was never confirmed");
    run.ends_well().await;
}

/// The first relay dies with records in Kafka that no checkpoint covers, so the second one has to scan.
#[tokio::test]
async fn in_a_scan() {
    let _permit = heavy_permit().await;
    let run = KillpointRun::on(Site::shared().await).await;
    run.dies_at("all-acknowledged=100*off->return").await;
    run.dies_at("in-search=return").await;
    run.ends_well().await;
}

/// The guarantee starts with the creation of the slot, after which this relay dies immediately.
#[tokio::test]
async fn slot_created_and_not_in_the_checkpoint() {
    let _permit = heavy_permit().await;
    let site = Site::shared().await;
    died(failing(&site, "slot-created=return"), SIGABRT).await;
    KillpointRun::with_slot(site).await.ends_well().await;
}

#[tokio::test]
async fn while_draining() {
    let _permit = heavy_permit().await;
    let run = KillpointRun::on(Site::shared().await).await;
    let relay = failing(&run.site, "in-drain=return");
    run.site.until_records(100).await;
    relay.program.terminate().unwrap();
    died(relay, SIGABRT).await;
    run.confirmed_is_in_kafka().await;
    run.ends_well().await;
}

/// The dead letters are appended, and their acknowledgements were not processed.
#[tokio::test]
async fn a_dead_letter_is_sent_and_not_acknowledged() {
    let _permit = heavy_permit().await;
    let site = poison::site().await;
    site.relay().await.kill().await;
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)";
    for n in 0..60 {
        let kind = if n % 3 == 1 { "no topic" } else { &site.aggregate };
        site.execute(&format!(
            "{insert} VALUES (gen_random_uuid(), '{kind}', 'key-{}', 'n.v1', '{n}')",
            n % 7
        ))
        .await;
    }
    for failpoint in ["dead-letter-sent=return(500)", "dead-letter-sent=7*off->return(500)"] {
        died(failing(&site, failpoint), SIGABRT).await;
    }
    let relay = site.relay().await;
    site.until_confirmed(&relay).await;
    poison::exactly(&site, &site.records().await, &format!("aggregatetype = '{}'", site.aggregate)).await;
    poison::exactly(&site, &dead_letters(&site).await, "aggregatetype = 'no topic'").await;
}

/// A panic in any thread ends the process, because a dead thread would leave a process that seems alive.
#[tokio::test]
async fn a_panic_in_any_thread_ends_the_process() {
    let _permit = heavy_permit().await;
    let run = KillpointRun::on(Site::shared().await).await;
    for place in ["after-decode", "in-callback", "in-search", "checkpoint-stored"] {
        let relay = failing(&run.site, &format!("{place}=panic"));
        let log = ended(relay, |status| status.code() == Some(EXIT_BUG)).await;
        assert!(log.contains("bug: a thread panicked"), "{place}: {log}");
        run.confirmed_is_in_kafka().await;
    }
    run.ends_well().await;
}

async fn dies_under_load(failpoint: &str) {
    let _permit = heavy_permit().await;
    let run = KillpointRun::on(Site::shared().await).await;
    let confirmed = run.dies_at(failpoint).await;
    assert!(confirmed > 0, "the relay died before anything was confirmed, so the test proves nothing");
    run.ends_well().await;
}

fn failing(site: &Site, failpoint: &str) -> Relay {
    site.launch_with(&[("FAILPOINTS", failpoint)], |text| text)
}

async fn died(relay: Relay, signal: i32) {
    ended(relay, |status| status.signal() == Some(signal)).await;
}

/// Waits for a relay to end as expected, and returns its log.
async fn ended(mut relay: Relay, expected: impl Fn(std::process::ExitStatus) -> bool) -> String {
    let status = relay.program.wait(TIMEOUT).await.unwrap();
    let log = relay.program.log();
    assert!(expected(status), "{status}: {log}");
    log
}

/// A site under load, and a second slot that retains the WAL that the relay's slot has confirmed.
struct KillpointRun {
    site: Site,
    load: Load,
    audit_slot: String,
}

impl KillpointRun {
    /// On a site where a relay has created the slot and was killed.
    async fn on(site: Site) -> KillpointRun {
        site.relay().await.kill().await;
        KillpointRun::with_slot(site).await
    }

    async fn with_slot(site: Site) -> KillpointRun {
        let audit_slot = unique("audit_slot");
        site.execute(&format!("SELECT pg_create_logical_replication_slot('{audit_slot}', 'pgoutput')")).await;
        // Transactions large enough to be interrupted, with several keys and so in all partitions.
        let options = LoadOptions {
            aggregatetype: site.aggregate.clone(),
            topic: site.topic(),
            rows: 1..=20,
            rate: Some(600.0),
            ..LoadOptions::default()
        };
        let load = Load::start(site.database.url(), options).await.unwrap();
        KillpointRun { site, load, audit_slot }
    }

    /// Starts a relay that dies at the failpoint. Returns how many rows the slot had confirmed by then.
    async fn dies_at(&self, failpoint: &str) -> usize {
        died(failing(&self.site, failpoint), SIGABRT).await;
        self.confirmed_is_in_kafka().await
    }

    /// The position that the slot has confirmed.
    async fn confirmed(&self) -> u64 {
        let select = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.site.slot
        );
        lsn(&self.site.value(&select).await.unwrap())
    }

    /// Asserts that every row before the confirmed LSN is in Kafka. Returns the number of these rows.
    async fn confirmed_is_in_kafka(&self) -> usize {
        let confirmed = self.confirmed().await;
        let records = self.site.records().await;
        let in_kafka: HashSet<Uuid> = records.iter().filter_map(|record| record.event_id()).collect();
        let committed = self.committed_before(confirmed).await;
        let lost: Vec<&Uuid> = committed.iter().filter(|id| !in_kafka.contains(id)).collect();
        assert!(
            lost.is_empty(),
            "of {} confirmed rows {} are not in Kafka: {lost:?}",
            committed.len(),
            lost.len()
        );
        committed.len()
    }

    /// Ids of the rows that were committed before `limit`, read from the audit slot.
    async fn committed_before(&self, limit: u64) -> Vec<Uuid> {
        let peek = format!(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, 'proto_version', '1',
                                                                  'publication_names', 'outbox')
                         WITH ORDINALITY AS changes (lsn, xid, data, number)
             ORDER BY number",
            self.audit_slot
        );
        let messages: Vec<Vec<u8>> =
            sqlx::query_scalar(AssertSqlSafe(peek)).fetch_all(&mut self.site.sql().await).await.unwrap();
        let mut commit = 0;
        let mut ids = Vec::new();
        for message in messages {
            match message[0] {
                b'B' => commit = u64::from_be_bytes(message[1..9].try_into().unwrap()),
                // Kind, relation, 'N', number of columns; then the first column's kind and length, and the id.
                b'I' if commit < limit => {
                    ids.push(std::str::from_utf8(&message[13..49]).unwrap().parse().unwrap());
                }
                _ => {}
            }
        }
        ids
    }

    /// Starts a relay without failpoints, which must deliver the rest.
    async fn ends_well(self) {
        let relay = self.site.relay().await;
        assert_correct(&self.site.verdict(self.load, &relay).await);
        assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
    }
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}
