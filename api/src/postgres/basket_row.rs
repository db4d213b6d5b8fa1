//! A basket as a row.

use basket::application::ports::PortError;
use basket::domain::{Basket, BasketId, BasketSnapshot, BuyerId, Line, PaymentMethod, Status, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::port_error;

/// The basket in a row; none where the row has none.
pub fn restore(row: &PgRow) -> Result<Option<Basket>, PortError> {
    let id: Option<Uuid> = row.try_get("id").map_err(port_error)?;
    id.map(|id| stored(BasketId(id), row).map(Basket::from_snapshot)).transpose()
}

fn stored(id: BasketId, row: &PgRow) -> Result<BasketSnapshot, PortError> {
    let buyer: String = row.try_get("buyer_id").map_err(port_error)?;
    let payment: Option<String> = row.try_get("payment_method").map_err(port_error)?;
    let Json(lines): Json<Vec<Line>> = row.try_get("lines").map_err(port_error)?;
    Ok(BasketSnapshot {
        id,
        owner: row.try_get("owner").map_err(port_error)?,
        buyer: BuyerId::try_from(buyer).map_err(|error| PortError::Failed(error.into()))?,
        status: unword::<Status>(row.try_get("status").map_err(port_error)?)?,
        lines,
        payment_method: payment.map(unword::<PaymentMethod>).transpose()?,
        version: Version(row.try_get("version").map_err(port_error)?),
        created_at: row.try_get("created_at").map_err(port_error)?,
        updated_at: row.try_get("updated_at").map_err(port_error)?,
    })
}

/// The word a unit variant is stored as: the one it has in JSON.
pub fn word(value: &impl Serialize) -> Result<String, PortError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        _ => Err(PortError::Failed("a value that should be one word".into())),
    }
}

fn unword<T: DeserializeOwned>(word: String) -> Result<T, PortError> {
    serde_json::from_value(serde_json::Value::String(word)).map_err(|error| PortError::Failed(error.into()))
}
