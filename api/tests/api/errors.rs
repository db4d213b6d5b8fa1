//! Bad input gets a clear answer, never a 500, and nothing of the inside.

use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use testbed::postgres::{Postgres, PostgresOptions, Shutdown};
use testbed::{Database, unique, wait};

use crate::service::{Service, TOKEN, problem, tea};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn bad_bodies() {
    let service = Service::start().await;
    let path = format!("/v1/baskets/{}/items", service.basket().await);
    let item = |field: &str, value: Value| {
        let mut item = tea(1);
        item[field] = value;
        item.to_string().into_bytes()
    };
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes();
    let cases: Vec<(Vec<u8>, u16)> = vec![
        (b"".to_vec(), 400),
        (b"{\"sku\":".to_vec(), 400),
        (b"\xef\xbb\xbf{}".to_vec(), 400),
        (b"{\"sku\":\"\xff\"}".to_vec(), 400),
        (b"{\"sku\":\"\\ud800\"}".to_vec(), 400),
        (b"{} {}".to_vec(), 400),
        (deep.clone(), 400),
        ([b"{\"sku\":", deep.as_slice(), b"}"].concat(), 400),
        (b"null".to_vec(), 400),
        (b"[]".to_vec(), 400),
        (b"{\"sku\":\"a\",\"sku\":\"b\"}".to_vec(), 400),
        (b"{\"sku\":\"a\",\"quantity\":NaN}".to_vec(), 400),
        (b"{\"sku\":\"a\",\"quantity\":1e999}".to_vec(), 400),
        (b"{\"sku\":\"a\",\"name\":\"A\",\"quantity\":-0}".to_vec(), 422),
        (b"{\"sku\":\"a\",\"name\":\"A\",\"quantity\":9223372036854775808}".to_vec(), 422),
        (b"{\"sku\":\"a\",\"name\":\"A\",\"quantity\":18446744073709551616}".to_vec(), 422),
        (item("unit_price", json!([350, "EUR"])), 422),
        (
            br#"{"sku":"a","name":"A","quantity":1,"unit_price":{"amount":1,"amount":2,"currency":"EUR"}}"#
                .to_vec(),
            400,
        ),
        (item("quantity", json!(0)), 422),
        (item("quantity", json!(-1)), 422),
        (item("quantity", json!(1.5)), 422),
        (item("quantity", json!(u64::MAX)), 422),
        (item("sku", json!("a\u{0}b")), 422),
        (item("sku", json!("")), 422),
        (item("name", json!("x".repeat(201))), 422),
        (item("unit_price", json!({"amount": -1, "currency": "EUR"})), 422),
        (item("unit_price", json!({"amount": 1_000_000_000_001_i64, "currency": "EUR"})), 422),
        (item("unit_price", json!({"amount": 1, "currency": "eur"})), 422),
        (item("sku", json!("..")), 422),
        (item("quantity", json!(10_000)), 422),
        (item("unit_price", json!({"amount": i64::MAX, "currency": "EUR"})), 422),
        (item("version", json!(7)), 422),
        (item("id", json!("00000000-0000-0000-0000-000000000000")), 422),
        (item("status", json!("open")), 422),
        (item("created_at", json!("2026-01-01T00:00:00Z")), 422),
        (vec![b' '; 70_000], 413),
    ];
    for (body, status) in cases {
        let shown = String::from_utf8_lossy(&body).chars().take(60).collect::<String>();
        let request = service.request(Method::POST, &path).header("Idempotency-Key", unique("k"));
        let response = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(response.status(), status, "{shown}");
        problem(response, status).await;
    }
    assert_eq!(service.event_types().await, ["basket.created.v1"]);
}

#[tokio::test]
async fn all_errors_of_a_body_are_told_at_once_by_their_pointers_and_repeat_no_value() {
    let service = Service::start().await;
    let path = format!("/v1/baskets/{}/items", service.basket().await);
    let long = "a value that is no number ".repeat(1000);
    let item =
        json!({"sku": "a", "quantity": long, "unit_price": {"amount": -1, "currency": "euro"}, "id": 7});
    let body = problem(service.command(&path, &item).await, 422).await;
    let errors = body["errors"].as_array().unwrap();
    let pointers: Vec<&str> = errors.iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/name", "/quantity", "/unit_price/currency", "/unit_price/amount", "/id"]);
    assert!(errors[2]["detail"].as_str().unwrap().contains("three capital letters"), "{body}");
    assert!(!body.to_string().contains("no number"), "{body}");
}

