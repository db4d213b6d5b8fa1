//! The slot is lost again and again under load, in each way, while the relay is killed at any moment.

use crate::crash::Pauses;
use crate::fixture::long_matrix;
use crate::proxied::until_more;

use super::*;

/// How the slot is lost while no relay runs.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Dropped,
    /// Another client drops it, and creates it again later.
    Recreated,
    /// Another client advances it.
    Advanced,
    /// `max_slot_wal_keep_size` is too small.
    Invalidated,
}

const LOSSES: [Loss; 4] = [Loss::Dropped, Loss::Recreated, Loss::Advanced, Loss::Invalidated];

impl Loss {
    async fn happens(self, site: &Site) {
        site.until_value(&slot_is("NOT active", site), "true").await;
        match self {
            Loss::Dropped => drop_slot(site).await,
            Loss::Recreated => {
                drop_slot(site).await;
                until_more_rows(site, 20).await;
                let create =
                    format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot);
                site.execute(&create).await;
            }
            Loss::Advanced => {
                until_more_rows(site, 20).await;
                let advance =
                    format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", site.slot);
                site.execute(&advance).await;
            }
            Loss::Invalidated => invalidate_slot(site).await,
        }
    }
}

/// A relay that was killed may have created it or not.
async fn drop_slot_if_there_is_one(site: &Site) {
    let free =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}' AND active", site.slot);
    site.until_value(&free, "0").await;
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name";
    site.execute(&format!("{drop} = '{}'", site.slot)).await;
}

async fn invalidate_slot(site: &Site) {
    let limit = async |size: &str| {
        site.execute(&format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'")).await;
        site.execute("SELECT pg_reload_conf()").await;
    };
    limit("1MB").await;
    wait::until("a slot that is lost", TIMEOUT, async || {
        site.execute("SELECT pg_switch_wal()").await;
        site.execute("CHECKPOINT").await;
        match site.value(&slot_is("wal_status", site)).await.as_deref() {
            Some("lost") => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await
    .unwrap();
    limit("-1").await;
}

/// Each round: delivery under load, kill -9, the loss, relays that are killed at any moment of the refill, and one that
/// completes it.
async fn survives(version: PgVersion, rounds: impl Iterator<Item = Loss>) {
    let servers = OwnServers::start(version, &[]).await;
    let site = servers.site().await;
    let mut relay = site.launch(refilling);
    relay.until("/readyz", 200, "streaming").await;
    let load = site.start_load(RATE).await;
    let mut pauses = Pauses::new();
    for (round, loss) in rounds.enumerate() {
        until_more(&relay, 50.0).await;
        knows_delivered_rows(&site).await;
        relay.kill().await;
        loss.happens(&site).await;
        for kill in 0..3 {
            let relay = site.launch(refilling);
            pauses.next(1_200).await;
            relay.kill().await;
            // Lost again during the refill.
            if kill == 0 && round % 2 == 1 {
                drop_slot_if_there_is_one(&site).await;
            }
        }
        // More losses than the relay accepts within an hour.
        site.execute("UPDATE outbox_checkpoint SET slot_replaced_at = '{}'").await;
        relay = site.launch(refilling);
        relay.until("/readyz", 200, "streaming").await;
        println!("round {round}: {loss:?} refilled");
    }
    assert_correct(&site.verdict(load, &relay).await);
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
    assert_complete(&site).await;
    let records = site.records().await;
    let marked = records.iter().filter(|record| record.header("ce_refill").is_some()).count();
    println!("{marked} of {} records were refilled", records.len());
    assert!(marked > 0);
}

#[tokio::test]
async fn lost_in_each_way_under_load_and_kill_9() {
    let _permit = heavy_permit().await;
    survives(PgVersion::V18, LOSSES.into_iter()).await;
}

#[tokio::test]
async fn lost_twenty_times_in_each_way_under_load_and_kill_9() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    for loss in LOSSES {
        survives(PgVersion::V18, std::iter::repeat_n(loss, 20)).await;
    }
}

#[tokio::test]
async fn lost_in_each_way_on_older_servers() {
    if !long_matrix() {
        return;
    }
    let _permit = heavy_permit().await;
    for version in [PgVersion::V15, PgVersion::V17] {
        survives(version, LOSSES.into_iter().cycle().take(8)).await;
    }
}
