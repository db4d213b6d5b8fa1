//! What is too much, and what is too long.

use std::time::Duration;

use serde_json::json;
use testbed::{unique, wait};

use crate::service::{Service, problem, tea};

const SOON: Duration = Duration::from_secs(60);
#[tokio::test]
async fn a_caller_that_asks_too_often_is_told_when_to_come_back() {
    let service = Service::with(&["--rate-limit=3"]).await;
    let mut refused = None;
    for _ in 0..20 {
        let response = service.get("/v1/baskets").await;
        if response.status() == 429 {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("twenty requests at once are more than three a second");
    assert_eq!(refused.headers()["retry-after"], "1");
    problem(refused, 429).await;
    wait::until("room again", SOON, async || {
        let status = service.get("/v1/baskets").await.status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn more_requests_than_there_is_room_for_are_sent_away() {
    let service = Service::with(&["--max-requests=1"]).await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let item = tea(1);
    let (waiting, ()) = tokio::join!(service.post(&items, "k", &item), async {
        service.until_commands_wait(1).await;
        let full = service.get("/v1/baskets").await;
        assert_eq!(full.headers()["retry-after"], "1");
        problem(full, 503).await;
        lock.release().await;
    });
    assert_eq!(waiting.status(), 200);
}

/// All connections of the pool would wait for the row.
#[tokio::test]
async fn a_basket_that_is_locked_stops_nothing_else() {
    let service = Service::start().await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let item = tea(1);
    let of_one_basket = futures::future::join_all((0..40).map(|_| service.command(&items, &item)));
    let (answers, ()) = tokio::join!(of_one_basket, async {
        service.until_commands_wait(4).await;
        for _ in 0..20 {
            assert_eq!(service.get("/v1/baskets").await.status(), 200);
            assert_eq!(service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await.status(), 201);
        }
        assert_eq!(service.commands_waiting().await, 4, "the others wait without a connection");
        lock.release().await;
    });
    for answer in answers {
        assert!([200, 503].contains(&answer.status().as_u16()), "{}", answer.status());
    }
}

#[tokio::test]
async fn a_duplicate_of_a_command_in_progress_is_answered_immediately() {
    let service = Service::start().await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let item = tea(1);
    let (first, ()) = tokio::join!(service.post(&items, "k", &item), async {
        service.until_commands_wait(1).await;
        for _ in 0..20 {
            let twin = service.post(&items, "k", &item).await;
            assert_eq!(twin.headers()["retry-after"], "1");
            assert_eq!(problem(twin, 409).await["type"], "/problems/idempotency-key-in-progress");
        }
        assert_eq!(service.commands_waiting().await, 1, "duplicates do not queue behind the lock");
        lock.release().await;
    });
    assert_eq!(first.status(), 200);
    let again = service.post(&items, "k", &item).await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
}

#[tokio::test]
async fn a_full_pool_and_a_lock_that_is_held_are_503_and_nothing_is_half_done() {
    let service = Service::with(&["--database-connections=2"]).await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let item = tea(1);
    let body = json!({"buyer_id": "ann"});
    let (stuck, crowded) = tokio::join!(service.post(&items, "k", &item), async {
        service.until_commands_wait(1).await;
        service.command("/v1/baskets", &body).await
    });
    for response in [stuck, crowded] {
        assert_eq!(response.headers().get("retry-after"), Some(&"1".parse().unwrap()), "{response:?}");
        assert_eq!(problem(response, 503).await["type"], "/problems/unavailable");
    }
    lock.release().await;
    wait::until("an answer under the same key", SOON, async || {
        let status = service.post(&items, "k", &item).await.status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
    assert_eq!(service.count("SELECT version FROM basket ORDER BY version DESC LIMIT 1").await, 2);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_and_its_key_tells_the_rest() {
    let service = Service::with(&["--request-timeout=300ms"]).await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let slow = service.post(&items, "k", &tea(1)).await;
    assert_eq!(slow.headers()["retry-after"], "1");
    problem(slow, 503).await;
    lock.release().await;
    wait::until("an answer under the same key", SOON, async || {
        let status = service.post(&items, "k", &tea(1)).await.status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
    assert_eq!(service.event_types().await.len(), 2, "once, whenever it was");
}

#[tokio::test]
async fn a_change_without_its_precondition_is_refused_where_one_is_demanded() {
    let service = Service::with(&["--require-if-match"]).await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let refused = service.command(&items, &tea(1)).await;
    assert_eq!(problem(refused, 428).await["type"], "/problems/precondition-required");
    let request = service.request(reqwest::Method::POST, &items).header("Idempotency-Key", unique("k"));
    assert_eq!(request.header("If-Match", "\"1\"").json(&tea(1)).send().await.unwrap().status(), 200);
}
