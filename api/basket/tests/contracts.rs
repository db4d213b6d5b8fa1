//! Golden files of what is published and logged: `tests/golden/`. A published or logged form never changes, so a file
//! that differs is a fault of the change, not of the file. A new form is a new file:
//! `OUTBOX_TEST_WRITE=1 cargo test -p basket --test contracts` writes those that do not exist.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::BTreeSet;
use std::path::Path;

use basket::application::integration_events::{IntegrationEvent, schemas};
use basket::application::{BasketChange, BasketCommand, CommandType};
use basket::domain::{
    AbandonReason, Basket, BasketId, BuyerId, Currency, Line, Name, PaymentMethod, Price, Principal,
    Quantity, Sku, Version,
};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use strum::VariantArray;
use uuid::Uuid;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(second)
}

fn id() -> BasketId {
    BasketId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001))
}

fn buyer() -> BuyerId {
    BuyerId::try_from("buyer-17".to_owned()).unwrap()
}

fn pieces(number: u32) -> Quantity {
    Quantity::try_from(number).unwrap()
}

fn sku(text: &str) -> Sku {
    Sku::try_from(text.to_owned()).unwrap()
}

fn line(article: &str, quantity: u32) -> Line {
    Line {
        sku: sku(article),
        name: Name::try_from("Green tea, 250 g".to_owned()).unwrap(),
        quantity: pieces(quantity),
        unit_price: Price::new(350, Currency::try_from("EUR".to_owned()).unwrap()).unwrap(),
    }
}

/// Compares with the golden file, or writes it if it does not exist and that is asked for.
fn golden(name: &str, actual: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    if !path.exists() && std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{actual:#}\n")).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(*actual, expected, "{name} differs from {}", path.display());
}

/// The life of two baskets with every event.
fn events() -> Vec<IntegrationEvent> {
    let mut ordered = Basket::create(id(), Principal::caller("ann").unwrap(), buyer(), at(0));
    ordered.add_item(line("tea-250", 2), at(1)).unwrap();
    ordered.change_quantity(&sku("tea-250"), pieces(3), at(2)).unwrap();
    ordered.add_item(line("tea-500", 1), at(3)).unwrap();
    ordered.remove_item(&sku("tea-250"), at(4)).unwrap();
    ordered.clear(at(5)).unwrap();
    ordered.add_item(line("tea-250", 2), at(6)).unwrap();
    let mut abandoned = ordered.clone();
    ordered.check_out(PaymentMethod::Card, at(7)).unwrap();
    abandoned.abandon(AbandonReason::Expired, at(7)).unwrap();
    let mut events = IntegrationEvent::all_of(&ordered).unwrap();
    events.extend(IntegrationEvent::all_of(&abandoned).unwrap());
    events
}

#[test]
fn every_published_event_keeps_its_form() {
    let mut published = BTreeSet::new();
    for event in events() {
        assert_eq!(event.aggregate_type, "basket");
        assert_eq!(event.aggregate_id, id().to_string());
        if published.insert(event.event_type) {
            golden(&format!("event/{}", event.event_type), &event.payload);
        }
    }
    let described: BTreeSet<&str> = schemas().iter().map(|(event_type, _)| *event_type).collect();
    assert_eq!(published, described, "every event type has a schema");
}

/// A consumer that validates must survive a member that is added later.
#[test]
fn the_schemas_of_events_are_open() {
    for (event_type, schema) in schemas() {
        assert!(!schema.to_value().to_string().contains("additionalProperties"), "{event_type}");
    }
}

#[test]
fn two_events_of_one_command_have_two_versions() {
    let versions: Vec<i64> =
        events().iter().take(8).map(|event| event.payload["version"].as_i64().unwrap()).collect();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6, 7, 8]);
    // The total is the one at the event, not the one at the end of the command.
    let totals: Vec<i64> = events()[1..3]
        .iter()
        .map(|event| event.payload["basket_total"]["amount"].as_i64().unwrap())
        .collect();
    assert_eq!(totals, [700, 1050]);
}

fn commands() -> Vec<BasketCommand> {
    let change =
        |expected_version, change| BasketCommand::Change { basket_id: id(), expected_version, change };
    vec![
        BasketCommand::Create { basket_id: id(), buyer: buyer() },
        change(None, BasketChange::AddItem { line: line("tea-250", 2) }),
        change(None, BasketChange::ChangeQuantity { sku: sku("tea-250"), quantity: pieces(3) }),
        change(None, BasketChange::RemoveItem { sku: sku("tea-250") }),
        change(Some(Version(4)), BasketChange::Clear),
        change(None, BasketChange::CheckOut { payment_method: PaymentMethod::GiftCard }),
        change(None, BasketChange::Abandon { reason: AbandonReason::Requested }),
    ]
}

#[test]
fn every_logged_command_keeps_its_form() {
    for command in commands() {
        golden(&format!("command/{}", command.command_type().into_str()), &command.payload());
    }
    let types: Vec<CommandType> = commands().iter().map(BasketCommand::command_type).collect();
    assert_eq!(types, CommandType::VARIANTS, "every command type has a file");
}
