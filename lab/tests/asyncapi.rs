//! The AsyncAPI document is current, and valid by the schema of its specification.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use lab::asyncapi;
use lab::build::repository;
use serde_json::{Map, Value, json};
use testbed::node;

/// Name in the cache: the version in `lab/asyncapi/package.json`.
const SPECS: &str = "asyncapi-specs-6.11.1";

fn written() -> Value {
    serde_json::from_slice(&std::fs::read(repository().join("docs/asyncapi.json")).unwrap()).unwrap()
}

/// `docs/events`, which another test compares with the program.
fn payloads() -> Map<String, Value> {
    let files = std::fs::read_dir(repository().join("docs/events")).unwrap();
    let schema = |path: std::path::PathBuf| {
        let schema = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), schema)
    };
    files.map(|file| schema(file.unwrap().path())).collect()
}

#[test]
fn the_asyncapi_document_is_that_of_the_event_schemas() {
    assert_eq!(written(), asyncapi::document(&payloads()), "run 'cargo xtask openapi'");
}

#[test]
fn the_asyncapi_document_is_valid() {
    if std::process::Command::new("npm").arg("--version").output().is_err() {
        eprintln!("skipped: npm is missing, which fetches the schema of AsyncAPI");
        return;
    }
    let packages = node::packages(SPECS, &repository().join("lab/asyncapi")).unwrap();
    let schema = std::fs::read(packages.join("@asyncapi/specs/schemas/3.0.0.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let document = written();
    let wrong: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // The schema does judge.
    for (pointer, invalid) in [
        ("/channels/basket/address", json!(7)),
        ("/operations/publish/action", json!("shout")),
        ("/components/messages/basket.created.v1/payload", json!({ "type": "no type" })),
    ] {
        let mut broken = document.clone();
        *broken.pointer_mut(pointer).unwrap() = invalid;
        assert!(!validator.is_valid(&broken), "{pointer}");
    }
}
