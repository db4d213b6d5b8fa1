//! The rules of the command bus, over the store in memory: idempotence, key reuse, conflicts, reactions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use basket::application::in_memory::{InMemoryStore, InMemoryUnit};
use basket::application::integration_events::IntegrationEvent;
use basket::application::ports::{BoxFuture, Claim, PortError, UnitOfWork, UnitOfWorkFactory};
use basket::application::{
    BasketChange, BasketCommand, Bus, CommandContext, CommandEnvelope, CommandId, CommandResult, Dispatch,
    DispatchError, IdempotencyKey, Outcome, Reaction, Retry,
};
use basket::domain::{
    Basket, BasketChanged, BasketId, BuyerId, Currency, DomainEvent, Line, Name, Price, Principal, Quantity,
    Refusal, Sku,
};
use chrono::DateTime;
use serde_json::json;
use uuid::Uuid;

/// Nothing here waits for anything.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a store in memory never waits"),
    }
}

fn envelope(by: &str, key: Option<(&str, &str)>, command: BasketCommand) -> CommandEnvelope {
    let id = CommandId(Uuid::now_v7());
    let principal = Principal::caller(by).unwrap();
    let context =
        CommandContext { principal, correlation_id: id.to_string(), traceparent: None, tracestate: None };
    let idempotency_key = key.map(|(key, fingerprint)| IdempotencyKey {
        key: key.to_owned(),
        fingerprint: fingerprint.to_owned(),
    });
    CommandEnvelope { id, command, context, idempotency_key, received_at: DateTime::UNIX_EPOCH }
}

fn create() -> BasketCommand {
    let buyer = BuyerId::try_from("buyer".to_owned()).unwrap();
    BasketCommand::Create { basket_id: BasketId(Uuid::now_v7()), buyer }
}

fn add(basket_id: BasketId) -> BasketCommand {
    let line = Line {
        sku: Sku::try_from("a".to_owned()).unwrap(),
        name: Name::try_from("A".to_owned()).unwrap(),
        quantity: Quantity::try_from(1).unwrap(),
        unit_price: Price::new(1, Currency::try_from("EUR".to_owned()).unwrap()).unwrap(),
    };
    BasketCommand::Change { basket_id, expected_version: None, change: BasketChange::AddItem { line } }
}

fn created(bus: &impl Dispatch) -> BasketId {
    match now(bus.dispatch(&envelope("ann", None, create()))).unwrap().outcome {
        Outcome::Accepted(view) => view.id,
        Outcome::Refused(refusal) => panic!("{refusal}"),
    }
}

fn event_types(store: &InMemoryStore) -> Vec<&'static str> {
    store.outbox().iter().map(|event| event.event_type).collect()
}

#[test]
fn a_command_writes_state_read_model_event_and_log_entry() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    let command = envelope("ann", Some(("k", "f")), create());
    let result = now(bus.dispatch(&command)).unwrap();
    let Outcome::Accepted(view) = &result.outcome else { panic!("{result:?}") };
    assert_eq!(result.command, command.id);
    assert!(!result.replayed);
    assert_eq!(store.view(view.id).as_ref(), Some(view));
    assert_eq!(event_types(&store), ["basket.created.v1"]);
    assert_eq!(store.log().len(), 1);
}

#[test]
fn a_repetition_gets_the_first_outcome_and_writes_nothing() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    let first = now(bus.dispatch(&envelope("ann", Some(("k", "f")), create()))).unwrap();
    let again = now(bus.dispatch(&envelope("ann", Some(("k", "f")), create()))).unwrap();
    assert_eq!(again, CommandResult { replayed: true, ..first });
    assert_eq!(store.log().len(), 1);
    assert_eq!(event_types(&store), ["basket.created.v1"]);
}

#[test]
fn a_refusal_is_repeated_too_even_when_the_command_would_succeed_by_then() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    let basket_id = created(&bus);
    let check_out = BasketChange::CheckOut { payment_method: "card".parse().unwrap() };
    let command = BasketCommand::Change { basket_id, expected_version: None, change: check_out };
    let first = now(bus.dispatch(&envelope("ann", Some(("k", "f")), command.clone()))).unwrap();
    assert_eq!(first.outcome, Outcome::Refused(Refusal::BasketEmpty));
    now(bus.dispatch(&envelope("ann", None, add(basket_id)))).unwrap();
    let again = now(bus.dispatch(&envelope("ann", Some(("k", "f")), command))).unwrap();
    assert_eq!(again, CommandResult { replayed: true, ..first });
}

#[test]
fn another_request_under_the_same_key_is_rejected() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    now(bus.dispatch(&envelope("ann", Some(("k", "f")), create()))).unwrap();
    let other = now(bus.dispatch(&envelope("ann", Some(("k", "g")), create())));
    assert!(matches!(other, Err(DispatchError::KeyReused)), "{other:?}");
    assert_eq!(store.log().len(), 1);
}

#[test]
fn a_key_belongs_to_its_sender_and_to_the_type_of_the_command() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    now(bus.dispatch(&envelope("ann", Some(("k", "f")), create()))).unwrap();
    let other_sender = now(bus.dispatch(&envelope("bob", Some(("k", "f")), create()))).unwrap();
    assert!(!other_sender.replayed);
    let basket_id = created(&bus);
    let other_type = now(bus.dispatch(&envelope("ann", Some(("k", "f")), add(basket_id)))).unwrap();
    assert!(!other_type.replayed);
}

