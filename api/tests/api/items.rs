//! Items, abandonment, and reading on conditions.

use reqwest::Method;
use serde_json::{Value, json};

use crate::service::{Service, problem, tea};

#[tokio::test]
async fn items_are_changed_removed_and_cleared() {
    let service = Service::start().await;
    let basket = format!("/v1/baskets/{}", service.basket().await);
    let items = format!("{basket}/items");
    service.command(&items, &tea(1)).await;
    let mut odd = tea(1);
    odd["sku"] = json!("a/b c%ü");
    service.command(&items, &odd).await;

    let changed = service.change(Method::PATCH, &format!("{items}/tea"), Some(json!({"quantity": 5}))).await;
    assert_eq!((changed.status().as_u16(), &changed.headers()["etag"]), (200, &"\"4\"".parse().unwrap()));
    let odd_item = format!("{items}/a%2Fb%20c%25%C3%BC");
    let removed: Value = service.change(Method::DELETE, &odd_item, None).await.json().await.unwrap();
    assert_eq!(removed["lines"].as_array().unwrap().len(), 1);
    assert_eq!(removed["lines"][0]["quantity"], 5);
    problem(service.change(Method::DELETE, &odd_item, None).await, 404).await;
    for unknown in ["%00", "%zz", "%ff", "x"] {
        let gone = service.change(Method::DELETE, &format!("{items}/{unknown}"), None).await;
        assert_eq!(problem(gone, 404).await["type"], "/problems/item-not-found", "{unknown}");
    }
    let cleared: Value = service.change(Method::DELETE, &items, None).await.json().await.unwrap();
    assert_eq!((&cleared["lines"], &cleared["total"]), (&json!([]), &Value::Null));
    let again = service.change(Method::DELETE, &items, None).await;
    assert_eq!(again.headers()["etag"], "\"6\"", "an empty basket is cleared already");
    assert_eq!(
        service.event_types().await,
        [
            "basket.created.v1",
            "basket.item_added.v1",
            "basket.item_added.v1",
            "basket.item_quantity_changed.v1",
            "basket.item_removed.v1",
            "basket.cleared.v1"
        ]
    );
}

#[tokio::test]
async fn an_abandoned_basket_never_changes_again() {
    let service = Service::start().await;
    let basket = format!("/v1/baskets/{}", service.basket().await);
    let abandoned = service.change(Method::DELETE, &basket, None).await;
    assert_eq!(abandoned.status(), 200);
    assert_eq!(abandoned.json::<Value>().await.unwrap()["status"], "abandoned");
    let late = service.command(&format!("{basket}/items"), &tea(1)).await;
    assert_eq!(problem(late, 409).await["type"], "/problems/basket-closed");
    assert_eq!(service.get(&basket).await.json::<Value>().await.unwrap()["status"], "abandoned");
    let outbox = service.outbox().await;
    assert_eq!((&*outbox[1].0, &outbox[1].2["reason"]), ("basket.abandoned.v1", &json!("requested")));
}

#[tokio::test]
async fn conflicts_with_what_is_in_the_basket() {
    let service = Service::start().await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    service.command(&items, &tea(999)).await;
    let with = |field: &str, value: Value| {
        let mut item = tea(1);
        item[field] = value;
        item
    };
    let dollars = json!({"amount": 1, "currency": "USD"});
    let cheaper = json!({"amount": 1, "currency": "EUR"});
    for (item, kind) in [
        (with("unit_price", dollars), "currency-mismatch"),
        (with("unit_price", cheaper), "price-mismatch"),
        (with("quantity", json!(2)), "basket-limit"),
    ] {
        let refused = service.command(&items, &item).await;
        assert_eq!(problem(refused, 409).await["type"], format!("/problems/{kind}"));
    }
}

#[tokio::test]
async fn a_reader_that_has_the_version_is_not_sent_it_again() {
    let service = Service::start().await;
    let basket = format!("/v1/baskets/{}", service.basket().await);
    let read = async |tag: &str| {
        service.request(Method::GET, &basket).header("If-None-Match", tag).send().await.unwrap()
    };
    for known in ["\"1\"", "W/\"1\"", "\"0\", \"1\"", "*"] {
        let response = read(known).await;
        assert_eq!(response.headers()["etag"], "\"1\"");
        assert_eq!(response.status(), 304, "{known}");
        assert_eq!(response.text().await.unwrap(), "");
    }
    assert_eq!(read("\"2\"").await.status(), 200);
    problem(read("1").await, 400).await;
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let service = Service::start().await;
    let basket = format!("/v1/baskets/{}", service.basket().await);
    for path in [basket.as_str(), "/v1/baskets", "/v1/commands", "/openapi.json"] {
        let head = service.request(Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.status(), 200);
        let get = service.get(path).await;
        for header in ["content-type", "content-length"] {
            assert_eq!(head.headers()[header], get.headers()[header], "{path}: {header}");
        }
        assert_eq!(head.text().await.unwrap(), "");
    }
}

#[tokio::test]
async fn only_json_is_spoken() {
    let service = Service::start().await;
    let get = async |accept: &str| {
        service.request(Method::GET, "/v1/baskets").header("accept", accept).send().await.unwrap()
    };
    for accepted in ["application/json", "*/*", "text/html, application/*;q=0.1"] {
        assert_eq!(get(accepted).await.status(), 200, "{accepted}");
    }
    problem(get("text/html").await, 406).await;
    problem(get("application/json;q=0").await, 406).await;
}

#[tokio::test]
async fn pages_are_linked_and_their_tokens_are_good_for_their_list_only() {
    let service = Service::start().await;
    for _ in 0..3 {
        service.basket().await;
    }
    let first = service.get("/v1/baskets?limit=2&status=open").await;
    let first_address = first.url().clone();
    let link = first.headers()["link"].to_str().unwrap().to_owned();
    let page: Value = first.json().await.unwrap();
    let token = page["next_page_token"].as_str().unwrap();
    let next = link.split(", ").find(|link| link.ends_with("rel=\"next\"")).unwrap();
    let next = next.strip_prefix('<').unwrap().split('>').next().unwrap();
    let next = first_address.join(next).unwrap();
    let second: Value =
        service.get(&format!("{}?{}", next.path(), next.query().unwrap())).await.json().await.unwrap();
    assert_eq!(second["baskets"].as_array().unwrap().len(), 1);
    assert_eq!(second["next_page_token"], Value::Null);
    let foreign = format!("/v1/baskets?limit=2&status=abandoned&page_token={token}");
    problem(service.get(&foreign).await, 400).await;
    problem(service.get(&format!("/v1/commands?page_token={token}")).await, 400).await;
    problem(service.get("/v1/baskets?status=lost").await, 400).await;
    problem(service.get("/v1/baskets?limit=1&limit=2").await, 400).await;
}
