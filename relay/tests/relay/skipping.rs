//! A poison row is skipped with the procedure in docs/OPERATIONS.md, and only if no other row is skipped with it.

use testbed::net;

use crate::fixture::{Relay, Site};
use crate::procedures;

const POISON: &str = "0190a6f8-0000-7000-8000-00000000dead";

/// Inserts rows in one transaction. Rows with the key `poison` have invalid headers.
async fn transaction(site: &Site, keys: &[&str]) {
    let rows: Vec<String> = keys
        .iter()
        .map(|key| {
            let (id, headers) = match *key {
                "poison" => (format!("'{POISON}'"), "'{\"a\": {}}'"),
                _ => ("gen_random_uuid()".to_owned(), "NULL"),
            };
            format!("({id}, '{}', '{key}', 'n.v1', '1', {headers}::jsonb)", site.aggregate)
        })
        .collect();
    site.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers) VALUES {}",
        rows.join(", ")
    ))
    .await;
}

/// The position of the row that stops delivery, from the message of `/readyz`.
async fn position(relay: &Relay) -> String {
    let text = relay.until("/readyz", 503, "PoisonRow").await;
    let at = text.split(" at ").nth(1).unwrap();
    at.chars().take(42).collect()
}

/// The statements of the procedure for this row and position.
fn statements(site: &Site, position: &str) -> Vec<String> {
    let lsn = format!("{}/{}", &position[9..17], &position[17..25]);
    let statements = procedures::statements("A poison row");
    let statements = statements.iter().map(|statement| {
        let statement = statement.replace("00000000/01bc2878", &lsn).replace("b6c0c598-…", POISON);
        procedures::fill_in(&statement, "relay", &site.slot)
    });
    statements.collect()
}

async fn update(site: &Site, statement: &str) -> u64 {
    let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
    statement.execute(&mut site.sql().await).await.unwrap().rows_affected()
}

/// Runs the procedure. Returns how many rows its first statement has updated.
async fn skip(site: &Site, position: &str) -> u64 {
    let statements = statements(site, position);
    let confirm = statements.iter().find(|text| text.contains("peek_binary_changes")).unwrap();
    let updated = update(site, confirm).await;
    if updated == 1 {
        site.execute(statements.iter().find(|text| text.starts_with("INSERT")).unwrap()).await;
    }
    updated
}

fn keys(records: &[testbed::records::Record]) -> Vec<String> {
    let mut keys: Vec<String> =
        records.iter().map(|record| String::from_utf8(record.key.clone().unwrap()).unwrap()).collect();
    keys.sort();
    keys
}

async fn stops_at_the_row(relay: Relay) {
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopped at a row that cannot be delivered yet"), "{log}");
}

#[tokio::test]
async fn a_poison_row_is_skipped_alone() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    relay.until("/readyz", 200, "streaming").await;
    transaction(&site, &["first"]).await;
    transaction(&site, &["before", "poison", "behind"]).await;
    transaction(&site, &["last"]).await;
    let position = position(&relay).await;
    site.until_records(2).await;
    stops_at_the_row(relay).await;
    assert_eq!(skip(&site, &position).await, 1);
    let relay = site.relay().await;
    site.until_records(4).await;
    site.until_confirmed(&relay).await;
    assert_eq!(keys(&site.records().await), ["before", "behind", "first", "last"]);
}

/// The relay died before it delivered the rows before the poison row, and its successor cannot reach Kafka. The
/// successor never logs the line that permits skipping, and the statement itself updates nothing.
#[tokio::test]
async fn nothing_is_skipped_while_another_row_waits_before_the_poison_row() {
    let site = Site::shared().await;
    site.relay().await.stop().await;
    let nowhere = format!("127.0.0.1:{}", net::free_port().unwrap());
    let relay = site.launch(|text| text.replace(&site.bootstrap, &nowhere));
    transaction(&site, &["good"]).await;
    transaction(&site, &["poison"]).await;
    transaction(&site, &["last"]).await;
    relay.until("/status", 200, "\"notReadingBecause\":\"a row waits").await;
    relay.kill().await;
    let lsn = "SELECT lsn FROM pg_logical_slot_peek_binary_changes";
    let commit = format!(
        "{lsn}('{}', NULL, NULL, 'proto_version', '1', 'publication_names', 'outbox')
         WHERE get_byte(data, 0) = ascii('B') AND xid = (SELECT xid::xid FROM outbox WHERE id = '{POISON}')",
        site.slot
    );
    // The LSN of the transaction's first record; any LSN up to its commit would do.
    let lsn = site.value(&commit).await.unwrap();
    let (high, low) = lsn.split_once('/').unwrap();
    let position = format!("00000001-{high:0>8}{low:0>8}-0000000000000001");
    assert_eq!(skip(&site, &position).await, 0);
    let relay = site.launch(|text| text);
    let position = self::position(&relay).await;
    site.until_records(1).await;
    stops_at_the_row(relay).await;
    assert_eq!(skip(&site, &position).await, 1);
    let relay = site.relay().await;
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    assert_eq!(keys(&site.records().await), ["good", "last"]);
}

#[tokio::test]
async fn a_poison_row_of_the_initial_snapshot_is_skipped_alone() {
    let site = Site::shared().await;
    transaction(&site, &["before", "poison", "behind"]).await;
    let relay = site.launch(|text| text);
    let position = position(&relay).await;
    site.until_records(1).await;
    stops_at_the_row(relay).await;
    transaction(&site, &["streamed"]).await;
    assert_eq!(skip(&site, &position).await, 0, "it would skip the rest of the snapshot");
    let statements = statements(&site, &position);
    let cursor = statements.iter().find(|text| text.contains("start_cursor = p.seq")).unwrap();
    assert_eq!(update(&site, cursor).await, 1);
    let relay = site.relay().await;
    site.until_records(3).await;
    site.until_confirmed(&relay).await;
    assert_eq!(keys(&site.records().await), ["before", "behind", "streamed"]);
}
