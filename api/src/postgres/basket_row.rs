//! A basket as a row of the table `basket`.

use basket::application::BasketStatus;
use basket::application::ports::PortError;
use basket::domain::{Basket, BasketId, BasketSnapshot, BuyerId, PaymentMethod, Principal, Status, Version};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::documents::{LineDocument, invalid_document, lines};
use super::port_error;

/// The basket in a row. Its values are taken as they are: they were valid when they were stored.
pub fn basket(row: &PgRow) -> Result<Basket, PortError> {
    let Json(documents): Json<Vec<LineDocument>> = row.try_get("lines").map_err(port_error)?;
    Ok(Basket::from_snapshot(BasketSnapshot {
        id: BasketId(row.try_get("id").map_err(port_error)?),
        owner: Principal::from_stored(row.try_get("owner").map_err(port_error)?),
        buyer: BuyerId::from_stored(row.try_get("buyer_id").map_err(port_error)?),
        status: stored_status(row)?,
        lines: lines(documents)?,
        version: Version(row.try_get("version").map_err(port_error)?),
        created_at: row.try_get("created_at").map_err(port_error)?,
        updated_at: row.try_get("updated_at").map_err(port_error)?,
    }))
}

fn stored_status(row: &PgRow) -> Result<Status, PortError> {
    let status: &str = row.try_get("status").map_err(port_error)?;
    let paid: Option<&str> = row.try_get("payment_method").map_err(port_error)?;
    Ok(match (status.parse::<BasketStatus>().map_err(|_| invalid_document("status"))?, paid) {
        (BasketStatus::Open, _) => Status::Open,
        (BasketStatus::Abandoned, _) => Status::Abandoned,
        (BasketStatus::CheckedOut, paid) => {
            let method = paid.and_then(|name| name.parse::<PaymentMethod>().ok());
            Status::CheckedOut { payment_method: method.ok_or_else(|| invalid_document("payment_method"))? }
        }
    })
}

/// Column `status`.
pub fn status(basket: &BasketSnapshot) -> &'static str {
    BasketStatus::from(basket.status).into_str()
}

/// Column `payment_method`.
pub fn payment_method(basket: &BasketSnapshot) -> Option<&'static str> {
    match basket.status {
        Status::CheckedOut { payment_method } => Some(payment_method.into_str()),
        Status::Open | Status::Abandoned => None,
    }
}
