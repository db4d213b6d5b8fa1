//! What was stored under other rules: it is still read, replayed, changed, rebuilt and expired.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::wait;

use crate::housekeeping::age;
use crate::service::{Service, tea};

/// Generous: the machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A line that today's rules refuse: a path as article number, a long name, too many pieces, too high a price.
fn strange_line() -> Value {
    json!({
        "sku": "..", "name": "n".repeat(900), "quantity": 5000,
        "unit_price": {"amount": 500_000_000_000_i64, "currency": "EUR"},
    })
}

/// Puts the line into every stored basket, and members of a later version into every stored document.
async fn store_under_other_rules(service: &Service) {
    let line = strange_line();
    let shown = json!({
        "sku": line["sku"], "name": line["name"], "quantity": line["quantity"],
        "unit_price": line["unit_price"], "total": {"amount": 1, "currency": "EUR"}, "discount": 7,
    });
    let statements = format!(
        "UPDATE basket SET lines = lines || '{line}'::jsonb, buyer_id = repeat('b', 500);
         UPDATE basket_view SET view = view || '{{\"later\": true}}'::jsonb || jsonb_build_object('lines', '[{shown}]'::jsonb);
         UPDATE idempotency_key SET result = jsonb_set(result, '{{accepted,lines}}', '[{shown}]'::jsonb)"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut service.sql().await).await.unwrap();
}

#[tokio::test]
async fn a_basket_stored_under_other_rules_is_read_replayed_changed_and_rebuilt() {
    let service = Service::start().await;
    let id = service.basket().await;
    let (path, items) = (format!("/v1/baskets/{id}"), format!("/v1/baskets/{id}/items"));
    service.post(&items, "k", &tea(1)).await;
    store_under_other_rules(&service).await;

    let read: Value = service.get(&path).await.json().await.unwrap();
    assert_eq!(read["lines"][0]["quantity"], 5000);
    assert_eq!(service.get("/v1/baskets").await.status(), 200);

    let replayed = service.post(&items, "k", &tea(1)).await;
    assert_eq!(replayed.status(), 200);
    assert_eq!(replayed.headers()["idempotent-replayed"], "true");
    assert_eq!(replayed.json::<Value>().await.unwrap()["lines"][0]["sku"], "..");

    let changed = service.command(&items, &tea(1)).await;
    assert_eq!(changed.status(), 200);
    let changed: Value = changed.json().await.unwrap();
    assert_eq!(changed["lines"][0]["quantity"], 2);
    assert_eq!(changed["lines"][1]["quantity"], 5000);

    let rebuilt = Command::new(env!("CARGO_BIN_EXE_basket-api"))
        .arg("rebuild-read-model")
        .env("BASKET_DATABASE_URL", service.database.url())
        .status()
        .unwrap();
    assert!(rebuilt.success());
    assert_eq!(service.get(&path).await.json::<Value>().await.unwrap(), changed);
}

#[tokio::test]
async fn a_basket_stored_under_other_rules_expires() {
    let service = Service::start().await;
    let id = service.basket().await;
    store_under_other_rules(&service).await;
    let id = age(&service, &id, "2 hours").await;
    let _replica =
        service.replica(&["--auth=static-token", "--abandon-after=1h", "--housekeeping-every=100ms"]);
    wait::until("an abandoned basket", TIMEOUT, async || {
        let basket: Value = service.get(&format!("/v1/baskets/{id}")).await.json().await.unwrap();
        if basket["status"] == "abandoned" { Ok(()) } else { Err(basket["status"].to_string()) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn time_never_goes_back_against_the_version() {
    let service = Service::start().await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    service.database.execute("UPDATE basket SET updated_at = '2999-01-01T00:00:00Z'").await.unwrap();
    let changed: Value = service.command(&items, &tea(1)).await.json().await.unwrap();
    assert_eq!(changed["updated_at"], "2999-01-01T00:00:00Z");
    assert_eq!(service.outbox().await[1].2["occurred_at"], "2999-01-01T00:00:00Z");
}
