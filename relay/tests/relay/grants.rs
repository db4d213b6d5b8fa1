//! The privileges listed in docs/OUTBOX.md are enough; with fewer, the error names the missing one.

use testbed::postgres::{Auth, Postgres, PostgresOptions};
use testbed::{shared, unique, wait};

use crate::fixture::{Relay, Site, TIMEOUT, assert_correct, heavy_permit};
use crate::misconfiguration::shows;
use crate::proxied::until_more;

/// The privileges that docs/OUTBOX.md grants the relay.
pub fn grants(role: &str) -> String {
    format!(
        "GRANT SELECT ON outbox TO {role};
         GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO {role};
         GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval), outbox_partition_state() TO {role};"
    )
}

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
    site.execute(&grants(&role)).await;
    relay.until_ready().await;
    relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
    site.insert([("k", 1), ("k", 2)]).await;
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    // A writer needs only INSERT on its columns, and then cannot set the time (R17).
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
    // The relay creates partitions through the function, although the role may not create tables.
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    let partition =
        site.value("'outbox_p' || to_char(now() AT TIME ZONE 'UTC' + interval '2 days', 'YYYYMMDD')").await;
    let partition = partition.unwrap();
    site.execute(&format!("DROP TABLE {partition}")).await;
    let _relay = site.launch(as_role);
    wait::until("a partition to be created again", TIMEOUT, async || {
        let found = site.value(&format!("to_regclass('{partition}')")).await;
        found.ok_or_else(|| format!("no {partition}"))
    })
    .await
    .unwrap();
}

/// Privileges are revoked while the relay streams. Those that PostgreSQL checks at each statement show
/// immediately, the others when the connections end, which this test causes.
#[tokio::test]
async fn a_revoked_privilege_is_reported_and_delivery_continues_once_it_is_granted_again() {
    let _permit = heavy_permit().await;
    let options = PostgresOptions { auth: Auth::Scram, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let site = Site::on(&postgres.url("postgres"), shared().await.unwrap().kafka_bootstrap()).await;
    let role = unique("relay_role");
    let make = format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'testbed-password'; {}", grants(&role));
    site.execute(&format!(
        "{make} CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)"
    ))
    .await;
    let relay = site.launch(|text| {
        text.replace("user: postgres", &format!("user: {role}"))
            .replace("{name: outbox}", "{name: outbox, creationPolicy: Never}")
    });
    relay.until_ready().await;
    let load = site.start_load(300.0).await;
    until_more(&relay, 50.0).await;

    let alter = |what: &str| format!("ALTER ROLE {role} {what}");
    let (denied, refused) = ("PermissionDenied", "AuthenticationFailed");
    let at_login = [
        (alter("VALID UNTIL '2000-01-01'"), refused, alter("VALID UNTIL 'infinity'")),
        (alter("PASSWORD 'another'"), refused, alter("PASSWORD 'testbed-password'")),
        (alter("NOREPLICATION"), denied, alter("REPLICATION")),
        (format!("DROP OWNED BY {role}; DROP ROLE {role}"), refused, make.clone()),
    ];
    for (taken, reason, given) in at_login {
        site.execute(&taken).await;
        end_connections(&site).await;
        said_and_healed(&site, &relay, reason, &given).await;
    }
    for privilege in ["SELECT", "UPDATE"] {
        site.execute(&format!("REVOKE {privilege} ON outbox_checkpoint FROM {role}")).await;
        let given = format!("GRANT {privilege} ON outbox_checkpoint TO {role}");
        said_and_healed(&site, &relay, denied, &given).await;
    }
    assert_correct(&site.verdict(load, &relay).await);
    assert_eq!(relay.metric("outbox_relay_duplicates_detected_total").await, 0.0);
}

async fn end_connections(site: &Site) {
    let end =
        "count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'outbox-relay%'";
    wait::until("the end of the relay's connections", TIMEOUT, async || {
        match site.value(&format!("SELECT {end}")).await.as_deref() {
            None | Some("0") => Err("it has none"),
            Some(_) => Ok(()),
        }
    })
    .await
    .unwrap();
}

async fn said_and_healed(site: &Site, relay: &Relay, reason: &str, given: &str) {
    let remedy = if reason == "PermissionDenied" { "docs/OUTBOX.md" } else { "check source.user" };
    shows(relay, reason, remedy).await;
    site.execute(given).await;
    relay.until_ready().await;
    until_more(relay, 50.0).await;
}
