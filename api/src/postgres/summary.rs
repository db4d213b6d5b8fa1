//! Entries of lists, read from the views without their lines.

use basket::application::ports::PortError;
use basket::application::{BasketSummary, MoneyView};
use basket::domain::{BasketId, Version};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use super::documents::{MoneyDocument, invalid_document};

/// `basket_view.view` without its lines, but with their number. Nothing is validated when it is read.
#[derive(Debug, Deserialize)]
pub struct SummaryDocument {
    id: Uuid,
    buyer_id: String,
    status: String,
    line_count: u32,
    total: Option<MoneyDocument>,
    payment_method: Option<String>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<SummaryDocument> for BasketSummary {
    type Error = PortError;

    fn try_from(basket: SummaryDocument) -> Result<BasketSummary, PortError> {
        Ok(BasketSummary {
            id: BasketId(basket.id),
            buyer_id: basket.buyer_id,
            status: basket.status.parse().map_err(|_| invalid_document("status"))?,
            line_count: basket.line_count,
            total: basket.total.map(MoneyView::from),
            payment_method: basket.payment_method,
            version: Version(basket.version),
            created_at: basket.created_at,
            updated_at: basket.updated_at,
        })
    }
}
