//! The same command, however often it is sent, happens once: in every way of writing it.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::wait;

use crate::service::{Service, UNITS_OF_WORK, problem, tea};

/// Generous: the machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_repetition_gets_the_first_answer() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let first = service.post("/v1/baskets", "k", &json!({"buyer_id": "ann"})).await;
        let again = service.post("/v1/baskets", "\"k\"", &json!({"buyer_id": "ann"})).await;
        assert_eq!(first.status(), 201);
        assert_eq!(again.status(), 201);
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert!(!first.headers().contains_key("idempotent-replayed"));
        for header in ["etag", "location", "command-id"] {
            assert_eq!(first.headers()[header], again.headers()[header], "{header}");
        }
        assert_eq!(first.json::<Value>().await.unwrap(), again.json::<Value>().await.unwrap());
        assert_eq!(service.event_types().await, ["basket.created.v1"]);
        assert!(service.metrics().await.contains("basket_api_replays_total 1"));
    }
}

#[tokio::test]
async fn the_first_answer_is_kept_when_the_basket_has_moved_on() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let path = format!("/v1/baskets/{}/items", service.basket().await);
        service.post(&path, "first", &tea(1)).await;
        service.post(&path, "second", &tea(1)).await;
        let again = service.post(&path, "first", &tea(1)).await;
        assert_eq!(again.headers()["etag"], "\"2\"");
        assert_eq!(again.json::<Value>().await.unwrap()["lines"][0]["quantity"], 1);
    }
}

#[tokio::test]
async fn a_refusal_is_an_outcome_and_is_repeated_too() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let id = service.basket().await;
        let checkout = format!("/v1/baskets/{id}/checkout");
        let refused = service.post(&checkout, "k", &json!({"payment_method": "card"})).await;
        let command = refused.headers()["command-id"].clone();
        assert_eq!(problem(refused, 409).await["type"], "/problems/basket-empty");
        service.command(&format!("/v1/baskets/{id}/items"), &tea(1)).await;
        let again = service.post(&checkout, "k", &json!({"payment_method": "card"})).await;
        assert_eq!(
            (&again.headers()["idempotent-replayed"], &again.headers()["command-id"]),
            (&"true".parse().unwrap(), &command)
        );
        assert_eq!(problem(again, 409).await["type"], "/problems/basket-empty");
    }
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        service.post("/v1/baskets", "k", &json!({"buyer_id": "ann"})).await;
        let other = service.post("/v1/baskets", "k", &json!({"buyer_id": "bob"})).await;
        assert_eq!(problem(other, 422).await["type"], "/problems/idempotency-key-reused");
        assert_eq!(service.event_types().await.len(), 1);
    }
}

#[tokio::test]
async fn of_many_concurrent_duplicates_one_changes_something() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let path = format!("/v1/baskets/{}/items", service.basket().await);
        let (item, key) = (tea(1), "k");
        let duplicates = (0..200).map(|_| service.post(&path, key, &item));
        let mut answers = Vec::new();
        for duplicate in futures::future::join_all(duplicates).await {
            match duplicate.status().as_u16() {
                200 => answers.push((
                    duplicate.headers()["command-id"].clone(),
                    duplicate.headers()["etag"].clone(),
                    duplicate.json::<Value>().await.unwrap(),
                )),
                // No turn at the database in time, on a slow machine.
                503 => assert_eq!(duplicate.headers()["retry-after"], "1"),
                _ => {
                    assert_eq!(duplicate.headers()["retry-after"], "1");
                    assert_eq!(
                        problem(duplicate, 409).await["type"],
                        "/problems/idempotency-key-in-progress"
                    );
                }
            }
        }
        assert!(!answers.is_empty() && answers.iter().all(|answer| *answer == answers[0]));
        assert_eq!(service.event_types().await, ["basket.created.v1", "basket.item_added.v1"]);
        assert_eq!(service.count("SELECT version FROM basket").await, 2);
    }
}

/// As a client does it: a command that finds no free connection in time is repeated under its key.
async fn until_executed(service: &Service, path: &str, key: &str, item: &Value) {
    wait::until("a command", TIMEOUT, async || {
        let added = service.post(path, key, item).await;
        match added.status().as_u16() {
            200 => Ok(()),
            503 if added.headers().contains_key("retry-after") => Err("503"),
            other => panic!("{other}"),
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn different_commands_on_one_basket_queue_and_all_happen() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let path = format!("/v1/baskets/{}/items", service.basket().await);
        let item = tea(1);
        let (service, path, item) = (&service, &path, &item);
        let adds = (0..200).map(async |n| until_executed(service, path, &format!("add-{n}"), item).await);
        futures::future::join_all(adds).await;
        assert_eq!(service.count("SELECT version FROM basket").await, 201);
        let in_order =
            "SELECT count(*) FROM (SELECT (payload ->> 'version')::bigint v, row_number() OVER (ORDER BY seq) n
                        FROM outbox) events WHERE v = n";
        assert_eq!(
            service.count(in_order).await,
            201,
            "events of one basket are in the order of its versions"
        );
    }
}

#[tokio::test]
async fn a_command_that_fails_in_the_middle_leaves_nothing() {
    for unit_of_work in UNITS_OF_WORK {
        let service = Service::writing(unit_of_work).await;
        let path = format!("/v1/baskets/{}/items", service.basket().await);
        // The outbox is written after the state and the read model.
        service
            .database
            .execute("ALTER TABLE outbox ADD CONSTRAINT broken CHECK (type <> 'basket.item_added.v1')")
            .await
            .unwrap();
        let failed = service.post(&path, "k", &tea(1)).await;
        let body = problem(failed, 500).await.to_string();
        assert!(!body.contains("outbox") && !body.contains("constraint"), "{body}");
        assert_eq!(service.count("SELECT version FROM basket").await, 1);
        assert_eq!(service.count("SELECT count(*) FROM command_log").await, 1);
        assert_eq!(service.count("SELECT count(*) FROM idempotency_key WHERE key = 'k'").await, 0);
        service.database.execute("ALTER TABLE outbox DROP CONSTRAINT broken").await.unwrap();
        assert_eq!(
            service.post(&path, "k", &tea(1)).await.status(),
            200,
            "the same command can be sent again"
        );
    }
}
