//! The status page in a real browser: it shows a good day, an outage of Kafka, and a relay that does not answer. With
//! `OUTBOX_TEST_WRITE` the test takes the pictures of the documents.

use std::path::Path;

use testbed::browser::{Browser, Scheme};
use testbed::kafka::create_topic;
use testbed::postgres::PgVersion;
use testbed::{Database, wait};

use crate::fixture::{OwnServers, PARTITIONS, Relay, Site, TIMEOUT, heavy_permit};

async fn open(browser: &mut Browser, relay: &Relay) {
    browser.open(&format!("http://127.0.0.1:{}/", relay.admin), Scheme::Light).await.unwrap();
}

/// Writes docs/images/`name` where that is asked for.
async fn take_picture(browser: &mut Browser, name: &str) {
    if std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
        browser.screenshot(&images.join(name)).await.unwrap();
    }
}

/// Names as people give them, because the pictures show them.
async fn orders(servers: &OwnServers) -> Site {
    let database = Database::on(&servers.postgres.url("postgres"), "shop").await.unwrap();
    let mut site = Site::without_topic(database, &servers.kafka.bootstrap());
    (site.aggregate, site.slot) = ("order".to_owned(), "orders".to_owned());
    for topic in [site.topic(), "outbox.event.payment".to_owned()] {
        create_topic(&site.bootstrap, &topic, PARTITIONS, 1, &[]).await.unwrap();
    }
    site
}

async fn pay(site: &Site, count: usize) {
    let row = "(gen_random_uuid(), 'payment', 'k', 'paid.v1', '{}')";
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES";
    site.execute(&format!("{insert} {}", vec![row; count].join(", "))).await;
}

#[tokio::test]
async fn the_page_shows_a_good_day_an_outage_and_a_relay_that_does_not_answer() {
    let Some(mut browser) = Browser::start().await.unwrap() else { return };
    let _permit = heavy_permit().await;
    let mut servers = OwnServers::start(PgVersion::V18, &[("max_slot_wal_keep_size", "256MB")]).await;
    let site = orders(&servers).await;
    let relay = site.launch(|text| text.replace("name: relay\n", "name: shop/orders\n"));
    relay.until_ready().await;
    open(&mut browser, &relay).await;
    browser.until_text("Ready: streaming", TIMEOUT).await.unwrap();
    pay(&site, 17).await;
    browser.until_text("outbox.event.payment\t17\t", TIMEOUT).await.unwrap();
    let load = site.start_load(50.0).await;
    // Twice, so that there is a number per second.
    wait::until("a steady load on the page", TIMEOUT, async || {
        let text = browser.text().await.unwrap();
        let has_rate = |line: &str| line.starts_with("outbox.event.order\t") && !line.ends_with("\t0");
        if text.lines().any(has_rate) { Ok(()) } else { Err(text) }
    })
    .await
    .unwrap();
    let text = browser.text().await.unwrap();
    for shown in ["reserved: less than max_wal_size", "by pid ", " MiB of new WAL", " of 8,192 events"] {
        assert!(text.contains(shown), "'{shown}' is not in\n{text}");
    }
    take_picture(&mut browser, "status-page.png").await;

    servers.kafka.brokers()[0].kill().await.unwrap();
    browser.until_text("Not ready: KafkaUnreachable", TIMEOUT).await.unwrap();
    browser.until_text("What to do: check that Kafka runs", TIMEOUT).await.unwrap();
    browser.until_text(" → KafkaUnreachable", TIMEOUT).await.unwrap();
    browser.until_text(", growing", TIMEOUT).await.unwrap();
    browser.until_text("outbox.event.order/0\tan acknowledgement", TIMEOUT).await.unwrap();
    take_picture(&mut browser, "status-page-outage.png").await;

    servers.kafka.start_again().await.unwrap();
    browser.until_text("Ready: streaming", TIMEOUT).await.unwrap();
    browser.until_text("Last problem: ", TIMEOUT).await.unwrap();
    load.stop().await.unwrap();
    relay.kill().await;
    browser.until_text("The relay does not answer", TIMEOUT).await.unwrap();
    browser.until_text("Last known: ✓ Ready: streaming", TIMEOUT).await.unwrap();
}

/// A configured name with markup is text on the page, and a script that gets into the page nevertheless does not run.
#[tokio::test]
async fn markup_in_a_value_is_shown_as_text_and_runs_nothing() {
    let Some(mut browser) = Browser::start().await.unwrap() else { return };
    let site = Site::shared().await;
    let markup = "<img src=x onerror=stolen=1>";
    let relay = site.launch(|text| text.replace("name: relay\n", &format!("name: '{markup}'\n")));
    relay.until_ready().await;
    open(&mut browser, &relay).await;
    browser.until_text(markup, TIMEOUT).await.unwrap();
    assert_eq!(browser.evaluate("document.images.length").await.unwrap(), 0);
    let inject = "(() => {
        const script = document.createElement('script');
        script.textContent = 'window.stolen = 1';
        document.body.append(script);
        return typeof window.stolen;
    })()";
    assert_eq!(browser.evaluate(inject).await.unwrap(), "undefined");
    // The same listener under another name is another origin.
    let elsewhere = format!(
        "fetch('http://localhost:{}/livez', {{mode: 'no-cors'}}).then(() => 'sent', () => 'kept')",
        relay.admin
    );
    assert_eq!(browser.evaluate(&elsewhere).await.unwrap(), "kept");
}
