//! What other services are told. These types are a public contract: a published version never changes its meaning;
//! an incompatible change is a new type beside the old one. No personal data but the shop's buyer id.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::view::BasketView;
use crate::domain::{Basket, BasketId, BuyerId, DomainEvent, Line, Money, PaymentMethod, Version};

/// `aggregatetype` of every event of this service; the default routing makes it the topic `outbox.event.basket`.
pub const AGGREGATE_TYPE: &str = "basket";

/// An event on its way to the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegrationEvent {
    /// Identity (UUIDv7): consumers deduplicate on it.
    pub id: Uuid,
    /// Type with its version.
    pub event_type: &'static str,
    /// The basket: the Kafka key.
    pub basket_id: BasketId,
    /// The event itself.
    pub payload: Value,
}

/// What every payload says.
#[derive(Serialize)]
struct Envelope<'a, T> {
    basket_id: BasketId,
    version: Version,
    occurred_at: DateTime<Utc>,
    #[serde(flatten)]
    content: &'a T,
}

#[derive(Serialize)]
struct BasketCreatedV1<'a> {
    buyer_id: &'a BuyerId,
}

#[derive(Serialize)]
struct ItemAddedV1<'a> {
    added: &'a Line,
    line: &'a Line,
    basket_total: Option<Money>,
}

/// A full snapshot: whoever fulfils the order needs no call back.
#[derive(Serialize)]
struct BasketCheckedOutV1 {
    payment_method: PaymentMethod,
    basket: BasketView,
}

impl IntegrationEvent {
    /// The public form of a domain event.
    pub fn of(event: &DomainEvent, basket: &Basket) -> Result<IntegrationEvent, serde_json::Error> {
        let (event_type, payload) = match event {
            DomainEvent::BasketCreated { buyer } => {
                ("basket.created.v1", enveloped(basket, &BasketCreatedV1 { buyer_id: buyer })?)
            }
            DomainEvent::ItemAdded { added, line } => {
                let content = ItemAddedV1 { added, line, basket_total: basket.total() };
                ("basket.item_added.v1", enveloped(basket, &content)?)
            }
            DomainEvent::BasketCheckedOut { payment_method } => {
                let content =
                    BasketCheckedOutV1 { payment_method: *payment_method, basket: BasketView::from(basket) };
                ("basket.checked_out.v1", enveloped(basket, &content)?)
            }
        };
        Ok(IntegrationEvent { id: Uuid::now_v7(), event_type, basket_id: basket.id(), payload })
    }
}

fn enveloped<T: Serialize>(basket: &Basket, content: &T) -> Result<Value, serde_json::Error> {
    let (basket_id, version, occurred_at) = (basket.id(), basket.version(), basket.updated_at());
    serde_json::to_value(Envelope { basket_id, version, occurred_at, content })
}
