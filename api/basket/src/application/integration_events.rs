//! What other services are told. These types are a public contract: a published version never changes its meaning;
//! an incompatible change is a new type beside the old one. No personal data but the shop's buyer id.

use chrono::{DateTime, Utc};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::read_model::BasketView;
use crate::domain::{
    AbandonReason, Basket, BasketId, BuyerId, DomainEvent, Line, Money, PaymentMethod, Quantity, Version,
};

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

/// What every payload says, and what this one says.
#[derive(Serialize, JsonSchema)]
struct Told<T> {
    /// The basket.
    basket_id: BasketId,
    /// The basket's version after the event: consecutive from 1, so that a consumer can tell a gap.
    version: Version,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    #[serde(flatten)]
    content: T,
}

/// A basket was created.
#[derive(Serialize, JsonSchema)]
struct CreatedV1 {
    /// For whom.
    buyer_id: BuyerId,
}

/// An article was put in, or more of one that was there.
#[derive(Serialize, JsonSchema)]
struct ItemAddedV1 {
    /// What was added; the quantity is the addition.
    added: Line,
    /// The line as it is now.
    line: Line,
    /// Sum of all lines.
    basket_total: Option<Money>,
}

/// There are more or fewer pieces of an article.
#[derive(Serialize, JsonSchema)]
struct ItemQuantityChangedV1 {
    /// Pieces before.
    previous_quantity: Quantity,
    /// The line as it is now.
    line: Line,
    /// Sum of all lines.
    basket_total: Option<Money>,
}

/// An article was taken out.
#[derive(Serialize, JsonSchema)]
struct ItemRemovedV1 {
    /// The line as it was.
    removed: Line,
    /// Sum of the lines that are left; null when there are none.
    basket_total: Option<Money>,
}

/// Everything was taken out.
#[derive(Serialize, JsonSchema)]
struct ClearedV1 {
    /// The lines as they were.
    removed: Vec<Line>,
}

/// A basket was ordered. A full snapshot: whoever fulfils the order needs no call back.
#[derive(Serialize, JsonSchema)]
struct CheckedOutV1 {
    /// How it is paid.
    payment_method: PaymentMethod,
    /// The basket as it was ordered.
    basket: BasketView,
}

/// Nobody will order the basket any more.
#[derive(Serialize, JsonSchema)]
struct AbandonedV1 {
    /// Why.
    reason: AbandonReason,
}

impl IntegrationEvent {
    /// The public form of a domain event.
    pub fn of(event: &DomainEvent, basket: &Basket) -> Result<IntegrationEvent, serde_json::Error> {
        let basket_total = basket.total();
        let (event_type, payload) = match event.clone() {
            DomainEvent::BasketCreated { buyer } => (CREATED, told(basket, CreatedV1 { buyer_id: buyer })?),
            DomainEvent::ItemAdded { added, line } => {
                (ITEM_ADDED, told(basket, ItemAddedV1 { added, line, basket_total })?)
            }
            DomainEvent::ItemQuantityChanged { previous: previous_quantity, line } => {
                let content = ItemQuantityChangedV1 { previous_quantity, line, basket_total };
                (ITEM_QUANTITY_CHANGED, told(basket, content)?)
            }
            DomainEvent::ItemRemoved { line: removed } => {
                (ITEM_REMOVED, told(basket, ItemRemovedV1 { removed, basket_total })?)
            }
            DomainEvent::BasketCleared { lines: removed } => (CLEARED, told(basket, ClearedV1 { removed })?),
            DomainEvent::BasketCheckedOut { payment_method } => {
                let content = CheckedOutV1 { payment_method, basket: BasketView::from(basket) };
                (CHECKED_OUT, told(basket, content)?)
            }
            DomainEvent::BasketAbandoned { reason } => (ABANDONED, told(basket, AbandonedV1 { reason })?),
        };
        Ok(IntegrationEvent { id: Uuid::now_v7(), event_type, basket_id: basket.id(), payload })
    }
}

const CREATED: &str = "basket.created.v1";
const ITEM_ADDED: &str = "basket.item_added.v1";
const ITEM_QUANTITY_CHANGED: &str = "basket.item_quantity_changed.v1";
const ITEM_REMOVED: &str = "basket.item_removed.v1";
const CLEARED: &str = "basket.cleared.v1";
const CHECKED_OUT: &str = "basket.checked_out.v1";
const ABANDONED: &str = "basket.abandoned.v1";

fn told<T: Serialize>(basket: &Basket, content: T) -> Result<Value, serde_json::Error> {
    let (basket_id, version, occurred_at) = (basket.id(), basket.version(), basket.updated_at());
    serde_json::to_value(Told { basket_id, version, occurred_at, content })
}

/// The JSON Schema (2020-12) of every event type's payload.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![
        (CREATED, schema::<CreatedV1>(CREATED)),
        (ITEM_ADDED, schema::<ItemAddedV1>(ITEM_ADDED)),
        (ITEM_QUANTITY_CHANGED, schema::<ItemQuantityChangedV1>(ITEM_QUANTITY_CHANGED)),
        (ITEM_REMOVED, schema::<ItemRemovedV1>(ITEM_REMOVED)),
        (CLEARED, schema::<ClearedV1>(CLEARED)),
        (CHECKED_OUT, schema::<CheckedOutV1>(CHECKED_OUT)),
        (ABANDONED, schema::<AbandonedV1>(ABANDONED)),
    ]
}

fn schema<T: JsonSchema>(title: &str) -> Schema {
    // Nothing refers to a definition: a consumer's tool gets one self-contained file.
    let settings =
        SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    let mut generator = settings.into_generator();
    let content = generator.subschema_for::<T>();
    let mut schema = generator.into_root_schema_for::<Told<T>>();
    schema.insert("title".to_owned(), title.into());
    if let Some(description) = content.get("description") {
        schema.insert("description".to_owned(), description.clone());
    }
    schema
}
