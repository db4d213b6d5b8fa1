//! Given a history, when a command, then events or a refusal.

use super::*;
use crate::domain::{Currency, MAX_AMOUNT, MAX_QUANTITY, Name, Sku};

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

fn money(amount: i64, currency: &str) -> Money {
    Money::new(amount, Currency::try_from(currency.to_owned()).unwrap()).unwrap()
}

fn line(sku: &str, quantity: u32, amount: i64) -> Line {
    Line {
        sku: Sku::try_from(sku.to_owned()).unwrap(),
        name: Name::try_from("An article".to_owned()).unwrap(),
        quantity: Quantity::try_from(quantity).unwrap(),
        unit_price: money(amount, "EUR"),
    }
}

fn created() -> Basket {
    Basket::create(BasketId(Uuid::nil()), BuyerId::try_from("ann".to_owned()).unwrap(), now())
}

fn given(lines: &[Line]) -> Basket {
    let mut basket = created();
    for line in lines {
        basket.add_item(line.clone(), now()).unwrap();
    }
    basket.events.clear();
    basket
}

fn checked_out() -> Basket {
    let mut basket = given(&[line("a", 1, 100)]);
    basket.check_out(PaymentMethod::Card, now()).unwrap();
    basket.events.clear();
    basket
}

/// A refusal must leave the basket as it was.
fn refuses(mut basket: Basket, refusal: &Refusal, command: impl FnOnce(&mut Basket) -> Result<(), Refusal>) {
    let before = basket.clone();
    assert_eq!(command(&mut basket).as_ref(), Err(refusal));
    assert_eq!(basket, before);
}

#[test]
fn creating_raises_its_event_at_version_1() {
    let basket = created();
    assert_eq!(basket.version(), Version(1));
    assert!(matches!(basket.events(), [DomainEvent::BasketCreated { buyer }] if buyer.as_str() == "ann"));
    assert_eq!(basket.total(), None);
}

#[test]
fn an_item_is_added_and_more_of_it_join_its_line() {
    let mut basket = given(&[line("a", 2, 150)]);
    basket.add_item(line("a", 3, 150), now()).unwrap();
    assert_eq!(basket.lines(), [line("a", 5, 150)]);
    assert_eq!(basket.total(), Some(money(750, "EUR")));
    assert_eq!(basket.version(), Version(3));
    assert_eq!(
        basket.events(),
        [DomainEvent::ItemAdded { added: line("a", 3, 150), line: line("a", 5, 150) }]
    );
}

#[test]
fn checking_out_closes_it() {
    let basket = checked_out();
    assert_eq!((basket.status(), basket.payment_method()), (Status::CheckedOut, Some(PaymentMethod::Card)));
    refuses(basket.clone(), &Refusal::BasketClosed, |basket| basket.add_item(line("b", 1, 1), now()));
    refuses(basket, &Refusal::BasketClosed, |basket| basket.check_out(PaymentMethod::Card, now()));
}

#[test]
fn an_empty_basket_is_not_checked_out() {
    refuses(given(&[]), &Refusal::BasketEmpty, |basket| basket.check_out(PaymentMethod::Card, now()));
}

#[test]
fn one_currency_and_one_price_per_article() {
    let dollars = Line { unit_price: money(100, "USD"), ..line("b", 1, 100) };
    refuses(given(&[line("a", 1, 100)]), &Refusal::CurrencyMismatch, |basket| {
        basket.add_item(dollars, now())
    });
    refuses(given(&[line("a", 1, 100)]), &Refusal::PriceMismatch, |basket| {
        basket.add_item(line("a", 1, 99), now())
    });
}

#[test]
fn bounds_hold() {
    let full: Vec<Line> = (0..MAX_LINES).map(|n| line(&format!("sku-{n}"), 1, 1)).collect();
    refuses(given(&full), &Refusal::TooManyLines, |basket| basket.add_item(line("more", 1, 1), now()));
    let many = given(&[line("a", MAX_QUANTITY, 1)]);
    refuses(many, &Refusal::TooManyPieces, |basket| basket.add_item(line("a", 1, 1), now()));
    refuses(given(&[]), &Refusal::TotalTooLarge, |basket| basket.add_item(line("a", 2, MAX_AMOUNT), now()));
    let dear = given(&[line("a", 1, MAX_AMOUNT)]);
    refuses(dear, &Refusal::TotalTooLarge, |basket| basket.add_item(line("b", 1, 1), now()));
}

#[test]
fn a_stale_version_is_refused() {
    let basket = given(&[line("a", 1, 1)]);
    assert_eq!(basket.require_version(None), Ok(()));
    assert_eq!(basket.require_version(Some(Version(2))), Ok(()));
    assert_eq!(basket.require_version(Some(Version(1))), Err(Refusal::VersionMismatch { current: 2 }));
}

#[test]
fn values_have_bounds() {
    assert!(Quantity::try_from(0).is_err() && Quantity::try_from(MAX_QUANTITY + 1).is_err());
    assert!(Sku::try_from(String::new()).is_err() && Sku::try_from("a\0".to_owned()).is_err());
    assert!(Name::try_from("x".repeat(201)).is_err());
    assert!(Currency::try_from("eur".to_owned()).is_err() && Currency::try_from("EURO".to_owned()).is_err());
    let euro = Currency::try_from("EUR".to_owned()).unwrap();
    assert!(Money::new(-1, euro).is_err() && Money::new(MAX_AMOUNT + 1, euro).is_err());
}
