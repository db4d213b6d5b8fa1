//! The steps of docs/how-to/from-debezium.md. PostgreSQL's functions read the slot in the place of the connector.

use crate::fixture::Site;

const PAGE: &str = include_str!("../../../docs/how-to/from-debezium.md");

/// A statement of the page, with the values of psql's variables.
fn statement(begins: &str, variables: &[(&str, &str)]) -> String {
    let mut blocks = PAGE.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().trim());
    let statement = blocks.find(|block| block.starts_with(begins)).unwrap().trim_end_matches(';');
    variables.iter().fold(statement.to_owned(), |statement, (name, value)| {
        statement.replace(&format!(":'{name}'"), &format!("'{value}'"))
    })
}

/// A database whose table and slot are as the connector has them.
async fn debezium() -> Site {
    let site = Site::shared().await;
    site.execute(
        "DROP TABLE outbox CASCADE; DROP TABLE outbox_checkpoint;
         CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL,
         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb);
         CREATE PUBLICATION dbz_publication FOR TABLE outbox",
    )
    .await;
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot)).await;
    site
}

/// The connector reads everything there is, and confirms it.
async fn connector_reads(site: &Site) -> usize {
    let read = format!(
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes('{}', NULL, NULL,
         'proto_version', '1', 'publication_names', 'dbz_publication') WHERE get_byte(data, 0) = ascii('I')",
        site.slot
    );
    site.value(&read).await.unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_relay_continues_where_the_connector_has_stopped() {
    let site = debezium().await;
    site.insert([("k", 1)]).await;
    for migration in testbed::outbox_migrations().unwrap().iter().skip(1) {
        site.execute(migration).await;
    }
    site.execute(&statement("CREATE PUBLICATION", &[])).await;
    let noted = site.value("pg_current_wal_lsn()").await.unwrap();
    let passed = statement("SELECT confirmed_flush_lsn", &[("noted", &noted), ("slot", &site.slot)]);
    assert_eq!(site.value(&passed).await.as_deref(), Some("false"));
    site.insert([("k", 2)]).await;
    assert_eq!(connector_reads(&site).await, 2);
    assert_eq!(site.value(&passed).await.as_deref(), Some("true"));

    // After the connector has stopped. A writer may delete what it has inserted.
    site.insert([("k", 3)]).await;
    site.execute("DELETE FROM outbox").await;
    site.insert([("k", 4)]).await;
    let relay = site.launch(|text| {
        text.replace("user: postgres,", "user: postgres, start: Now,")
            .replace("publication: {name: outbox}", "publication: {name: outbox, creationPolicy: Never}")
            .replace(
                &format!("slot: {{name: {}}}", site.slot),
                &format!("slot: {{name: {}, creationPolicy: Never}}", site.slot),
            )
    });
    relay.until_ready().await;
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    let values: Vec<String> = site
        .records()
        .await
        .iter()
        .map(|record| String::from_utf8(record.value.clone().unwrap()).unwrap())
        .collect();
    assert_eq!(values, [r#"{"n": 3}"#, r#"{"n": 4}"#]);

    // And back: the slot gives the connector what the relay has not confirmed.
    let (code, log) = relay.stop().await;
    assert!(code == Some(0) && log.contains("stopped cleanly"), "{log}");
    site.insert([("k", 5)]).await;
    assert_eq!(connector_reads(&site).await, 1);
}
