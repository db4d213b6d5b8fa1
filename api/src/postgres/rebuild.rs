//! Computes the read model again from the state.

use basket::application::BasketView;
use basket::application::ports::PortError;
use basket::domain::{Basket, BasketId};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::basket_row::basket;
use super::documents::BasketDocument;
use super::port_error;

/// Baskets that are locked at once.
const BATCH: i64 = 500;

/// Computes the read model again; returns how many baskets there are. Safe while commands run: each batch is locked
/// against them while it is written.
pub async fn rebuild_read_model(sql: &mut PgConnection) -> Result<u64, PortError> {
    let (mut rebuilt, mut after) = (0, None);
    loop {
        let mut transaction = sql.begin().await.map_err(port_error)?;
        let baskets = lock_batch(&mut transaction, after).await?;
        let Some(last) = baskets.last() else { break };
        after = Some(last.snapshot().id);
        rebuilt += u64::try_from(baskets.len()).unwrap_or(u64::MAX);
        write(&mut transaction, &baskets).await?;
        transaction.commit().await.map_err(port_error)?;
    }
    let orphans = "DELETE FROM basket_view v WHERE NOT EXISTS (SELECT FROM basket b WHERE b.id = v.id)";
    sqlx::query(orphans).execute(sql).await.map_err(port_error)?;
    Ok(rebuilt)
}

async fn lock_batch(sql: &mut PgConnection, after: Option<BasketId>) -> Result<Vec<Basket>, PortError> {
    let rows = sqlx::query(
        "SELECT id, owner, buyer_id, status, lines, payment_method, version, created_at, updated_at FROM basket
         WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2 FOR NO KEY UPDATE",
    )
    .bind(after.map(|id| id.0))
    .bind(BATCH)
    .fetch_all(sql)
    .await
    .map_err(port_error)?;
    rows.iter().map(basket).collect()
}

async fn write(sql: &mut PgConnection, baskets: &[Basket]) -> Result<(), PortError> {
    let view = |basket: &Basket| Json(BasketDocument::from(BasketView::from(basket)));
    let views: Vec<Json<BasketDocument>> = baskets.iter().map(view).collect();
    sqlx::query(
        "INSERT INTO basket_view (id, owner, buyer_id, status, view)
         SELECT b.id, b.owner, b.buyer_id, b.status, v.view
         FROM unnest($1::uuid[], $2::jsonb[]) AS v (id, view) JOIN basket b ON b.id = v.id
         ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, buyer_id = excluded.buyer_id,
                                        status = excluded.status, view = excluded.view",
    )
    .bind(baskets.iter().map(|basket| basket.snapshot().id.0).collect::<Vec<Uuid>>())
    .bind(views)
    .execute(sql)
    .await
    .map_err(port_error)?;
    Ok(())
}
