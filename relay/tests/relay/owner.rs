//! The checkpoint shows the owner of the relay that last held the slot.

use testbed::wait;

use crate::fixture::{Site, TIMEOUT};

async fn until_owner(site: &Site, owner: Option<&str>) {
    wait::until(format!("owner {owner:?}"), TIMEOUT, async || {
        let shown = site.value("SELECT owner FROM outbox_checkpoint").await;
        if shown.as_deref() == owner { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await
    .unwrap();
}

fn owned_by(owner: &str) -> impl FnOnce(String) -> String {
    let owner = format!("version: 1\nowner: {owner}");
    move |text| text.replacen("version: 1", &owner, 1)
}

#[tokio::test]
async fn the_last_relay_that_held_the_slot_is_the_owner() {
    let site = Site::shared().await;
    let first = site.launch(owned_by("first"));
    first.until_ready().await;
    until_owner(&site, Some("first")).await;
    let second = site.launch(owned_by("second"));
    second.until("/status", 200, "\"role\":\"standby\"").await;
    until_owner(&site, Some("first")).await;
    first.kill().await;
    second.until("/status", 200, "\"role\":\"active\"").await;
    until_owner(&site, Some("second")).await;
    second.kill().await;
    // A relay that no resource declares.
    let third = site.launch(|text| text);
    third.until_ready().await;
    until_owner(&site, Some("")).await;
    third.kill().await;
}

/// The relay is newer than the table.
#[tokio::test]
async fn a_relay_delivers_from_a_table_without_the_column() {
    let site = Site::shared().await;
    site.execute("ALTER TABLE outbox_checkpoint DROP COLUMN owner").await;
    let relay = site.launch(owned_by("first"));
    relay.until_ready().await;
    site.insert([("key", 1)]).await;
    site.until_records(1).await;
    relay.kill().await;
}
