//! Stores the state of a basket.

use basket::application::ports::PortError;
use basket::domain::{Basket, BasketSnapshot, Version};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::postgres::basket_row::{payment_method, status};
use crate::postgres::documents::line_documents;
use crate::postgres::port_error;

/// Inserts a basket that is new, or updates the version that the command has loaded.
pub async fn save_basket(transaction: &mut PgConnection, basket: &Basket) -> Result<(), PortError> {
    match basket.stored_version() {
        None => insert(transaction, basket.snapshot()).await,
        Some(stored) => update(transaction, basket.snapshot(), stored).await,
    }
}

async fn insert(transaction: &mut PgConnection, basket: &BasketSnapshot) -> Result<(), PortError> {
    sqlx::query(
        "INSERT INTO basket
             (id, owner, buyer_id, status, lines, payment_method, version, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(basket.id.0)
    .bind(basket.owner.as_str())
    .bind(basket.buyer.as_str())
    .bind(status(basket))
    .bind(Json(line_documents(&basket.lines)))
    .bind(payment_method(basket))
    .bind(basket.version.0)
    .bind(basket.created_at)
    .bind(basket.updated_at)
    .execute(transaction)
    .await
    .map_err(port_error)?;
    Ok(())
}

async fn update(
    transaction: &mut PgConnection,
    basket: &BasketSnapshot,
    stored: Version,
) -> Result<(), PortError> {
    let updated = sqlx::query(
        "UPDATE basket SET status = $2, lines = $3, payment_method = $4, version = $5, updated_at = $6
         WHERE id = $1 AND version = $7",
    )
    .bind(basket.id.0)
    .bind(status(basket))
    .bind(Json(line_documents(&basket.lines)))
    .bind(payment_method(basket))
    .bind(basket.version.0)
    .bind(basket.updated_at)
    .bind(stored.0)
    .execute(transaction)
    .await
    .map_err(port_error)?;
    if updated.rows_affected() == 1 {
        return Ok(());
    }
    Err(PortError::Conflict(format!("basket {} is not at version {}", basket.id, stored.0).into()))
}
