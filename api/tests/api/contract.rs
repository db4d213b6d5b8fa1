//! What is written down is what the program says.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::service::Service;

/// What `cargo xtask openapi` writes.
fn written(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

fn printed(what: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_basket-api")).arg(what).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_documents_in_the_repository_are_up_to_date() {
    let stale = "run 'cargo xtask openapi' and look at what has changed: it is a public contract";
    assert_eq!(printed("openapi"), written("openapi.json"), "{stale}");
    let schemas = printed("event-schemas");
    let schemas = schemas.as_object().unwrap();
    assert_eq!(schemas.len(), 7);
    for (event_type, schema) in schemas {
        assert_eq!(*schema, written(&format!("events/{event_type}.json")), "{stale}");
    }
}

#[tokio::test]
async fn the_contract_is_served_without_a_token_and_every_problem_type_has_its_page() {
    let service = Service::start().await;
    let served = service.anonymous("/openapi.json").await;
    assert_eq!(served.status(), 200);
    let document: Value = served.json().await.unwrap();
    assert_eq!(document, written("openapi.json"));
    let mut pages = 0;
    for response in document["components"]["responses"].as_object().unwrap().values() {
        let examples = response["content"]["application/problem+json"]["examples"].as_object().unwrap();
        for example in examples.values() {
            let uri = example["value"]["type"].as_str().unwrap();
            if uri != "about:blank" {
                let page = service.anonymous(uri).await;
                assert_eq!(page.status(), 200, "{uri}");
                assert!(page.text().await.unwrap().contains(example["value"]["title"].as_str().unwrap()));
                pages += 1;
            }
        }
    }
    assert_eq!(pages, 16);
    assert_eq!(service.anonymous("/problems/no-such").await.status(), 404);
}
