//! Examples of everything that is sent or received. A test holds them against their schemas.

use serde_json::{Value, json};

use crate::http::problem::Problem;
use crate::http::problem::kinds::{self, Kind};

const BASKET: &str = "0199c1dd-4e0a-7d52-9d0c-5b8f3a1e7c40";
const COMMAND: &str = "0199c1de-8a5e-7c63-b2c8-2f4f2c6b0a11";

/// An example of a schema.
pub fn of(schema: &str) -> Value {
    match schema {
        "NewBasket" => json!({ "buyer_id": "buyer-17" }),
        "NewItem" => {
            json!({ "sku": "tea-250", "name": "Green tea, 250 g", "quantity": 2, "unit_price": price(350) })
        }
        "NewQuantity" => json!({ "quantity": 3 }),
        "Payment" => json!({ "payment_method": "invoice" }),
        "Basket" => basket(),
        "BasketPage" => json!({ "baskets": [basket()], "next_page_token": null }),
        "Command" => command(),
        "CommandPage" => json!({ "commands": [command()], "next_page_token": null }),
        _ => Value::Null,
    }
}

/// An example of a problem type.
pub fn problem(kind: &'static Kind) -> Value {
    let problem = if *kind == kinds::INVALID {
        Problem::invalid("/quantity", "quantity must be 1 to 1000")
    } else {
        Problem::new(kind, kind.meaning)
    };
    serde_json::to_value(problem.body("b7f6c5a0")).unwrap_or_default()
}

fn price(amount: i64) -> Value {
    json!({ "amount": amount, "currency": "EUR" })
}

fn basket() -> Value {
    json!({
        "id": BASKET, "buyer_id": "buyer-17", "status": "open",
        "lines": [{ "sku": "tea-250", "name": "Green tea, 250 g", "quantity": 2, "unit_price": price(350),
                    "total": price(700) }],
        "total": price(700), "payment_method": null, "version": 2,
        "created_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:00:05.250Z",
    })
}

fn command() -> Value {
    json!({
        "id": COMMAND, "type": "add_item", "principal": "shop", "idempotency_key": "0199c1de-8a5e-7c63-b2c8-2f4f2c6b0a12",
        "correlation_id": COMMAND, "traceparent": null,
        "payload": { "basket_id": BASKET, "line": of("NewItem"), "expected_version": null },
        "received_at": "2026-01-31T12:00:05.250Z", "completed_at": "2026-01-31T12:00:05.253Z", "outcome": "accepted",
        "refusal": null, "basket_id": BASKET, "basket_version": 2, "event_ids": ["0199c1de-8a60-7f11-8d1e-6d0f0f3f9b52"],
    })
}
