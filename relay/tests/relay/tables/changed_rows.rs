//! Rows and tables that are changed after the rows were inserted: each row arrives as it was inserted.

use testbed::wait;

use super::{PLAIN, now, row};
use crate::fixture::{Site, TIMEOUT};

/// Unconfirmed rows that were read before the table was renamed are still rows of the table.
#[tokio::test]
async fn a_table_that_is_renamed_with_rows_in_flight_loses_none() {
    let site = Site::shared().await;
    site.execute(PLAIN).await;
    let relay = site.launch(now);
    relay.until_ready().await;
    site.insert([("first", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    relay.kill().await;
    site.insert([("under the old name", 2)]).await;
    site.execute("ALTER TABLE outbox RENAME TO events").await;
    let relay = site.launch(|text| {
        let source = format!("/{}/public.outbox", site.database.name());
        now(text).replace("source: {", &format!("source: {{table: public.events, eventSource: '{source}', "))
    });
    relay.until_ready().await;
    wait::until("the row that was written under the old name", TIMEOUT, async || {
        let records = site.records().await;
        match records.len() {
            2 => Ok(()),
            _ => Err(format!("{} records\n{}", records.len(), relay.program.log_tail())),
        }
    })
    .await
    .unwrap();
}

/// Changes of a row after its insert affect a SELECT, but not the event.
#[tokio::test]
async fn a_row_that_is_deleted_or_updated_by_its_own_transaction_arrives_as_it_was_inserted() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let row = |key: &str| row(&site, "outbox", key);
    site.execute(&format!("BEGIN; {} DELETE FROM outbox; COMMIT", row("deleted"))).await;
    site.execute(&format!("BEGIN; {} UPDATE outbox SET payload = '2'; COMMIT", row("updated"))).await;
    site.execute(&format!("BEGIN; {} SAVEPOINT s; {} ROLLBACK TO s; COMMIT", row("kept"), row("undone")))
        .await;
    site.execute(&format!(
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN DELETE FROM outbox WHERE id = NEW.id; RETURN NULL; END $$;
         CREATE TRIGGER gone AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION gone(); {}",
        row("deleted by a trigger")
    ))
    .await;
    site.until_records(4).await;
    site.until_confirmed(&relay).await;
    let mut arrived: Vec<(String, Option<Vec<u8>>)> = Vec::new();
    for record in site.records().await {
        let key = String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap();
        arrived.push((key, record.value.as_ref().map(|value| value.to_vec())));
    }
    arrived.sort();
    let expected = ["deleted", "deleted by a trigger", "kept", "updated"];
    assert_eq!(arrived, expected.map(|key| (key.to_owned(), Some(b"1".to_vec()))));
}
