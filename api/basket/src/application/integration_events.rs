//! What other services get. These types are a public contract: a published version never changes its meaning, so none of
//! them holds a type of the domain, of the read model or of the HTTP API. An incompatible change is a new type beside
//! the old one. No personal data except the shop's id of the buyer.

use chrono::{DateTime, Utc};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::domain::{Basket, BasketChanged, DomainEvent, Line, Money};

/// `aggregatetype` of the events of baskets; the default routing makes it the topic `outbox.event.basket`.
pub const AGGREGATE_TYPE: &str = "basket";

/// An event on its way to the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegrationEvent {
    /// Identity (UUIDv7): consumers deduplicate on it.
    pub id: Uuid,
    /// Kind of the aggregate: it routes to a topic.
    pub aggregate_type: &'static str,
    /// Identity of the aggregate: the Kafka key.
    pub aggregate_id: String,
    /// Type with its version.
    pub event_type: &'static str,
    /// The content.
    pub payload: Value,
}

/// The members of every payload, and those of the event type.
#[derive(Serialize, JsonSchema)]
struct Envelope<T> {
    /// The basket.
    basket_id: Uuid,
    /// The basket's version after the event: consecutive from 1, so a consumer can detect a gap.
    #[schemars(extend("minimum" = 1))]
    version: i64,
    /// When it happened. Never earlier than the version before.
    occurred_at: DateTime<Utc>,
    #[serde(flatten)]
    content: T,
}

/// The members of one event type.
trait EventContent: Serialize + JsonSchema {
    /// The type's name with its version.
    const TYPE: &'static str;
}

/// A basket was created.
#[derive(Serialize, JsonSchema)]
struct CreatedV1 {
    /// The shop's id of the buyer.
    #[schemars(example = &"buyer-17")]
    buyer_id: String,
}

impl EventContent for CreatedV1 {
    const TYPE: &'static str = "basket.created.v1";
}

/// An article was added, or more pieces of one that was in the basket.
#[derive(Serialize, JsonSchema)]
struct ItemAddedV1 {
    /// What was added; the quantity is the addition.
    added: LineV1,
    /// The line after the event.
    line: LineV1,
    /// Sum of all lines.
    basket_total: Option<MoneyV1>,
}

impl EventContent for ItemAddedV1 {
    const TYPE: &'static str = "basket.item_added.v1";
}

/// The number of pieces of an article was changed.
#[derive(Serialize, JsonSchema)]
struct ItemQuantityChangedV1 {
    /// Pieces before.
    previous_quantity: u32,
    /// The line after the event.
    line: LineV1,
    /// Sum of all lines.
    basket_total: Option<MoneyV1>,
}

impl EventContent for ItemQuantityChangedV1 {
    const TYPE: &'static str = "basket.item_quantity_changed.v1";
}

/// An article was removed.
#[derive(Serialize, JsonSchema)]
struct ItemRemovedV1 {
    /// The line as it was.
    removed: LineV1,
    /// Sum of the lines that are left; null if there are none.
    basket_total: Option<MoneyV1>,
}

impl EventContent for ItemRemovedV1 {
    const TYPE: &'static str = "basket.item_removed.v1";
}

/// All articles were removed.
#[derive(Serialize, JsonSchema)]
struct ClearedV1 {
    /// The lines as they were.
    removed: Vec<LineV1>,
}

impl EventContent for ClearedV1 {
    const TYPE: &'static str = "basket.cleared.v1";
}

/// A basket was ordered. A full snapshot, so the service that fulfils the order needs no call back.
#[derive(Serialize, JsonSchema)]
struct CheckedOutV1 {
    /// How it is paid.
    #[schemars(example = &"card")]
    payment_method: String,
    /// The basket as it was ordered.
    basket: OrderedBasketV1,
}

impl EventContent for CheckedOutV1 {
    const TYPE: &'static str = "basket.checked_out.v1";
}

/// A basket was given up and will not be ordered.
#[derive(Serialize, JsonSchema)]
struct AbandonedV1 {
    /// Why: requested or expired.
    #[schemars(example = &"requested")]
    reason: String,
}

impl EventContent for AbandonedV1 {
    const TYPE: &'static str = "basket.abandoned.v1";
}

/// An amount in one currency.
#[derive(Serialize, JsonSchema)]
struct MoneyV1 {
    /// Minor units, such as cents.
    #[schemars(extend("minimum" = 0))]
    amount: i64,
    /// ISO 4217 code.
    #[schemars(example = &"EUR")]
    currency: String,
}

/// A line.
#[derive(Serialize, JsonSchema)]
struct LineV1 {
    /// Article number.
    #[schemars(example = &"tea-250")]
    sku: String,
    /// Name.
    #[schemars(example = &"Green tea, 250 g")]
    name: String,
    /// Number of pieces.
    #[schemars(extend("minimum" = 1))]
    quantity: u32,
    /// Price of one piece.
    unit_price: MoneyV1,
}

/// A line of an order, with its total.
#[derive(Serialize, JsonSchema)]
struct OrderedLineV1 {
    #[serde(flatten)]
    line: LineV1,
    /// Unit price times quantity.
    total: MoneyV1,
}

