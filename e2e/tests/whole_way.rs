//! From an HTTP request to a Kafka record, with the programs as they are shipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lab::build::{self, Profile};
use lab::shop::Shop;
use lab::stack::{Stack, StackOptions, TOPIC};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use testbed::records::{Record, read_all};
use testbed::wait;

const SOON: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_basket_bought_over_http_arrives_as_records_in_order() {
    let programs = build::programs(Profile::Dev).unwrap();
    let quiet = |_: &str| {};
    let mut stack = Stack::servers(StackOptions::default(), programs, quiet).await.unwrap();
    stack.programs(quiet).await.unwrap();
    let shop = Shop::of(&stack);
    let created = shop.send("/v1/baskets", "k-1", &json!({"buyer_id": "ann"})).await.unwrap();
    let id = created.body["id"].as_str().unwrap().to_owned();
    let tea =
        json!({"sku": "tea", "name": "Tea", "quantity": 2, "unit_price": {"amount": 350, "currency": "EUR"}});
    shop.send(&format!("/v1/baskets/{id}/items"), "k-2", &tea).await.unwrap();
    // Sent again: one event all the same.
    shop.send(&format!("/v1/baskets/{id}/items"), "k-2", &tea).await.unwrap();
    let ordered =
        shop.send(&format!("/v1/baskets/{id}/checkout"), "k-3", &json!({"payment_method": "card"})).await;

    let records = wait::until("three records", SOON, async || {
        let records =
            read_all(&stack.kafka.bootstrap(), &[TOPIC]).await.map_err(|error| error.to_string())?;
        if records.len() >= 3 { Ok(records) } else { Err(format!("{} records", records.len())) }
    })
    .await
    .unwrap();
    let types: Vec<_> = records.iter().map(|record| record.header("ce_type").unwrap()).collect();
    assert_eq!(types, ["basket.created.v1", "basket.item_added.v1", "basket.checked_out.v1"]);
    assert!(records.iter().all(|record| record.key.as_deref() == Some(id.as_bytes())));
    assert!(records.iter().all(|record| record.partition == records[0].partition));
    assert!(records.iter().all(|record| record.header("content-type") == Some("application/json")));
    assert!(records.iter().all(|record| record.header("ce_source") == Some("/shop/public.outbox")));
    assert_eq!(
        value(&records[2])["basket"],
        ordered.unwrap().body,
        "checkout carries the basket as it was answered"
    );

    let mut sql = PgConnection::connect(&stack.database_url()).await.unwrap();
    let rows =
        sqlx::query("SELECT id::text, payload::text, headers ->> 'causation-id' FROM outbox ORDER BY seq");
    for (row, record) in rows.fetch_all(&mut sql).await.unwrap().iter().zip(&records) {
        assert_eq!(record.header("ce_id"), Some(row.get::<&str, _>(0)));
        assert_eq!(record.value.as_deref(), Some(row.get::<&str, _>(1).as_bytes()));
        assert_eq!(record.header("causation-id"), Some(row.get::<&str, _>(2)));
    }
}

fn value(record: &Record) -> Value {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn every_type_of_event_arrives_as_its_published_schema_says() {
    let programs = build::programs(Profile::Dev).unwrap();
    let quiet = |_: &str| {};
    let mut stack = Stack::servers(StackOptions::default(), programs, quiet).await.unwrap();
    stack.programs(quiet).await.unwrap();
    let shop = Shop::of(&stack);
    let (schemas, headers) = (published_schemas(), published_headers());
    shop.everything().await.unwrap();
    let records = wait::until("every type of event", SOON, async || {
        let records =
            read_all(&stack.kafka.bootstrap(), &[TOPIC]).await.map_err(|error| error.to_string())?;
        let seen: BTreeSet<String> = records.iter().map(|record| event_type(record).to_owned()).collect();
        let missing: Vec<&String> = schemas.keys().filter(|known| !seen.contains(*known)).collect();
        if missing.is_empty() { Ok(records) } else { Err(format!("not seen: {missing:?}")) }
    })
    .await
    .unwrap();
    for record in &records {
        let validator = &schemas[event_type(record)];
        let wrong: Vec<String> =
            validator.iter_errors(&value(record)).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{}: {wrong:?}", value(record));
        let text = record.headers.iter().map(|(name, _)| (name.clone(), json!(record.header(name))));
        let sent = Value::Object(text.collect());
        let wrong: Vec<String> =
            headers[event_type(record)].iter_errors(&sent).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{sent}: {wrong:?}");
    }
}

fn event_type(record: &Record) -> &str {
    record.header("ce_type").unwrap()
}

/// The schemas under `docs/events`, which refuse what they do not name.
fn published_schemas() -> BTreeMap<String, jsonschema::Validator> {
    let folder = build::repository().join("docs/events");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let schema = |path: std::path::PathBuf| {
        let mut schema: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        schema["unevaluatedProperties"] = json!(false);
        let options = jsonschema::options().should_validate_formats(true);
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), options.build(&schema).unwrap())
    };
    files.map(schema).collect()
}

/// The headers of each type by `docs/asyncapi.json`, which refuse what they do not name.
fn published_headers() -> BTreeMap<String, jsonschema::Validator> {
    let file = std::fs::read(build::repository().join("docs/asyncapi.json")).unwrap();
    let document: Value = serde_json::from_slice(&file).unwrap();
    let types = document["components"]["messages"].as_object().unwrap().keys();
    let schema = |event_type: &String| {
        let pointer = format!("#/components/messages/{event_type}/headers");
        let schema = json!({
            "components": document["components"],
            "$ref": pointer,
            "unevaluatedProperties": false,
        });
        let options = jsonschema::options().should_validate_formats(true);
        (event_type.clone(), options.build(&schema).unwrap())
    };
    types.map(schema).collect()
}
