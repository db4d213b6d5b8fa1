//! What a caller may see and do.

use reqwest::Method;
use serde_json::{Value, json};
use testbed::unique;

use super::issuer::{Issuer, claims, elliptic};
use crate::service::problem;

#[tokio::test]
async fn each_principal_has_separate_baskets_and_commands_and_an_auditor_reads_all_commands() {
    let ec = elliptic("ec");
    let issuer = Issuer::start(&[&ec]).await;
    let service = issuer.service_with(&["--jwt-roles-claim=realm_access.roles"]).await;
    let token = |subject: &str, roles: &[&str]| {
        let mut claims = claims();
        claims["sub"] = json!(subject);
        claims["realm_access"] = json!({ "roles": roles });
        ec.token(&claims)
    };
    let (ann, bob, auditor) = (token("ann", &[]), token("bob", &["buyer"]), token("eve", &["auditor"]));
    let send = async |method: Method, path: &str, token: &str| {
        let request = service.client.request(method, format!("http://{}{path}", service.address()));
        let request = request.bearer_auth(token).header("Idempotency-Key", unique("k"));
        request.json(&json!({"buyer_id": "b"})).send().await.unwrap()
    };
    let created = send(Method::POST, "/v1/baskets", &ann).await;
    let command = created.headers()["command-id"].to_str().unwrap().to_owned();
    let basket =
        created.url().join(created.headers()["location"].to_str().unwrap()).unwrap().path().to_owned();
    assert_eq!(send(Method::GET, &basket, &ann).await.status(), 200);
    let absent = "/v1/baskets/00000000-0000-0000-0000-000000000000";
    for method in [Method::GET, Method::DELETE] {
        let foreign = problem(send(method.clone(), &basket, &bob).await, 404).await;
        let absent = problem(send(method, absent, &bob).await, 404).await;
        for member in ["type", "title", "detail"] {
            assert_eq!(foreign[member], absent[member], "a foreign basket looks like none");
        }
    }
    let baskets: Value = send(Method::GET, "/v1/baskets", &bob).await.json().await.unwrap();
    assert_eq!(baskets["baskets"], json!([]));

    let command = format!("/v1/commands/{command}");
    for (reader, status) in [(&ann, 200), (&bob, 404), (&auditor, 200)] {
        assert_eq!(send(Method::GET, &command, reader).await.status(), status);
    }
    let theirs = "/v1/commands?principal=ann";
    for (reader, status) in [(&ann, 200), (&bob, 403), (&auditor, 200)] {
        assert_eq!(send(Method::GET, theirs, reader).await.status(), status);
    }
    let all: Value = send(Method::GET, "/v1/commands", &auditor).await.json().await.unwrap();
    assert_eq!(all["commands"].as_array().unwrap().len(), 3);
    assert_eq!(
        send(Method::GET, &basket, &auditor).await.status(),
        404,
        "an auditor reads commands, not baskets"
    );
}

#[tokio::test]
async fn the_same_key_of_two_principals_is_two_keys() {
    let ec = elliptic("ec");
    let issuer = Issuer::start(&[&ec]).await;
    let service = issuer.service().await;
    let mut seen = Vec::new();
    for subject in ["ann", "bob"] {
        let mut claims = claims();
        claims["sub"] = json!(subject);
        let request = service.client.post(format!("http://{}/v1/baskets", service.address()));
        let request = request.bearer_auth(ec.token(&claims)).header("Idempotency-Key", "one-key");
        let created = request.json(&json!({"buyer_id": "b"})).send().await.unwrap();
        assert_eq!(created.status(), 201);
        assert!(!created.headers().contains_key("idempotent-replayed"));
        seen.push(created.headers()["location"].clone());
    }
    assert_ne!(seen[0], seen[1]);
}
