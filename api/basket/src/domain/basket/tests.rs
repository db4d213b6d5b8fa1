//! Given a history, when a command, then events or a refusal.

use uuid::Uuid;

use super::*;
use crate::domain::{Currency, MAX_PRICE, MAX_QUANTITY, Name, Price};

fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

fn ann() -> Principal {
    Principal::caller("ann").unwrap()
}

fn sku(text: &str) -> Sku {
    Sku::try_from(text.to_owned()).unwrap()
}

fn pieces(number: u32) -> Quantity {
    Quantity::try_from(number).unwrap()
}

fn price(amount: i64, currency: &str) -> Price {
    Price::new(amount, Currency::try_from(currency.to_owned()).unwrap()).unwrap()
}

fn line(text: &str, quantity: u32, amount: i64) -> Line {
    Line {
        sku: sku(text),
        name: Name::try_from("An article".to_owned()).unwrap(),
        quantity: pieces(quantity),
        unit_price: price(amount, "EUR"),
    }
}

fn created() -> Basket {
    Basket::create(BasketId(Uuid::nil()), ann(), BuyerId::try_from("buyer".to_owned()).unwrap(), now())
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

fn abandoned() -> Basket {
    let mut basket = given(&[line("a", 1, 100)]);
    basket.abandon(AbandonReason::Requested, now()).unwrap();
    basket.events.clear();
    basket
}

fn changes(basket: &Basket) -> Vec<BasketChanged> {
    basket.events.iter().map(|event| event.change.clone()).collect()
}

fn euros(amount: i64) -> Option<Money> {
    Some(price(amount, "EUR").money())
}

/// A refusal must leave the basket as it was.
fn refuses(mut basket: Basket, refusal: &Refusal, command: impl FnOnce(&mut Basket) -> Result<(), Refusal>) {
    let before = basket.clone();
    assert_eq!(command(&mut basket).as_ref(), Err(refusal));
    assert_eq!(basket, before);
}

/// What changes nothing raises no event and makes no version.
fn changes_nothing(mut basket: Basket, command: impl FnOnce(&mut Basket) -> Result<(), Refusal>) {
    let before = basket.clone();
    command(&mut basket).unwrap();
    assert_eq!(basket, before);
}

#[test]
fn creating_raises_its_event_at_version_1() {
    let basket = created();
    assert_eq!(basket.state.version, Version(1));
    assert_eq!(basket.state.owner, ann());
    assert_eq!(changes(&basket), [BasketChanged::Created { buyer: basket.state.buyer.clone() }]);
    assert_eq!(basket.state.total(), None);
}

#[test]
fn an_item_is_added_and_more_of_it_join_its_line() {
    let mut basket = given(&[line("a", 2, 150)]);
    basket.add_item(line("a", 3, 150), now()).unwrap();
    assert_eq!(basket.state.lines, [line("a", 5, 150)]);
    assert_eq!(basket.state.total(), euros(750));
    assert_eq!(basket.state.version, Version(3));
    let added =
        BasketChanged::ItemAdded { added: line("a", 3, 150), line: line("a", 5, 150), total: euros(750) };
    assert_eq!(changes(&basket), [added]);
}

#[test]
fn a_quantity_is_changed_and_the_event_says_from_what() {
    let mut basket = given(&[line("a", 2, 150)]);
    basket.change_quantity(&sku("a"), pieces(7), now()).unwrap();
    assert_eq!(basket.state.lines, [line("a", 7, 150)]);
    let (previous, line_after, total) = (pieces(2), line("a", 7, 150), euros(1050));
    let changed = BasketChanged::ItemQuantityChanged { previous, line: line_after, total };
    assert_eq!(changes(&basket), [changed]);
    assert_eq!(basket.state.version, Version(3));
    changes_nothing(given(&[line("a", 2, 1)]), |basket| basket.change_quantity(&sku("a"), pieces(2), now()));
    refuses(given(&[line("a", 2, 1)]), &Refusal::ItemNotFound, |basket| {
        basket.change_quantity(&sku("b"), pieces(1), now())
    });
}

#[test]
fn an_item_is_removed_and_the_others_stay_in_their_order() {
    let mut basket = given(&[line("a", 1, 1), line("b", 2, 2), line("c", 3, 3)]);
    basket.remove_item(&sku("b"), now()).unwrap();
    assert_eq!(basket.state.lines, [line("a", 1, 1), line("c", 3, 3)]);
    assert_eq!(changes(&basket), [BasketChanged::ItemRemoved { line: line("b", 2, 2), total: euros(10) }]);
    refuses(basket, &Refusal::ItemNotFound, |basket| basket.remove_item(&sku("b"), now()));
}

#[test]
fn clearing_takes_everything_out() {
    let lines = [line("a", 1, 1), line("b", 2, 2)];
    let mut basket = given(&lines);
    basket.clear(now()).unwrap();
    assert_eq!(basket.state.lines, []);
    assert_eq!(basket.state.status, Status::Open);
    assert_eq!(changes(&basket), [BasketChanged::Cleared { lines: lines.to_vec() }]);
    changes_nothing(given(&[]), |basket| basket.clear(now()));
}

#[test]
fn checking_out_orders_what_is_in_it() {
    let basket = checked_out();
    assert_eq!(basket.state.status, Status::CheckedOut { payment_method: PaymentMethod::Card });
    refuses(given(&[]), &Refusal::BasketEmpty, |basket| basket.check_out(PaymentMethod::Card, now()));
}

#[test]
fn abandoning_says_why() {
    let mut basket = given(&[line("a", 1, 1)]);
    basket.abandon(AbandonReason::Expired, now()).unwrap();
    assert_eq!(basket.state.status, Status::Abandoned);
    assert_eq!(changes(&basket), [BasketChanged::Abandoned { reason: AbandonReason::Expired }]);
}

#[test]
fn a_closed_basket_never_changes_again() {
    for closed in [checked_out(), abandoned()] {
        let refuses = |command: fn(&mut Basket) -> Result<(), Refusal>| {
            refuses(closed.clone(), &Refusal::BasketClosed, command);
        };
        refuses(|basket| basket.add_item(line("b", 1, 1), now()));
        refuses(|basket| basket.change_quantity(&sku("a"), pieces(2), now()));
        refuses(|basket| basket.remove_item(&sku("a"), now()));
        refuses(|basket| basket.clear(now()));
        refuses(|basket| basket.check_out(PaymentMethod::Card, now()));
        refuses(|basket| basket.abandon(AbandonReason::Requested, now()));
    }
}

#[test]
fn one_currency_and_one_price_per_article() {
    let dollars = Line { unit_price: price(100, "USD"), ..line("b", 1, 100) };
    refuses(given(&[line("a", 1, 100)]), &Refusal::CurrencyMismatch, |basket| {
        basket.add_item(dollars, now())
    });
    refuses(given(&[line("a", 1, 100)]), &Refusal::PriceMismatch, |basket| {
        basket.add_item(line("a", 1, 99), now())
    });
}

#[test]
fn bounds_hold_and_the_fullest_basket_has_an_exact_total() {
    let lines = |amount| (0..MAX_LINES).map(move |n| line(&format!("sku-{n}"), MAX_QUANTITY, amount));
    let full: Vec<Line> = lines(MAX_PRICE).collect();
    let total = given(&full).state.total().unwrap();
    assert_eq!(total.amount, MAX_PRICE * i64::from(MAX_QUANTITY) * MAX_LINES as i64);
    refuses(given(&full), &Refusal::TooManyLines, |basket| basket.add_item(line("more", 1, 1), now()));
    let many = given(&[line("a", MAX_QUANTITY, 1)]);
    refuses(many, &Refusal::TooManyPieces, |basket| basket.add_item(line("a", 1, 1), now()));
}

#[test]
fn a_stale_version_is_refused() {
    let basket = given(&[line("a", 1, 1)]);
    assert_eq!(basket.require_version(None), Ok(()));
    assert_eq!(basket.require_version(Some(Version(2))), Ok(()));
    assert_eq!(basket.require_version(Some(Version(1))), Err(Refusal::VersionMismatch { current: 2 }));
}

#[test]
fn two_events_of_one_command_have_two_versions_and_time_never_goes_back() {
    let later = now() + chrono::TimeDelta::seconds(30);
    let mut basket = created();
    basket.add_item(line("a", 1, 1), later).unwrap();
    basket.add_item(line("b", 1, 1), now()).unwrap();
    let versions: Vec<i64> = basket.events.iter().map(|event| event.version.0).collect();
    let times: Vec<DateTime<Utc>> = basket.events.iter().map(|event| event.occurred_at).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(times, [now(), later, later]);
    assert_eq!(basket.state.updated_at, later);
    assert_eq!(basket.stored_version(), None);
    assert_eq!(given(&[line("a", 1, 1)]).stored_version(), Some(Version(2)));
}

#[test]
fn a_basket_stored_under_other_rules_is_loaded_and_changed() {
    let mut state = given(&[line("a", 1, 1)]).state;
    let dear = Money { amount: MAX_PRICE * 50, currency: price(1, "EUR").currency() };
    state.lines.push(Line::from_stored("..".to_owned(), "n".repeat(900), MAX_QUANTITY * 5, dear));
    let mut basket = Basket::from_snapshot(state);
    basket.add_item(line("b", 1, 1), now()).unwrap();
    basket.remove_item(&basket.state.lines[1].sku.clone(), now()).unwrap();
    basket.abandon(AbandonReason::Expired, now()).unwrap();
    assert_eq!(basket.state.version, Version(5));
}

#[test]
fn values_have_bounds() {
    assert!(Quantity::try_from(0).is_err() && Quantity::try_from(MAX_QUANTITY + 1).is_err());
    for refused in ["", "a\0", ".", "..", &"x".repeat(65)] {
        assert!(Sku::try_from(refused.to_owned()).is_err(), "{refused}");
    }
    assert!(Name::try_from("x".repeat(201)).is_err() && Name::try_from("ü".repeat(200)).is_ok());
    assert!(Currency::try_from("eur".to_owned()).is_err() && Currency::try_from("EURO".to_owned()).is_err());
    let euro = Currency::try_from("EUR".to_owned()).unwrap();
    assert!(Price::new(-1, euro).is_err() && Price::new(MAX_PRICE + 1, euro).is_err());
}
