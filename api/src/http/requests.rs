//! How the bodies of requests are read.

use basket::domain::{Currency, PaymentMethod, Price};

use super::dto::{NewBasket, NewItem, NewQuantity, Payment};
use super::json::{FromObject, Object};

/// Every payment method.
const PAYMENT_METHODS: [PaymentMethod; 6] = [
    PaymentMethod::Card,
    PaymentMethod::BankTransfer,
    PaymentMethod::Invoice,
    PaymentMethod::Wallet,
    PaymentMethod::GiftCard,
    PaymentMethod::CashOnDelivery,
];

impl FromObject for NewBasket {
    fn from_object(object: &mut Object<'_>) -> Option<NewBasket> {
        Some(NewBasket { buyer_id: object.text("buyer_id")? })
    }
}

impl FromObject for NewItem {
    fn from_object(object: &mut Object<'_>) -> Option<NewItem> {
        let (sku, name, quantity) = (object.text("sku"), object.text("name"), object.count("quantity"));
        let unit_price = object.object("unit_price", price);
        Some(NewItem { sku: sku?, name: name?, quantity: quantity?, unit_price: unit_price? })
    }
}

impl FromObject for NewQuantity {
    fn from_object(object: &mut Object<'_>) -> Option<NewQuantity> {
        Some(NewQuantity { quantity: object.count("quantity")? })
    }
}

impl FromObject for Payment {
    fn from_object(object: &mut Object<'_>) -> Option<Payment> {
        Some(Payment { payment_method: object.one_of("payment_method", &PAYMENT_METHODS)? })
    }
}

fn price(object: &mut Object<'_>) -> Option<Price> {
    let (amount, currency) = (object.integer("amount"), object.text::<Currency>("currency"));
    // XXX is ISO 4217's for no currency: an amount is checked although its currency is wrong.
    let checked_with = currency.or_else(|| Currency::try_from("XXX".to_owned()).ok())?;
    let price = object.checked("amount", Price::new(amount?, checked_with));
    currency.and(price)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::read;

    #[test]
    fn every_payment_method_of_the_schema_can_be_sent() {
        let schema = schemars::schema_for!(Payment).to_value();
        let methods = schema["$defs"]["PaymentMethod"]["enum"].as_array().unwrap();
        assert_eq!(methods.len(), PAYMENT_METHODS.len());
        for method in methods {
            let body = serde_json::json!({ "payment_method": method }).to_string();
            assert!(read::<Payment>(body.as_bytes()).is_ok(), "{method}");
        }
    }

    #[test]
    fn all_that_is_wrong_with_an_item_is_said_at_once() {
        let body =
            r#"{"sku": "", "quantity": -1, "unit_price": {"amount": -5, "currency": "euro"}, "id": "x"}"#;
        let problem = read::<NewItem>(body.as_bytes()).err().unwrap();
        let pointers: Vec<&str> = problem.errors().iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            ["/sku", "/name", "/quantity", "/unit_price/currency", "/unit_price/amount", "/id"]
        );
        assert_eq!(problem.errors()[2].detail, "quantity must be 1 to 1000");
    }
}
