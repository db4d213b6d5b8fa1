//! Examples of everything that is sent or received. A test holds them against their schemas.

use serde_json::{Value, json};

use super::problem::kinds::{self, Kind};
use super::problem::{FieldError, Problem};

const BASKET: &str = "0199c1dd-4e0a-7d52-9d0c-5b8f3a1e7c40";
const COMMAND: &str = "0199c1de-8a5e-7c63-b2c8-2f4f2c6b0a11";

/// A new basket.
pub fn new_basket() -> Value {
    json!({ "buyer_id": "buyer-17" })
}

/// A new item.
pub fn new_item() -> Value {
    json!({ "sku": "tea-250", "name": "Green tea, 250 g", "quantity": 2, "unit_price": price(350) })
}

/// Another number of pieces.
pub fn new_quantity() -> Value {
    json!({ "quantity": 3 })
}

/// How a basket is paid.
pub fn payment() -> Value {
    json!({ "payment_method": "invoice" })
}

/// A page of baskets.
pub fn basket_page() -> Value {
    json!({ "baskets": [summary()], "next_page_token": null })
}

/// A page of commands.
pub fn command_page() -> Value {
    json!({ "commands": [command()], "next_page_token": null })
}

/// An example of a problem type.
pub fn problem(kind: &'static Kind) -> Value {
    let problem = if *kind == kinds::INVALID {
        let error =
            |pointer: &str, detail: &str| FieldError { detail: detail.into(), pointer: pointer.into() };
        Problem::invalid(vec![
            error("/quantity", "quantity must be 1 to 1000"),
            error("/unit_price/currency", "currency is missing"),
        ])
    } else {
        Problem::new(kind, kind.meaning)
    };
    serde_json::to_value(problem.body("b7f6c5a0")).unwrap_or_default()
}

fn price(amount: i64) -> Value {
    json!({ "amount": amount, "currency": "EUR" })
}

fn summary() -> Value {
    json!({
        "id": BASKET, "buyer_id": "buyer-17", "status": "open", "line_count": 1, "total": price(700),
        "payment_method": null, "version": 2,
        "created_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:00:05.250Z",
    })
}

/// A basket.
pub fn basket() -> Value {
    json!({
        "id": BASKET, "buyer_id": "buyer-17", "status": "open",
        "lines": [{ "sku": "tea-250", "name": "Green tea, 250 g", "quantity": 2, "unit_price": price(350),
                    "total": price(700) }],
        "total": price(700), "payment_method": null, "version": 2,
        "created_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:00:05.250Z",
    })
}

/// A command.
pub fn command() -> Value {
    json!({
        "id": COMMAND, "type": "add_item", "principal": "shop", "idempotency_key": "0199c1de-8a5e-7c63-b2c8-2f4f2c6b0a12",
        "correlation_id": COMMAND, "traceparent": null,
        "payload": { "basket_id": BASKET, "line": new_item(), "expected_version": null },
        "received_at": "2026-01-31T12:00:05.250Z", "completed_at": "2026-01-31T12:00:05.253Z", "outcome": "accepted",
        "refusal": null, "basket_id": BASKET, "basket_version": 2, "event_ids": ["0199c1de-8a60-7f11-8d1e-6d0f0f3f9b52"],
    })
}
