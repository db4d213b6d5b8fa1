//! `cargo xtask openapi`: the contracts of the service: its OpenAPI document, the schema of every event, and the AsyncAPI
//! document of the topic.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::build::{self, Profile};
use crate::{Failure, asyncapi};

/// Writes the files again from the program.
pub fn run() -> Result<(), Failure> {
    let program = build::programs(Profile::Dev)?.join("basket-api");
    let docs = build::repository().join("docs");
    write(&docs.join("openapi.json"), &printed(&program, "openapi")?)?;
    let schemas: Map<String, Value> = serde_json::from_value(printed(&program, "event-schemas")?)?;
    fs::create_dir_all(docs.join("events"))?;
    for (event_type, schema) in &schemas {
        write(&docs.join(format!("events/{event_type}.json")), schema)?;
    }
    write(&docs.join("asyncapi.json"), &asyncapi::document(&schemas))
}

fn printed(program: &Path, what: &str) -> Result<Value, Failure> {
    Ok(serde_json::from_slice(&build::printed(program, what)?)?)
}

fn write(path: &Path, document: &Value) -> Result<(), Failure> {
    fs::write(path, format!("{document:#}\n"))?;
    println!("{}", path.display());
    Ok(())
}
