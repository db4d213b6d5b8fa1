//! The role of docs/OUTBOX.md is enough; with less, what is missing is said.

use testbed::{unique, wait};

use crate::fixture::{SOON, Site};

#[tokio::test]
async fn the_documented_role_is_enough_and_with_less_the_relay_waits_for_it() {
    let site = Site::shared().await;
    let role = unique("relay_role");
    site.execute(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION;
         CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)"
    ))
    .await;
    let as_role = |text: String| {
        text.replace("user: postgres", &format!("user: {role}"))
            .replace("{name: outbox}", "{name: outbox, creationPolicy: Never}")
    };
    let relay = site.launch(as_role);
    let text = relay.until("/readyz", 503, "PermissionDenied").await;
    assert!(text.contains("docs/OUTBOX.md"), "{text}");
    relay.until("/status", 200, "permission denied for function outbox_maintain").await;
    site.execute(&format!(
        "GRANT SELECT ON outbox TO {role};
         GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO {role};
         GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval), outbox_partition_state() TO {role}"
    ))
    .await;
    relay.until_ready().await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
    site.insert([("k", 1), ("k", 2)]).await;
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    // A writer needs nothing but INSERT on its columns, and then cannot set the time (R17).
    let writer = unique("writer_role");
    site.execute(&format!(
        "CREATE ROLE {writer};
         GRANT INSERT (id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate)
         ON outbox TO {writer}"
    ))
    .await;
    let insert = |column: &str, value: &str| {
        format!(
            "SET ROLE {writer}; INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, {column})
             VALUES (gen_random_uuid(), '{}', 'k', 'n.v1', '3', {value})",
            site.aggregate
        )
    };
    site.execute(&insert("tracestate", "NULL")).await;
    let refused = site.database.execute(&insert("occurred_at", "'2099-01-01'")).await;
    assert!(refused.is_err(), "a writer has set the time");
    site.judge_table(&relay).await;
    // And partitions are made in its name, though it may not create tables.
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    let partition =
        site.value("'outbox_p' || to_char(now() AT TIME ZONE 'UTC' + interval '2 days', 'YYYYMMDD')").await;
    let partition = partition.unwrap();
    site.execute(&format!("DROP TABLE {partition}")).await;
    let _relay = site.launch(as_role);
    wait::until("a partition made anew", SOON, async || {
        let found = site.value(&format!("to_regclass('{partition}')")).await;
        found.ok_or_else(|| format!("no {partition}"))
    })
    .await
    .unwrap();
}
