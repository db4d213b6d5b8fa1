//! The JSON of the API: bodies of requests and of answers. These types are the API's contract, so none of them is used
//! for anything else.

mod schemas;
mod summary;

use basket::application::queries::LoggedCommand;
use basket::application::{BasketView, LineView, MoneyView};
use basket::domain::{BuyerId, MAX_EXACT, Name, PaymentMethod, Price, Quantity, Sku};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

pub use summary::BasketSummary;

/// A new basket.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct NewBasket {
    /// The shop's id of the buyer.
    #[schemars(with = "schemas::BuyerId")]
    pub buyer_id: BuyerId,
}

/// An article, as the shop offers it now. The line keeps this snapshot.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct NewItem {
    /// Article number.
    #[schemars(with = "schemas::Sku")]
    pub sku: Sku,
    /// Name.
    #[schemars(with = "schemas::Name")]
    pub name: Name,
    /// Number of pieces.
    #[schemars(with = "schemas::Quantity")]
    pub quantity: Quantity,
    /// Price of one piece.
    #[schemars(with = "schemas::Price")]
    pub unit_price: Price,
}

/// Another number of pieces.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct NewQuantity {
    /// The new number of pieces.
    #[schemars(with = "schemas::Quantity")]
    pub quantity: Quantity,
}

/// How a basket is paid.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Payment {
    /// The method.
    #[schemars(with = "schemas::PaymentMethod")]
    pub payment_method: PaymentMethod,
}

/// A basket.
#[derive(Serialize, JsonSchema)]
pub struct Basket {
    /// Identity.
    id: Uuid,
    /// The shop's id of the buyer.
    #[schemars(with = "schemas::BuyerId")]
    buyer_id: String,
    /// Status.
    #[schemars(with = "schemas::Status")]
    status: &'static str,
    /// Lines in the order in which they were added.
    lines: Vec<BasketLine>,
    /// Sum of all lines; null while there are none.
    total: Option<Money>,
    /// How it is paid; null until it is checked out.
    #[schemars(with = "Option<schemas::PaymentMethod>")]
    payment_method: Option<String>,
    /// Counts the changes, from 1; the entity tag.
    #[schemars(extend("minimum" = 1))]
    version: i64,
    /// When it was created.
    created_at: DateTime<Utc>,
    /// When it last changed.
    updated_at: DateTime<Utc>,
}

/// A line with its total.
#[derive(Serialize, JsonSchema)]
struct BasketLine {
    /// Article number.
    #[schemars(with = "schemas::Sku")]
    sku: String,
    /// Name.
    #[schemars(with = "schemas::Name")]
    name: String,
    /// Number of pieces.
    #[schemars(with = "schemas::Quantity")]
    quantity: u32,
    /// Price of one piece.
    unit_price: Money,
    /// Unit price times quantity.
    total: Money,
}

/// An amount in one currency, in minor units.
#[derive(Serialize, JsonSchema)]
struct Money {
    /// Minor units, such as cents.
    #[schemars(range(min = 0, max = MAX_EXACT))]
    amount: i64,
    /// ISO 4217 code.
    #[schemars(regex(pattern = "^[A-Z]{3}$"), example = &"EUR")]
    currency: String,
}

/// A page of baskets, newest first.
#[derive(Serialize, JsonSchema)]
pub struct BasketPage {
    /// The baskets.
    pub baskets: Vec<BasketSummary>,
    /// Where the next page begins; null on the last one.
    pub next_page_token: Option<String>,
}

/// A command in the log: who issued which command, when, and how it ended.
#[derive(Serialize, JsonSchema)]
pub struct Command {
    /// Identity: the `Command-Id` of its answer, and the `causation-id` of its events.
    id: Uuid,
    /// Type.
    #[serde(rename = "type")]
    command_type: String,
    /// The sender.
    principal: String,
    /// The caller's key for it.
    idempotency_key: Option<String>,
    /// The conversation it belongs to.
    correlation_id: String,
    /// W3C trace context of the request.
    traceparent: Option<String>,
    /// Its content.
    payload: Value,
    /// When it arrived.
    received_at: DateTime<Utc>,
    /// When its work was done.
    completed_at: DateTime<Utc>,
    /// How it ended: accepted or refused.
    outcome: String,
    /// Why it was refused.
    refusal: Option<String>,
    /// The basket it was about.
    basket_id: Option<Uuid>,
    /// The basket's version after it.
    #[schemars(extend("minimum" = 1))]
    basket_version: Option<i64>,
    /// The events it published.
    event_ids: Vec<Uuid>,
}

/// A page of commands, newest first.
#[derive(Serialize, JsonSchema)]
pub struct CommandPage {
    /// The commands.
    pub commands: Vec<Command>,
    /// Where the next page begins; null on the last one.
    pub next_page_token: Option<String>,
}

impl From<MoneyView> for Money {
    fn from(money: MoneyView) -> Money {
        Money { amount: money.amount, currency: money.currency }
    }
}

impl From<LineView> for BasketLine {
    fn from(line: LineView) -> BasketLine {
        let LineView { sku, name, quantity, unit_price, total } = line;
        BasketLine { sku, name, quantity, unit_price: unit_price.into(), total: total.into() }
    }
}

impl From<BasketView> for Basket {
    fn from(basket: BasketView) -> Basket {
        Basket {
            id: basket.id.0,
            buyer_id: basket.buyer_id,
            status: basket.status.into_str(),
            lines: basket.lines.into_iter().map(BasketLine::from).collect(),
            total: basket.total.map(Money::from),
            payment_method: basket.payment_method,
            version: basket.version.0,
            created_at: basket.created_at,
            updated_at: basket.updated_at,
        }
    }
}

impl From<LoggedCommand> for Command {
    fn from(command: LoggedCommand) -> Command {
        Command {
            id: command.id.0,
            command_type: command.command_type,
            principal: command.principal,
            idempotency_key: command.idempotency_key,
            correlation_id: command.correlation_id,
            traceparent: command.traceparent,
            payload: command.payload,
            received_at: command.received_at,
            completed_at: command.completed_at,
            outcome: command.outcome,
            refusal: command.refusal,
            basket_id: command.basket_id.map(|id| id.0),
            basket_version: command.basket_version.map(|version| version.0),
            event_ids: command.event_ids,
        }
    }
}
