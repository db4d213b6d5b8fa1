//! Sites whose poison rows become dead letters, and what is in their dead-letter topics.

use testbed::kafka::create_topic;
use testbed::records::{Record, read_all};
use testbed::wait;

use crate::fixture::{Site, TIMEOUT};

/// A name that the default rule can result in.
pub fn dead_topic(site: &Site) -> String {
    format!("outbox.event.{}-dead", site.aggregate)
}

/// Creates the dead-letter topic, and configures the relays of the site with it.
pub async fn with_dead_letters(site: &mut Site, partitions: i32, settings: &[(&str, &str)]) {
    create_topic(&site.bootstrap, &dead_topic(site), partitions, 1, settings).await.unwrap();
    site.extra = format!("delivery: {{onPoison: DeadLetter, deadLetterTopic: '{}'}}\n", dead_topic(site));
}

pub async fn dead_letters(site: &Site) -> Vec<Record> {
    read_all(&site.bootstrap, &[&dead_topic(site)]).await.unwrap()
}

pub async fn until_dead(site: &Site, count: usize) -> Vec<Record> {
    wait::until(format!("{count} dead letters"), TIMEOUT, async || {
        let letters = dead_letters(site).await;
        if letters.len() >= count { Ok(letters) } else { Err(letters.len()) }
    })
    .await
    .unwrap()
}

/// The only record with this key.
pub fn find<'a>(records: &'a [Record], key: &str) -> &'a Record {
    let found: Vec<&Record> =
        records.iter().filter(|record| record.key.as_deref() == Some(key.as_bytes())).collect();
    let [record] = found.as_slice() else { panic!("{} records of {key}", found.len()) };
    record
}