#[test]
fn a_concurrent_duplicate_is_rejected_until_the_first_one_ends() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    let command = envelope("ann", Some(("k", "f")), create());
    let mut first = now(store.begin()).unwrap();
    assert_eq!(now(first.claim(&command)).unwrap(), Claim::New);
    let duplicate = now(bus.dispatch(&command));
    assert!(matches!(duplicate, Err(DispatchError::InProgress)), "{duplicate:?}");
    drop(first);
    assert!(!now(bus.dispatch(&command)).unwrap().replayed, "the first one left no trace");
}

#[test]
fn a_command_that_was_overtaken_conflicts_and_a_retry_succeeds() {
    let store = InMemoryStore::default();
    let basket_id = created(&Bus::new(store.clone()));
    // The first attempt is overtaken between its load and its commit.
    let overtaking = Bus::new(store.clone()).with_reaction(Overtake { store: store.clone(), basket_id });
    let again = Bus::new(store.clone());
    let conflict = now(overtaking.dispatch(&envelope("ann", None, add(basket_id))));
    assert!(matches!(conflict, Err(DispatchError::Port(PortError::Conflict(_)))), "{conflict:?}");
    let retry = Retry::new(Arc::new(overtaking), Arc::new(again));
    let result = now(retry.dispatch(&envelope("ann", None, add(basket_id)))).unwrap();
    let Outcome::Accepted(view) = result.outcome else { panic!("refused") };
    // Created, overtaken twice, and the command.
    assert_eq!(view.version.0, 4);
    assert_eq!(event_types(&store).len(), 4);
}

/// Lets another command commit while one is being written.
struct Overtake {
    store: InMemoryStore,
    basket_id: BasketId,
}

impl<U: UnitOfWork> Reaction<U> for Overtake {
    fn react<'a>(
        &'a self,
        _: &'a DomainEvent,
        _: &'a Basket,
        _: &'a CommandEnvelope,
        _: &'a mut U,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        let bus = Bus::new(self.store.clone());
        now(bus.dispatch(&envelope("ann", None, add(self.basket_id)))).unwrap();
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn retries_end() {
    struct Conflicts(Arc<AtomicU32>);
    impl Dispatch for Conflicts {
        fn dispatch<'a>(
            &'a self,
            _: &'a CommandEnvelope,
        ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Err(PortError::Conflict("always".into()).into()) })
        }
    }
    let attempts = Arc::new(AtomicU32::new(0));
    let conflicts: Arc<dyn Dispatch> = Arc::new(Conflicts(Arc::clone(&attempts)));
    let retry = Retry::new(Arc::clone(&conflicts), conflicts);
    let result = now(retry.dispatch(&envelope("ann", None, create())));
    assert!(matches!(result, Err(DispatchError::Port(PortError::Conflict(_)))));
    assert_eq!(attempts.load(Ordering::Relaxed), 4);
}

#[test]
fn a_command_of_another_owner_is_refused_and_changes_nothing() {
    let store = InMemoryStore::default();
    let bus = Bus::new(store.clone());
    let basket_id = created(&bus);
    let result = now(bus.dispatch(&envelope("bob", None, add(basket_id)))).unwrap();
    assert_eq!(result.outcome, Outcome::Refused(Refusal::BasketNotFound));
    assert_eq!(event_types(&store), ["basket.created.v1"]);
}

/// A reaction of a user of this crate: another aggregate gets an event.
struct Welcome;

impl<U: UnitOfWork> Reaction<U> for Welcome {
    fn react<'a>(
        &'a self,
        event: &'a DomainEvent,
        _: &'a Basket,
        cause: &'a CommandEnvelope,
        unit: &'a mut U,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            let BasketChanged::Created { buyer } = &event.change else { return Ok(()) };
            let welcomed = IntegrationEvent {
                id: Uuid::now_v7(),
                aggregate_type: "buyer",
                aggregate_id: buyer.as_str().to_owned(),
                event_type: "buyer.welcomed.v1",
                payload: json!({}),
            };
            unit.append(&[welcomed], cause).await
        })
    }
}

/// A reaction for one adapter: it can do what only that adapter can.
struct Count(Arc<Mutex<Vec<i64>>>);

impl Reaction<InMemoryUnit> for Count {
    fn react<'a>(
        &'a self,
        event: &'a DomainEvent,
        _: &'a Basket,
        _: &'a CommandEnvelope,
        _: &'a mut InMemoryUnit,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        self.0.lock().unwrap().push(event.version.0);
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn a_new_reaction_is_a_new_type_and_one_line() {
    let store = InMemoryStore::default();
    let seen = Arc::default();
    let bus = Bus::new(store.clone()).with_reaction(Welcome).with_reaction(Count(Arc::clone(&seen)));
    let basket_id = created(&bus);
    now(bus.dispatch(&envelope("ann", None, add(basket_id)))).unwrap();
    assert_eq!(event_types(&store), ["basket.created.v1", "buyer.welcomed.v1", "basket.item_added.v1"]);
    assert_eq!(store.outbox()[1].aggregate_id, "buyer");
    assert_eq!(*seen.lock().unwrap(), [1, 2]);
}
