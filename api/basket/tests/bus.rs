//! The bus from outside the crate, over a store in memory: what a user of it can add without touching it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use basket::application::commands::{AddItem, CreateBasket};
use basket::application::integration_events::IntegrationEvent;
use basket::application::middleware::{Middleware, Next, Retry, Wish};
use basket::application::ports::{
    BoxFuture, Changes, Committed, Found, Isolation, PortError, UnitOfWork, UnitOfWorkFactory,
};
use basket::application::reactions::{Happened, IntegrationEvents, Reaction, ReadModel};
use basket::application::{
    Bus, BusError, CommandEnvelope, CommandId, CommandMetadata, CommandRecord, CommandResult, Outcome,
};
use basket::domain::{BasketId, BuyerId, DomainEvent, Principal, Refusal};
use chrono::DateTime;
use serde_json::json;
use uuid::Uuid;

/// What was committed; how many commits are still to be overtaken, and how attempts were isolated.
#[derive(Default)]
struct Memory {
    events: Mutex<Vec<IntegrationEvent>>,
    views: Mutex<usize>,
    to_overtake: Mutex<u32>,
    attempts: Mutex<Vec<Isolation>>,
}

#[derive(Clone)]
struct Store(Arc<Memory>);

impl UnitOfWorkFactory for Store {
    fn begin(&self, isolation: Isolation) -> BoxFuture<'_, Result<Box<dyn UnitOfWork>, PortError>> {
        self.0.attempts.lock().unwrap().push(isolation);
        let store = self.clone();
        Box::pin(async move { Ok(Box::new(store) as Box<dyn UnitOfWork>) })
    }
}

impl UnitOfWork for Store {
    fn look_up<'a>(&'a mut self, _: &'a CommandRecord<'a>) -> BoxFuture<'a, Result<Found, PortError>> {
        Box::pin(async { Ok(Found::default()) })
    }

    fn commit<'a>(
        self: Box<Self>,
        _: &'a CommandRecord<'a>,
        changes: &'a Changes,
    ) -> BoxFuture<'a, Result<Committed, PortError>> {
        Box::pin(async move {
            let mut left = self.0.to_overtake.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return Ok(Committed::Conflict);
            }
            self.0.events.lock().unwrap().extend(changes.events.iter().cloned());
            *self.0.views.lock().unwrap() += usize::from(changes.view.is_some());
            Ok(Committed::Done)
        })
    }
}

/// Nothing here waits for anything.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a store in memory answers at once"),
    }
}

fn identified<C>(command: C) -> CommandEnvelope<C> {
    let id = CommandId(Uuid::now_v7());
    let cause = CommandMetadata {
        command: id,
        principal: Principal::Caller("ann".to_owned()),
        correlation_id: id.to_string(),
        traceparent: None,
        tracestate: None,
    };
    let received_at = DateTime::UNIX_EPOCH;
    CommandEnvelope { command, cause, idempotency_key: None, fingerprint: String::new(), received_at }
}

fn create() -> CommandEnvelope<CreateBasket> {
    let buyer_id = BuyerId::try_from("buyer".to_owned()).unwrap();
    identified(CreateBasket { id: BasketId(Uuid::now_v7()), buyer_id })
}

/// A reaction of somebody else's.
struct Welcome;

impl Reaction for Welcome {
    fn react(&self, happened: &Happened<'_>, changes: &mut Changes) -> Result<(), serde_json::Error> {
        if let DomainEvent::BasketCreated { .. } = happened.event {
            let (id, basket_id) = (Uuid::now_v7(), happened.basket.id());
            let payload = json!({ "because_of": happened.cause.command });
            changes.events.push(IntegrationEvent { id, event_type: "buyer.welcomed.v1", basket_id, payload });
        }
        Ok(())
    }
}

/// A middleware of somebody else's.
struct Counts(Arc<Mutex<Vec<String>>>);

impl Middleware for Counts {
    fn call<'a>(&'a self, wish: Wish<'a>, next: Next<'a>) -> BoxFuture<'a, Result<CommandResult, BusError>> {
        Box::pin(async move {
            let answer = next.run(wish).await;
            self.0.lock().unwrap().push(wish.record.command_type.to_owned());
            answer
        })
    }
}

#[test]
fn a_new_reaction_is_a_new_type_and_a_line() {
    let memory = Arc::new(Memory::default());
    let bus = Bus::new(Arc::new(Store(Arc::clone(&memory))))
        .reacting(ReadModel)
        .reacting(IntegrationEvents)
        .reacting(Welcome);
    let answer = now(bus.dispatch(&create())).unwrap();
    assert!(matches!(answer.outcome, Outcome::Accepted(_)) && !answer.replayed);
    let events = memory.events.lock().unwrap();
    let types: Vec<&str> = events.iter().map(|event| event.event_type).collect();
    assert_eq!(types, ["basket.created.v1", "buyer.welcomed.v1"]);
    assert_eq!(
        (events[1].payload["because_of"].as_str(), *memory.views.lock().unwrap()),
        (Some(&*answer.command.to_string()), 1)
    );
}

#[test]
fn a_refusal_is_an_answer_and_has_no_events() {
    let memory = Arc::new(Memory::default());
    let bus = Bus::new(Arc::new(Store(Arc::clone(&memory)))).reacting(IntegrationEvents);
    let line = serde_json::from_value(
        json!({"sku": "a", "name": "A", "quantity": 1, "unit_price": {"amount": 1, "currency": "EUR"}}),
    );
    let wish =
        identified(AddItem { basket_id: BasketId(Uuid::nil()), line: line.unwrap(), expected_version: None });
    assert_eq!(now(bus.dispatch(&wish)).unwrap().outcome, Outcome::Refused(Refusal::BasketNotFound));
    assert!(memory.events.lock().unwrap().is_empty());
}

#[test]
fn a_command_that_was_overtaken_is_tried_again_with_the_lock_and_not_for_ever() {
    let memory = Arc::new(Memory { to_overtake: Mutex::new(2), ..Memory::default() });
    let seen = Arc::default();
    let bus = Bus::new(Arc::new(Store(Arc::clone(&memory)))).with(Retry).with(Counts(Arc::clone(&seen)));
    assert!(now(bus.dispatch(&create())).is_ok());
    let isolated = [Isolation::Optimistic, Isolation::Locking, Isolation::Locking];
    assert_eq!(*memory.attempts.lock().unwrap(), isolated);
    assert_eq!(*seen.lock().unwrap(), ["create_basket"; 3], "what is inside of the retry sees every attempt");

    *memory.to_overtake.lock().unwrap() = 100;
    assert!(matches!(now(bus.dispatch(&create())), Err(BusError::Conflict)));
    assert_eq!(memory.attempts.lock().unwrap().len(), 3 + 4);
}