/// A basket that was ordered.
#[derive(Serialize, JsonSchema)]
struct OrderedBasketV1 {
    /// Identity.
    id: Uuid,
    /// The shop's id of the buyer.
    #[schemars(example = &"buyer-17")]
    buyer_id: String,
    /// Status: always checked_out.
    status: &'static str,
    /// Lines in the order in which they were added.
    lines: Vec<OrderedLineV1>,
    /// Sum of all lines.
    total: Option<MoneyV1>,
    /// How it is paid.
    payment_method: String,
    /// The basket's version after the event.
    version: i64,
    /// When it was created.
    created_at: DateTime<Utc>,
    /// When it was ordered.
    updated_at: DateTime<Utc>,
}

impl IntegrationEvent {
    /// The public form of all events of a basket, in their order.
    pub fn all_of(basket: &Basket) -> Result<Vec<IntegrationEvent>, serde_json::Error> {
        basket.events().iter().map(|event| IntegrationEvent::of(event, basket)).collect()
    }

    fn of(event: &DomainEvent, basket: &Basket) -> Result<IntegrationEvent, serde_json::Error> {
        match &event.change {
            BasketChanged::Created { buyer } => {
                publish(basket, event, CreatedV1 { buyer_id: buyer.as_str().to_owned() })
            }
            BasketChanged::ItemAdded { added, line, total } => {
                let (added, line, basket_total) = (added.into(), line.into(), total.map(MoneyV1::from));
                publish(basket, event, ItemAddedV1 { added, line, basket_total })
            }
            BasketChanged::ItemQuantityChanged { previous, line, total } => {
                let (previous_quantity, line) = (previous.pieces(), line.into());
                let basket_total = total.map(MoneyV1::from);
                publish(basket, event, ItemQuantityChangedV1 { previous_quantity, line, basket_total })
            }
            BasketChanged::ItemRemoved { line, total } => {
                let (removed, basket_total) = (line.into(), total.map(MoneyV1::from));
                publish(basket, event, ItemRemovedV1 { removed, basket_total })
            }
            BasketChanged::Cleared { lines } => {
                publish(basket, event, ClearedV1 { removed: lines.iter().map(LineV1::from).collect() })
            }
            BasketChanged::CheckedOut { payment_method } => {
                let payment_method = payment_method.into_str().to_owned();
                let ordered = OrderedBasketV1::of(basket, event, &payment_method);
                publish(basket, event, CheckedOutV1 { payment_method, basket: ordered })
            }
            BasketChanged::Abandoned { reason } => {
                publish(basket, event, AbandonedV1 { reason: reason.into_str().to_owned() })
            }
        }
    }
}

fn publish<T: EventContent>(
    basket: &Basket,
    event: &DomainEvent,
    content: T,
) -> Result<IntegrationEvent, serde_json::Error> {
    let basket_id = basket.snapshot().id.0;
    let (version, occurred_at) = (event.version.0, event.occurred_at);
    Ok(IntegrationEvent {
        id: Uuid::now_v7(),
        aggregate_type: AGGREGATE_TYPE,
        aggregate_id: basket_id.to_string(),
        event_type: T::TYPE,
        payload: serde_json::to_value(Envelope { basket_id, version, occurred_at, content })?,
    })
}

impl From<Money> for MoneyV1 {
    fn from(money: Money) -> MoneyV1 {
        MoneyV1 { amount: money.amount, currency: money.currency.code() }
    }
}

impl From<&Line> for LineV1 {
    fn from(line: &Line) -> LineV1 {
        LineV1 {
            sku: line.sku.as_str().to_owned(),
            name: line.name.as_str().to_owned(),
            quantity: line.quantity.pieces(),
            unit_price: line.unit_price.money().into(),
        }
    }
}

impl OrderedBasketV1 {
    /// A basket never changes after its checkout, so its state is the one at the event.
    fn of(basket: &Basket, event: &DomainEvent, payment_method: &str) -> OrderedBasketV1 {
        let basket = basket.snapshot();
        let line = |line: &Line| OrderedLineV1 { line: line.into(), total: line.total().into() };
        OrderedBasketV1 {
            id: basket.id.0,
            buyer_id: basket.buyer.as_str().to_owned(),
            status: "checked_out",
            lines: basket.lines.iter().map(line).collect(),
            total: basket.total().map(MoneyV1::from),
            payment_method: payment_method.to_owned(),
            version: event.version.0,
            created_at: basket.created_at,
            updated_at: event.occurred_at,
        }
    }
}

/// The JSON Schema (2020-12) of every event type's payload.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![
        schema::<CreatedV1>(),
        schema::<ItemAddedV1>(),
        schema::<ItemQuantityChangedV1>(),
        schema::<ItemRemovedV1>(),
        schema::<ClearedV1>(),
        schema::<CheckedOutV1>(),
        schema::<AbandonedV1>(),
    ]
}

fn schema<T: EventContent>() -> (&'static str, Schema) {
    // No references to definitions: a consumer's tool gets one self-contained file.
    let settings =
        SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    let mut generator = settings.into_generator();
    let content = generator.subschema_for::<T>();
    let mut schema = generator.into_root_schema_for::<Envelope<T>>();
    schema.insert("title".to_owned(), T::TYPE.into());
    if let Some(description) = content.get("description") {
        schema.insert("description".to_owned(), description.clone());
    }
    (T::TYPE, schema)
}
