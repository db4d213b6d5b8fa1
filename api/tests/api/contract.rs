//! What is written down is what the program says.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::service::{Service, TOKEN};

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

#[tokio::test]
async fn the_curl_lines_of_the_documentation_work() {
    let service = Service::start().await;
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/API.md")).unwrap();
    let script = document.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", script]).env("API", format!("http://{}", service.address())).env("TOKEN", TOKEN);
    let output = tokio::task::spawn_blocking(move || shell.output()).await.unwrap().unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{errors}");
    for expected in
        ["idempotent-replayed: true", "304\n", "\"status\":\"checked_out\"", "\"type\":\"change_quantity\""]
    {
        assert!(printed.contains(expected), "{expected} is missing in {printed}");
    }
}
