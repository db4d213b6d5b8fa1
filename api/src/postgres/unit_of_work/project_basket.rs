//! Stores a basket in the read model.

use basket::application::BasketView;
use basket::application::ports::PortError;
use basket::domain::Basket;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::postgres::basket_row::status;
use crate::postgres::documents::BasketDocument;
use crate::postgres::port_error;

/// In the transaction of the change, so a reader sees its own writes.
pub async fn project_basket(transaction: &mut PgConnection, basket: &Basket) -> Result<(), PortError> {
    let view = BasketDocument::from(BasketView::from(basket));
    let basket = basket.snapshot();
    sqlx::query(
        "INSERT INTO basket_view (id, owner, buyer_id, status, view) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET status = excluded.status, view = excluded.view",
    )
    .bind(basket.id.0)
    .bind(basket.owner.as_str())
    .bind(basket.buyer.as_str())
    .bind(status(basket))
    .bind(Json(view))
    .execute(transaction)
    .await
    .map_err(port_error)?;
    Ok(())
}
