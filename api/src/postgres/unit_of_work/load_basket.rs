//! Loads the basket of a command.

use basket::application::ports::PortError;
use basket::domain::{Basket, BasketId};
use sqlx::PgConnection;

use crate::postgres::basket_row::basket;
use crate::postgres::port_error;

/// The row is locked until the transaction ends: commands on one basket queue here, so that their events get the order of
/// the versions.
pub async fn load_basket(transaction: &mut PgConnection, id: BasketId) -> Result<Option<Basket>, PortError> {
    let row = sqlx::query(
        "SELECT id, owner, buyer_id, status, lines, payment_method, version, created_at, updated_at
         FROM basket WHERE id = $1 FOR NO KEY UPDATE",
    )
    .bind(id.0)
    .fetch_optional(transaction)
    .await
    .map_err(port_error)?;
    row.map(|row| basket(&row)).transpose()
}
