//! Entries of a list of baskets.

use basket::application::BasketSummary as Summary;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::{Money, schemas};

/// A basket in a list: without its lines.
#[derive(Serialize, JsonSchema)]
pub struct BasketSummary {
    /// Identity.
    id: Uuid,
    /// The shop's id of the buyer.
    #[schemars(with = "schemas::BuyerId")]
    buyer_id: String,
    /// Status.
    #[schemars(with = "schemas::Status")]
    status: &'static str,
    /// Number of lines.
    line_count: u32,
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

impl From<Summary> for BasketSummary {
    fn from(basket: Summary) -> BasketSummary {
        BasketSummary {
            id: basket.id.0,
            buyer_id: basket.buyer_id,
            status: basket.status.into_str(),
            line_count: basket.line_count,
            total: basket.total.map(Money::from),
            payment_method: basket.payment_method,
            version: basket.version.0,
            created_at: basket.created_at,
            updated_at: basket.updated_at,
        }
    }
}