#[tokio::test]
async fn bad_paths_methods_and_headers() {
    let service = Service::start().await;
    let basket = format!("/v1/baskets/{}", service.basket().await);
    for path in ["/", "/v1", "/v1/baskets/x/y/z", "/v1/baskets/-1", "/v1/baskets/..%2f", "/v1/baskets/%00"] {
        problem(service.get(path).await, 404).await;
    }
    let absent = problem(service.get("/v1/baskets/00000000-0000-0000-0000-000000000000").await, 404).await;
    assert_eq!(absent["type"], "/problems/basket-not-found");
    let put = service.request(Method::PUT, &basket).send().await.unwrap();
    assert_eq!(put.headers()["allow"], "DELETE, GET, HEAD");
    problem(put, 405).await;
    for query in ["limit=0", "limit=-1", "limit=1000000000", "page_token=forged", "unknown=1"] {
        problem(service.get(&format!("/v1/baskets?{query}")).await, 400).await;
    }
    let no_key =
        service.request(Method::POST, "/v1/baskets").json(&json!({"buyer_id": "a"})).send().await.unwrap();
    assert_eq!(problem(no_key, 400).await["type"], "/problems/idempotency-key-missing");
    problem(service.get("/v1/baskets?buyer_id=%FF").await, 400).await;
    let long = "k".repeat(256);
    problem(service.post("/v1/baskets", &long, &json!({"buyer_id": "a"})).await, 400).await;
    let text = service.request(Method::POST, "/v1/baskets").header("Idempotency-Key", "k").body("{}");
    problem(text.send().await.unwrap(), 415).await;
    for name in ["Content-Type", "Content-Encoding"] {
        let request = service.request(Method::POST, "/v1/baskets").header("Idempotency-Key", "k");
        let request =
            request.header("Content-Type", "application/json").header("Content-Encoding", "identity");
        let second = if name == "Content-Type" { "text/plain" } else { "gzip" };
        let doubled = request.header(name, second).body(r#"{"buyer_id":"a"}"#).send().await.unwrap();
        problem(doubled, 415).await;
    }
}

#[tokio::test]
async fn answers_say_who_may_cache_them() {
    let service = Service::start().await;
    let basket = format!("/v1/baskets/{}", service.basket().await);
    for (path, cached) in [
        (basket.as_str(), "private, no-cache"),
        ("/nowhere", "private, no-cache"),
        ("/openapi.json", "public, max-age=300"),
    ] {
        let answer = service.get(path).await;
        assert_eq!(answer.headers()["cache-control"], cached, "{path}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
    }
}

#[tokio::test]
async fn without_the_token_there_is_nothing() {
    let service = Service::start().await;
    let base = service.request(Method::GET, "/v1/baskets").build().unwrap().url().to_string();
    for given in
        [None, Some("Bearer wrong".to_owned()), Some(format!("Basic {TOKEN}")), Some("Bearer ".to_owned())]
    {
        let mut request = service.client.get(&base);
        if let Some(value) = &given {
            request = request.header("authorization", value);
        }
        let response = request.send().await.unwrap();
        let challenge = response.headers()["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Bearer"), "{challenge}");
        problem(response, 401).await;
    }
}

#[tokio::test]
async fn a_database_that_is_down_is_503_and_comes_back() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let database = Database::on(&postgres.url("postgres"), "away").await.unwrap();
    let service = Service::over(database).await;
    postgres.stop(Shutdown::Fast).await.unwrap();
    let away = service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await;
    assert_eq!(away.headers()["retry-after"], "1");
    problem(away, 503).await;
    service.until_ready(503).await;
    postgres.start_again().await.unwrap();
    wait::until("a basket after the outage", SOON, async || {
        let status = service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await.status();
        if status == 201 { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
    service.until_ready(200).await;
}

#[test]
fn invalid_configuration_ends_with_64_and_no_secret() {
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_basket-api"));
        program.args(arguments).env_remove("BASKET_DATABASE_URL").env_remove("BASKET_STATIC_TOKEN");
        let output = program.envs(environment.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let database = ("BASKET_DATABASE_URL", "postgres://u:hunter2@127.0.0.1/d");
    let cases = [
        run(&["serve"], &[]),
        run(
            &["serve"],
            &[("BASKET_DATABASE_URL", "mysql:hunter2"), ("BASKET_STATIC_TOKEN", "hunter2hunter2hunter2")],
        ),
        run(&["serve"], &[database]),
        run(&["serve"], &[database, ("BASKET_STATIC_TOKEN", "hunter2")]),
        run(&["serve", "--listen", "nowhere"], &[database]),
    ];
    for (code, printed) in cases {
        assert_eq!(code, Some(64), "{printed}");
        assert!(!printed.contains("hunter2") && !printed.contains("panicked"), "{printed}");
    }
}
