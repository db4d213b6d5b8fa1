//! What expires, what can be computed again, and that one job does not depend on another.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Database, wait};

use crate::service::Service;

const SOON: Duration = Duration::from_secs(60);

/// Makes a basket look as if it had been created, and changed last, so long ago. Its id tells when it was created, so it gets
/// another one, which is returned.
pub async fn age(service: &Service, id: &str, by: &str) -> String {
    let mut sql = service.sql().await;
    let created = "SELECT (extract(epoch FROM now() - $1::text::interval) * 1000)::bigint";
    let created: i64 = sqlx::query_scalar(created).bind(by).fetch_one(&mut sql).await.unwrap();
    let time = format!("{created:012x}");
    let older = format!("{}-{}{}", &time[..8], &time[8..], &id[13..]);
    for change in [
        "UPDATE basket SET id = $2::text::uuid, created_at = now() - $3::text::interval,
                           updated_at = now() - $3::text::interval WHERE id = $1::text::uuid",
        "UPDATE basket_view SET id = $2::text::uuid WHERE id = $1::text::uuid AND $3::text IS NOT NULL",
    ] {
        sqlx::query(change).bind(id).bind(&older).bind(by).execute(&mut sql).await.unwrap();
    }
    older
}

/// Makes idempotency keys like this look as if they had first been used 25 hours ago.
pub async fn age_keys(service: &Service, like: &str) {
    let age = "UPDATE idempotency_key SET received_at = now() - interval '25 hours' WHERE key LIKE $1";
    sqlx::query(age).bind(like).execute(&mut service.sql().await).await.unwrap();
}

#[tokio::test]
async fn idle_baskets_are_abandoned_once_however_many_replicas_there_are() {
    let database = Database::fresh("expiry").await.unwrap();
    let quiet = Service::over(database).await;
    let (old, fresh) = (quiet.basket().await, quiet.basket().await);
    let old = age(&quiet, &old, "2 hours").await;
    let arguments = ["--auth=static-token", "--abandon-after=1h", "--housekeeping-every=100ms"];
    let _replicas = (quiet.replica(&arguments), quiet.replica(&arguments));
    wait::until("an abandoned basket", SOON, async || {
        let basket: Value = quiet.get(&format!("/v1/baskets/{old}")).await.json().await.unwrap();
        if basket["status"] == "abandoned" { Ok(()) } else { Err(basket["status"].to_string()) }
    })
    .await
    .unwrap();
    let basket: Value = quiet.get(&format!("/v1/baskets/{fresh}")).await.json().await.unwrap();
    assert_eq!(basket["status"], "open");
    let outbox = quiet.outbox().await;
    let abandoned: Vec<_> = outbox.iter().filter(|(kind, ..)| kind == "basket.abandoned.v1").collect();
    assert_eq!(abandoned.len(), 1);
    assert_eq!((&abandoned[0].1, &abandoned[0].2["reason"]), (&old, &json!("expired")));
    let logged = "SELECT count(*) FROM command_log
                  WHERE principal = 'service:expiry' AND command_type = 'abandon_basket' AND outcome = 'accepted'";
    assert_eq!(quiet.count(logged).await, 1);
}

#[tokio::test]
async fn old_keys_are_forgotten_and_their_commands_stay() {
    let service = Service::with(&["--keep-keys=24h", "--housekeeping-every=100ms"]).await;
    service.post("/v1/baskets", "old", &json!({"buyer_id": "ann"})).await;
    service.post("/v1/baskets", "new", &json!({"buyer_id": "ann"})).await;
    age_keys(&service, "old").await;
    wait::until("a forgotten key", SOON, async || {
        let keys = service.count("SELECT count(*) FROM idempotency_key").await;
        if keys == 1 { Ok(()) } else { Err(keys) }
    })
    .await
    .unwrap();
    assert_eq!(service.count("SELECT count(*) FROM command_log").await, 2);
}

