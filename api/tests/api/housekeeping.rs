//! What expires, and what can be made again.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Database, wait};

use crate::service::{Service, TOKEN};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn baskets_nobody_touches_are_abandoned_once_however_many_replicas_there_are() {
    let database = Database::fresh("expiry").await.unwrap();
    let quiet = Service::over(database).await;
    let (old, fresh) = (quiet.basket().await, quiet.basket().await);
    let age = format!("UPDATE basket SET updated_at = now() - interval '2 hours' WHERE id = '{old}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(age)).execute(&mut quiet.sql().await).await.unwrap();
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
    let age = "UPDATE idempotency_key SET received_at = now() - interval '25 hours' WHERE key = 'old'";
    service.database.execute(age).await.unwrap();
    wait::until("a forgotten key", SOON, async || {
        let keys = service.count("SELECT count(*) FROM idempotency_key").await;
        if keys == 1 { Ok(()) } else { Err(keys) }
    })
    .await
    .unwrap();
    assert_eq!(service.count("SELECT count(*) FROM command_log").await, 2);
}

#[tokio::test]
async fn the_read_model_can_be_made_again() {
    let service = Service::start().await;
    let id = service.basket().await;
    let before: Value = service.get("/v1/baskets").await.json().await.unwrap();
    service.database.execute("UPDATE basket_view SET view = '{}', buyer_id = 'nobody'").await.unwrap();
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

#[test]
fn what_would_break_a_promise_is_refused() {
    for arguments in [["--keep-keys=1h"], ["--keep-commands=48h"], ["--abandon-after=0s"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_basket-api"))
            .args(["serve", "--auth=static-token"])
            .args(arguments)
            .env("BASKET_DATABASE_URL", "postgres://127.0.0.1/x")
            .env("BASKET_STATIC_TOKEN", TOKEN)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.contains("or more"), "{printed}");
    }
}
