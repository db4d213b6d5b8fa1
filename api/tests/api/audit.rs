//! The log of commands, over HTTP.

use serde_json::{Value, json};

use crate::service::{Service, problem, tea};

#[tokio::test]
async fn a_command_can_be_read_with_what_came_of_it() {
    let service = Service::start().await;
    let id = service.basket().await;
    let items = format!("/v1/baskets/{id}/items");
    let added = service.post(&items, "k-7", &tea(2)).await;
    let command = added.headers()["command-id"].to_str().unwrap().to_owned();
    let read: Value = service.get(&format!("/v1/commands/{command}")).await.json().await.unwrap();
    assert_eq!(
        (&read["id"], &read["type"], &read["principal"], &read["outcome"]),
        (&json!(command), &json!("add_item"), &json!("developer"), &json!("accepted"))
    );
    assert_eq!((&read["basket_id"], &read["basket_version"]), (&json!(id), &json!(2)));
    assert_eq!((&read["idempotency_key"], &read["refusal"]), (&json!("k-7"), &Value::Null));
    assert_eq!(read["payload"]["line"]["quantity"], 2);
    let event =
        service.count("SELECT count(*) FROM outbox o JOIN command_log c ON o.id = ANY (c.event_ids)").await;
    assert_eq!(event, 2, "events are found by their commands");

    let checkout = json!({"payment_method": "card"});
    service.command(&format!("/v1/baskets/{id}/checkout"), &checkout).await;
    let refused = service.post(&items, "k-8", &tea(1)).await;
    let command = refused.headers()["command-id"].to_str().unwrap().to_owned();
    let read: Value = service.get(&format!("/v1/commands/{command}")).await.json().await.unwrap();
    assert_eq!(
        (&read["outcome"], &read["refusal"], &read["event_ids"], &read["basket_version"]),
        (&json!("refused"), &json!("basket_closed"), &json!([]), &Value::Null)
    );
    for unknown in ["00000000-0000-0000-0000-000000000000", "x", "%00"] {
        let absent = service.get(&format!("/v1/commands/{unknown}")).await;
        assert_eq!(problem(absent, 404).await["type"], "/problems/command-not-found");
    }
}

#[tokio::test]
async fn the_log_is_filtered_and_walked() {
    let service = Service::start().await;
    for _ in 0..3 {
        let id = service.basket().await;
        service.command(&format!("/v1/baskets/{id}/checkout"), &json!({"payment_method": "card"})).await;
    }
    let count = async |query: &str| {
        let page: Value = service.get(&format!("/v1/commands?{query}")).await.json().await.unwrap();
        page["commands"].as_array().unwrap().len()
    };
    assert_eq!(count("").await, 6);
    assert_eq!(count("type=create_basket").await, 3);
    assert_eq!(count("outcome=refused").await, 3);
    assert_eq!(count("outcome=refused&type=create_basket").await, 0);
    assert_eq!(count("principal=developer&from=2020-01-01T00:00:00Z").await, 6);
    assert_eq!(count("until=2020-01-01T00:00:00Z").await, 0);
    let (mut seen, mut path) = (Vec::new(), "/v1/commands?limit=4".to_owned());
    loop {
        let page: Value = service.get(&path).await.json().await.unwrap();
        let ids = page["commands"].as_array().unwrap().iter();
        seen.extend(ids.map(|command| command["id"].as_str().unwrap().to_owned()));
        let Some(token) = page["next_page_token"].as_str() else { break };
        path = format!("/v1/commands?limit=4&page_token={token}");
    }
    assert_eq!(seen.len(), 6);
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first, each once");
    problem(service.get("/v1/commands?principal=another").await, 403).await;
    for wrong in ["type=x", "outcome=x", "from=yesterday", "until=1", "sort=id"] {
        problem(service.get(&format!("/v1/commands?{wrong}")).await, 400).await;
    }
}

#[tokio::test]
async fn the_log_is_evidence() {
    let service = Service::start().await;
    service.basket().await;
    for change in ["UPDATE command_log SET principal = 'x'", "DELETE FROM command_log"] {
        assert!(service.database.execute(change).await.is_err(), "{change}");
    }
}
