//! The rules of the domain's values as JSON Schema. A test holds them against the domain.

use basket::domain::{self, MAX_PRICE, MAX_QUANTITY};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A text without control characters, as a regular expression.
const PRINTABLE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// Types that stand for a schema of their name.
macro_rules! schemas {
    ($($name:ident = $schema:tt;)*) => {
        $(pub struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

schemas! {
    BuyerId = {
        "description": "The shop's id of a buyer.",
        "type": "string", "minLength": 1, "maxLength": domain::BuyerId::MAX_CHARACTERS, "pattern": PRINTABLE,
        "examples": ["buyer-17"]
    };
    Sku = {
        "description": "The shop's article number.",
        "type": "string", "minLength": 1, "maxLength": domain::Sku::MAX_CHARACTERS, "pattern": PRINTABLE,
        "not": { "type": "string", "enum": [".", ".."] }, "examples": ["tea-250"]
    };
    Name = {
        "description": "The article's name, for people.",
        "type": "string", "minLength": 1, "maxLength": domain::Name::MAX_CHARACTERS, "pattern": PRINTABLE,
        "examples": ["Green tea, 250 g"]
    };
    Quantity = {
        "description": "Number of pieces.",
        "type": "integer", "format": "uint32", "minimum": 1, "maximum": MAX_QUANTITY
    };
    Status = {
        "description": "Where a basket is in its life. Only an open one can be changed.",
        "type": "string", "enum": ["open", "checked_out", "abandoned"]
    };
    PaymentMethod = {
        "description": "How a basket is paid. Only the kind: no card number ever reaches this service.",
        "type": "string",
        "enum": ["card", "bank_transfer", "invoice", "wallet", "gift_card", "cash_on_delivery"]
    };
    Price = {
        "description": "The price of one piece.",
        "type": "object",
        "properties": {
            "amount": {
                "description": "Minor units, such as cents.",
                "type": "integer", "minimum": 0, "maximum": MAX_PRICE
            },
            "currency": { "type": "string", "pattern": "^[A-Z]{3}$", "examples": ["EUR"] }
        },
        "required": ["amount", "currency"],
        "additionalProperties": false
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts<T: JsonSchema>(value: &serde_json::Value) -> bool {
        let schema = schemars::schema_for!(T);
        match value {
            serde_json::Value::String(text) => {
                let named = schema.get("enum").and_then(|names| names.as_array());
                let limit = schema.get("maxLength").and_then(|limit| limit.as_u64());
                named.is_none_or(|names| names.contains(value))
                    && limit.is_none_or(|limit| text.chars().count() as u64 <= limit)
            }
            _ => {
                let limit = schema.get("maximum").and_then(|limit| limit.as_i64());
                limit.is_none_or(|limit| value.as_i64().is_some_and(|number| number <= limit))
            }
        }
    }

    #[test]
    fn the_schemas_have_the_bounds_of_the_domain() {
        for length in [1, 64, 65, 100, 101, 200, 201] {
            let text = serde_json::Value::from("x".repeat(length));
            let buyer = serde_json::from_value::<domain::BuyerId>(text.clone()).is_ok();
            assert_eq!(accepts::<BuyerId>(&text), buyer, "{length}");
            let sku = serde_json::from_value::<domain::Sku>(text.clone()).is_ok();
            assert_eq!(accepts::<Sku>(&text), sku, "{length}");
            let name = serde_json::from_value::<domain::Name>(text.clone()).is_ok();
            assert_eq!(accepts::<Name>(&text), name, "{length}");
        }
        for method in
            ["card", "bank_transfer", "invoice", "wallet", "gift_card", "cash_on_delivery", "cheque"]
        {
            let name = serde_json::Value::from(method);
            let known = serde_json::from_value::<domain::PaymentMethod>(name.clone()).is_ok();
            assert_eq!(accepts::<PaymentMethod>(&name), known, "{method}");
        }
    }
}