/// One that cannot be read stops neither later ones nor another job. It is counted, and tried again once it can be read.
#[tokio::test]
async fn a_bad_basket_stops_nothing_else() {
    let service = Service::with(&[
        "--housekeeping-every=100ms",
        "--abandon-after=1h",
        "--keep-keys=24h",
        "--keep-commands=30d",
    ])
    .await;
    let (bad, good) = (service.basket().await, service.basket().await);
    let spoil = format!("UPDATE basket SET lines = '[{{\"sku\": 5}}]' WHERE id = '{bad}'");
    service.database.execute(&spoil).await.unwrap();
    let (bad, good) = (age(&service, &bad, "3 hours").await, age(&service, &good, "2 hours").await);
    age_keys(&service, "%").await;
    let old = "CREATE TABLE command_log_m202001 PARTITION OF command_log FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')";
    service.database.execute(old).await.unwrap();
    wait::until("everything but the bad basket", SOON, async || {
        let status: Value = service.get(&format!("/v1/baskets/{good}")).await.json().await.unwrap();
        let left = "SELECT (SELECT count(*) FROM idempotency_key)
                         + (SELECT count(*) FROM pg_class WHERE relname = 'command_log_m202001')";
        let left = service.count(left).await;
        if status["status"] == "abandoned" && left == 0 { Ok(()) } else { Err(format!("{status} {left}")) }
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", service.program.log()));
    wait::until("metrics of it", Duration::from_secs(30), async || {
        let metrics = service.metrics().await;
        let shown = [
            "basket_api_baskets_not_abandoned_total 1",
            "basket_api_housekeeping_items_total{task=\"abandon_baskets\"} 1",
            "basket_api_housekeeping_items_total{task=\"expire_keys\"} 2",
            "basket_api_housekeeping_last_success_timestamp_seconds{task=\"maintain_log\"}",
        ];
        let missing: Vec<_> = shown.iter().filter(|line| !metrics.contains(**line)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await
    .unwrap();
    assert!(service.program.log().contains(&bad), "the log names it");
    // Another replica has not seen it fail: there is nothing to wait for.
    let mend = format!("UPDATE basket SET lines = '[]' WHERE id = '{bad}'");
    service.database.execute(&mend).await.unwrap();
    let Service { database, program, .. } = service;
    drop(program);
    let next = Service::launch(
        database,
        &["--auth=static-token", "--housekeeping-every=100ms", "--abandon-after=1h"],
    )
    .await;
    wait::until("the mended basket", SOON, async || {
        let basket: Value = next.get(&format!("/v1/baskets/{bad}")).await.json().await.unwrap();
        if basket["status"] == "abandoned" { Ok(()) } else { Err(basket.to_string()) }
    })
    .await
    .unwrap();
}

/// The scan for idle baskets ends at the first that is too young, however many there are.
#[tokio::test]
async fn young_baskets_are_not_read_by_housekeeping() {
    let service = Service::with(&["--abandon-after=1h", "--housekeeping-every=100ms"]).await;
    let many = "INSERT INTO basket (id, owner, buyer_id, status, lines, version, created_at, updated_at)
                SELECT uuidv7(), 'shop', 'ann', 'open', '[]', 1, now(), now() FROM generate_series(1, 20000);
                ANALYZE basket";
    service.database.execute(many).await.unwrap();
    service.database.execute("SELECT pg_stat_reset()").await.unwrap();
    let runs = async || {
        let metrics = service.metrics().await;
        let line = "basket_api_housekeeping_runs_total{outcome=\"done\",task=\"abandon_baskets\"} ";
        let value = metrics.lines().find_map(|shown| shown.strip_prefix(line));
        value.map_or(0, |value| value.parse::<u64>().unwrap())
    };
    let before = runs().await;
    wait::until("three more runs", SOON, async || {
        let now = runs().await;
        if now > before + 3 { Ok(()) } else { Err(now) }
    })
    .await
    .unwrap();
    let read = "SELECT coalesce(seq_tup_read + idx_tup_fetch, 0)::bigint FROM pg_stat_user_tables WHERE relname = 'basket'";
    // The planner looks at the ends of an index.
    let read = service.count(read).await;
    assert!(read < 1000, "{read} of 20000 baskets were read");
}

#[tokio::test]
async fn the_read_model_can_be_computed_again() {
    let service = Service::start().await;
    let id = service.basket().await;
    let before: Value = service.get("/v1/baskets").await.json().await.unwrap();
    service.database.execute("UPDATE basket_view SET view = '{}', buyer_id = 'other'").await.unwrap();
    let orphan = "INSERT INTO basket_view VALUES (gen_random_uuid(), 'developer', 'x', 'open', '{}')";
    service.database.execute(orphan).await.unwrap();
    let rebuilt = Command::new(env!("CARGO_BIN_EXE_basket-api"))
        .arg("rebuild-read-model")
        .env("BASKET_DATABASE_URL", service.database.url())
        .status()
        .unwrap();
    assert!(rebuilt.success());
    assert_eq!(service.get("/v1/baskets").await.json::<Value>().await.unwrap(), before);
    assert_eq!(service.get(&format!("/v1/baskets/{id}")).await.status(), 200);
}

#[tokio::test]
async fn months_of_the_log_that_are_old_enough_are_dropped() {
    let service = Service::with(&["--keep-commands=30d", "--housekeeping-every=100ms"]).await;
    let old = "CREATE TABLE command_log_m202001 PARTITION OF command_log FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')";
    service.database.execute(old).await.unwrap();
    wait::until("a dropped month", SOON, async || {
        let left = service.count("SELECT count(*) FROM pg_class WHERE relname = 'command_log_m202001'").await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await
    .unwrap();
    service.basket().await;
    let months = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'command_log'::regclass";
    assert_eq!(service.count(months).await, 3, "this month, the next, and the default");
    assert_eq!(service.count("SELECT count(*) FROM command_log_default").await, 0);
}

/// A service that was off for months, or whose database was restored: no command goes to the default partition.
#[tokio::test]
async fn the_month_has_a_partition_before_the_first_command() {
    let database = Database::fresh("months").await.unwrap();
    let drop_months = "DO $$ DECLARE month regclass; BEGIN
        FOR month IN SELECT inhrelid::regclass FROM pg_inherits
                     WHERE inhparent = 'command_log'::regclass AND inhrelid <> 'command_log_default'::regclass
        LOOP EXECUTE format('DROP TABLE %s', month); END LOOP; END $$";
    database.execute(drop_months).await.unwrap();
    let service = Service::over(database).await;
    service.basket().await;
    assert_eq!(service.count("SELECT count(*) FROM ONLY command_log_default").await, 0);
}

/// Of a log whose month got no partition in time: its rows expire, too, and nothing else is held up.
#[tokio::test]
async fn rows_of_the_default_partition_expire() {
    let service = Service::with(&["--keep-commands=30d", "--housekeeping-every=100ms"]).await;
    service.basket().await;
    let late = "INSERT INTO command_log SELECT (jsonb_populate_record(c, '{\"received_at\": \"2020-01-05T00:00:00Z\"}')).*
                FROM command_log c LIMIT 1";
    service.database.execute(late).await.unwrap();
    wait::until("an expired row", SOON, async || {
        let left = service.count("SELECT count(*) FROM ONLY command_log_default").await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await
    .unwrap();
    assert_eq!(service.count("SELECT count(*) FROM command_log").await, 1);
}

/// A month that is being read cannot be dropped, which keeps no other step of the maintenance from being done.
#[tokio::test]
async fn a_month_that_is_read_is_dropped_later() {
    let database = Database::fresh("held").await.unwrap();
    for month in ["2020-01", "2020-02"] {
        let create = format!(
            "CREATE TABLE command_log_m{} PARTITION OF command_log FOR VALUES FROM ('{month}-01') TO ('{month}-28')",
            month.replace('-', "")
        );
        database.execute(&create).await.unwrap();
    }
    let mut reader = database.connect().await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM command_log_m202001").execute(&mut reader).await.unwrap();
    let mut sql = database.connect().await.unwrap();
    let maintain = "SELECT dropped, held FROM command_log_maintain('30 days')";
    let (dropped, held): (i32, Option<String>) = sqlx::query_as(maintain).fetch_one(&mut sql).await.unwrap();
    assert_eq!(dropped, 1);
    assert!(held.unwrap().contains("command_log_m202001 stays"));
    sqlx::raw_sql("ROLLBACK").execute(&mut reader).await.unwrap();
    let (dropped, held): (i32, Option<String>) = sqlx::query_as(maintain).fetch_one(&mut sql).await.unwrap();
    assert_eq!((dropped, held), (1, None));
}

#[tokio::test]
async fn no_part_of_the_log_can_be_truncated() {
    let database = Database::fresh("truncate").await.unwrap();
    let mut sql = database.connect().await.unwrap();
    let parts = "SELECT relname::text FROM pg_class WHERE oid = 'command_log'::regclass OR oid IN
                 (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'command_log'::regclass)";
    let parts: Vec<String> = sqlx::query_scalar(parts).fetch_all(&mut sql).await.unwrap();
    assert_eq!(parts.len(), 4, "the table, this month, the next, and the default: {parts:?}");
    for part in parts {
        let refused = database.execute(&format!("TRUNCATE {part}")).await.unwrap_err();
        assert!(
            refused.to_string().contains("cannot be truncated")
                || format!("{refused:?}").contains("cannot be truncated"),
            "{refused:?}"
        );
    }
}
