//! Golden files of what is stored: `api/tests/golden/`. Each was written by some version of the service and is read by
//! every later one. A new form is a new file; none is ever changed or deleted.
//! `OUTBOX_TEST_WRITE=1 cargo test -p basket-api --lib documents` writes those of today that do not exist.

use std::path::PathBuf;

use basket::application::BasketStatus;
use serde_json::Value;

use super::*;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Value {
    let path = golden(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Compares with the golden file, or writes it if it does not exist and that is asked for.
fn assert_golden(name: &str, actual: &impl Serialize) {
    let actual = serde_json::to_value(actual).unwrap();
    if !golden(name).exists() && std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        std::fs::write(golden(name), format!("{actual:#}\n")).unwrap();
    }
    assert_eq!(actual, read(name), "{name}");
}

fn euros(amount: i64) -> MoneyView {
    MoneyView { amount, currency: "EUR".to_owned() }
}

fn line() -> LineView {
    LineView {
        sku: "tea-250".to_owned(),
        name: "Green tea, 250 g".to_owned(),
        quantity: 2,
        unit_price: euros(350),
        total: euros(700),
    }
}

fn view() -> BasketView {
    BasketView {
        id: BasketId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001)),
        buyer_id: "buyer-17".to_owned(),
        status: BasketStatus::CheckedOut,
        lines: vec![line()],
        total: Some(euros(700)),
        payment_method: Some("card".to_owned()),
        version: Version(3),
        created_at: DateTime::UNIX_EPOCH,
        updated_at: DateTime::UNIX_EPOCH,
    }
}

#[test]
fn what_is_written_keeps_its_form_and_is_read_back() {
    assert_golden("lines.json", &[LineDocument::from(line())]);
    let document = BasketDocument::from(view());
    assert_golden("view.json", &document);
    assert_eq!(BasketView::try_from(document).unwrap(), view());
    let accepted = Outcome::Accepted(view());
    assert_golden("result_accepted.json", &OutcomeDocument::from(&accepted));
    let refused = Outcome::Refused(Refusal::VersionMismatch { current: 4 });
    assert_golden("result_refused.json", &OutcomeDocument::from(&refused));
    for outcome in [accepted, refused] {
        assert_eq!(Outcome::try_from(OutcomeDocument::from(&outcome)).unwrap(), outcome);
    }
}

/// A replica of the next version may run beside this one.
#[test]
fn a_member_of_a_later_version_is_ignored() {
    let mut document = read("view.json");
    document["discount"] = 7.into();
    document["lines"][0]["weight"] = 250.into();
    let document: BasketDocument = serde_json::from_value(document).unwrap();
    assert_eq!(BasketView::try_from(document).unwrap(), view());
}

#[test]
fn values_that_todays_rules_refuse_are_read() {
    let documents: Vec<LineDocument> = serde_json::from_value(read("lines_beyond_limits.json")).unwrap();
    let lines = lines(documents).unwrap();
    assert_eq!(lines[0].quantity.pieces(), 5_000);
    assert_eq!(lines[0].unit_price.money().amount, 500_000_000_000);
}

/// A refusal is replayed for as long as its key is kept, so no name may disappear.
#[test]
fn every_refusal_that_was_ever_recorded_is_read() {
    for name in read("refusals.json").as_array().unwrap() {
        let document = serde_json::json!({ "refused": { "refusal": name } });
        let document: OutcomeDocument = serde_json::from_value(document).unwrap();
        let Outcome::Refused(refusal) = Outcome::try_from(document).unwrap() else { panic!("{name}") };
        assert_eq!(refusal.into_str(), name.as_str().unwrap());
    }
}
