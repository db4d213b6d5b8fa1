//! Commands and queries, and what they leave in the database.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row;
use url::Url;

use crate::service::{Service, UNITS_OF_WORK, problem, tea};

#[tokio::test]
async fn a_basket_is_created_filled_and_checked_out() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let created = service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await;
        assert_eq!(created.status(), 201);
        assert_eq!(created.headers()["etag"], "\"1\"");
        let location = created.url().join(created.headers()["location"].to_str().unwrap()).unwrap();
        let location = location.path().to_owned();
        let basket: Value = created.json().await.unwrap();
        assert_eq!(location, format!("/v1/baskets/{}", basket["id"].as_str().unwrap()));
        assert_eq!(
            (&basket["status"], &basket["lines"], &basket["total"]),
            (&json!("open"), &json!([]), &Value::Null)
        );

        let filled = service.command(&format!("{location}/items"), &tea(2)).await;
        assert_eq!((filled.status().as_u16(), &filled.headers()["etag"]), (200, &"\"2\"".parse().unwrap()));
        let ordered =
            service.command(&format!("{location}/checkout"), &json!({"payment_method": "card"})).await;
        assert_eq!(ordered.status(), 200);
        let ordered: Value = ordered.json().await.unwrap();
        assert_eq!(ordered["status"], "checked_out");
        assert_eq!(ordered["total"], json!({"amount": 700, "currency": "EUR"}));

        let read = service.get(&location).await;
        assert_eq!(read.headers()["etag"], "\"3\"");
        assert_eq!(read.json::<Value>().await.unwrap(), ordered, "a reader sees what the command answered");
    }
}

/// As an ingress serves it that removes a prefix from the path.
#[tokio::test]
async fn references_lead_to_their_target_below_a_prefix_that_the_service_does_not_know() {
    let service = Service::start().await;
    let below = |reference: &str| {
        let request = Url::parse("https://shop.example/prefix/v1/baskets").unwrap();
        let target = request.join(reference).unwrap();
        target.as_str().strip_prefix("https://shop.example/prefix").map(str::to_owned)
    };
    let created = service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await;
    let location = below(created.headers()["location"].to_str().unwrap()).expect("below the prefix");
    assert_eq!(service.get(&location).await.status(), 200, "{location}");
    service.basket().await;
    let list = service.get("/v1/baskets?limit=1").await;
    let links = list.headers()["link"].to_str().unwrap().to_owned();
    let targets: Vec<&str> = links.split(['<', '>']).skip(1).step_by(2).collect();
    assert_eq!(targets.len(), 2, "first and next: {links}");
    for target in targets {
        let address = below(target).expect("below the prefix");
        let page: Value = service.get(&address).await.json().await.unwrap();
        assert_eq!(page["baskets"].as_array().map(Vec::len), Some(1), "{address}");
    }
}

#[tokio::test]
async fn every_change_is_an_event_in_the_outbox_with_its_cause() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let id = service.basket().await;
        let add = service.request(Method::POST, &format!("/v1/baskets/{id}/items"));
        let add =
            add.header("Idempotency-Key", "k").header("traceparent", trace).header("Correlation-Id", "c-7");
        let added = add.json(&tea(1)).send().await.unwrap();
        let command = added.headers()["command-id"].to_str().unwrap().to_owned();
        service.command(&format!("/v1/baskets/{id}/checkout"), &json!({"payment_method": "invoice"})).await;

        let outbox = service.outbox().await;
        let types: Vec<&str> = outbox.iter().map(|(event_type, ..)| event_type.as_str()).collect();
        assert_eq!(types, ["basket.created.v1", "basket.item_added.v1", "basket.checked_out.v1"]);
        assert!(outbox.iter().all(|(_, key, payload, _)| *key == id && payload["basket_id"] == id.as_str()));
        let (_, _, payload, headers) = &outbox[1];
        assert_eq!(headers, &json!({"correlation-id": "c-7", "causation-id": command}));
        assert_eq!((&payload["version"], &payload["line"]["sku"]), (&json!(2), &json!("tea")));
        assert_eq!(outbox[2].2["basket"]["lines"][0]["quantity"], 1, "checkout carries a full snapshot");
        let traced = service.count("SELECT count(*) FROM outbox WHERE traceparent LIKE '00-4bf92f%'").await;
        assert_eq!(traced, 1);
        let metrics = service.metrics().await;
        assert!(
            metrics.contains("basket_api_outbox_rows_total{type=\"basket.item_added.v1\"} 1"),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn the_command_log_says_who_what_when_and_which_events() {
    let service = Service::start().await;
    let id = service.basket().await;
    service.command(&format!("/v1/baskets/{id}/checkout"), &json!({"payment_method": "card"})).await;
    let log =
        "SELECT command_type, principal, outcome, refusal, event_ids = ARRAY(SELECT o.id FROM outbox o),
                      completed_at >= received_at
               FROM command_log ORDER BY received_at";
    let rows = sqlx::query(log).fetch_all(&mut service.sql().await).await.unwrap();
    let told: Vec<(String, String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let words = |a: &str, b: &str| (a.to_owned(), "developer".to_owned(), b.to_owned());
    assert_eq!(told, [words("create_basket", "accepted"), words("check_out", "refused")]);
    assert!(rows[0].get::<bool, _>(4) && rows[0].get::<bool, _>(5));
    assert_eq!(rows[1].get::<Option<String>, _>(3).as_deref(), Some("basket_empty"));
    let change = "UPDATE command_log SET outcome = 'refused', event_ids = '{}'";
    assert!(service.database.execute(change).await.is_err(), "a completed command cannot be changed");
}

#[tokio::test]
async fn lists_are_walked_in_pages_without_gaps_or_repeats() {
    let service = Service::start().await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.insert(0, service.basket().await);
    }
    service.command("/v1/baskets", &json!({"buyer_id": "bob"})).await;
    let (mut seen, mut path) = (Vec::new(), "/v1/baskets?buyer_id=ann&limit=2".to_owned());
    loop {
        let page: Value = service.get(&path).await.json().await.unwrap();
        let ids = page["baskets"].as_array().unwrap().iter();
        seen.extend(ids.map(|basket| basket["id"].as_str().unwrap().to_owned()));
        let Some(token) = page["next_page_token"].as_str() else { break };
        path = format!("/v1/baskets?buyer_id=ann&limit=2&page_token={token}");
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_stale_version_is_refused_and_any_version_is_not() {
    let service = Service::start().await;
    let id = service.basket().await;
    let add = |tag: &'static str| {
        let request = service.request(Method::POST, &format!("/v1/baskets/{id}/items"));
        request.header("Idempotency-Key", testbed::unique("k")).header("If-Match", tag).json(&tea(1)).send()
    };
    assert_eq!(add("\"1\"").await.unwrap().status(), 200);
    let stale = add("\"1\"").await.unwrap();
    assert_eq!(stale.headers()["etag"], "\"2\"", "the answer says what the version is now");
    assert_eq!(problem(stale, 412).await["type"], "/problems/version-mismatch");
    assert_eq!(add("W/\"2\"").await.unwrap().status(), 412);
    assert_eq!(add("*").await.unwrap().status(), 200);
    assert_eq!(add("2").await.unwrap().status(), 400);
}

#[tokio::test]
async fn sigterm_finishes_and_exits_0() {
    let mut service = Service::start().await;
    service.basket().await;
    service.program.terminate().unwrap();
    let status = service.program.wait(std::time::Duration::from_secs(30)).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(service.program.log().contains("stopped gracefully"));
}
