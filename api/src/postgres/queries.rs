//! Reading the read model.

use basket::application::BasketView;
use basket::application::ports::{BoxFuture, PortError};
use basket::application::queries::{BasketFilter, BasketQueries, Page};
use basket::domain::BasketId;
use sqlx::PgPool;
use sqlx::types::Json;

use super::port_error;

/// Queries over a pool.
pub struct ViewQueries {
    pool: PgPool,
}

impl ViewQueries {
    /// Over `pool`.
    pub fn new(pool: PgPool) -> ViewQueries {
        ViewQueries { pool }
    }
}

impl BasketQueries for ViewQueries {
    fn get(&self, id: BasketId) -> BoxFuture<'_, Result<Option<BasketView>, PortError>> {
        Box::pin(async move {
            let view: Option<Json<BasketView>> =
                sqlx::query_scalar("SELECT view FROM basket_view WHERE id = $1")
                    .bind(id.0)
                    .fetch_optional(&self.pool)
                    .await
                    .map_err(port_error)?;
            Ok(view.map(|Json(view)| view))
        })
    }

    fn list<'a>(&'a self, filter: &'a BasketFilter) -> BoxFuture<'a, Result<Page, PortError>> {
        Box::pin(async move {
            let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
            // One more than asked for tells whether there is a next page.
            let found: Vec<Json<BasketView>> = sqlx::query_scalar(
                "SELECT view FROM basket_view
                 WHERE ($1::text IS NULL OR buyer_id = $1) AND ($2::uuid IS NULL OR id < $2)
                 ORDER BY id DESC LIMIT $3",
            )
            .bind(&filter.buyer_id)
            .bind(filter.after.map(|id| id.0))
            .bind(i64::from(filter.limit) + 1)
            .fetch_all(&self.pool)
            .await
            .map_err(port_error)?;
            let more = found.len() > limit;
            let baskets: Vec<BasketView> = found.into_iter().take(limit).map(|Json(view)| view).collect();
            let next = baskets.last().filter(|_| more).map(|basket| basket.id);
            Ok(Page { baskets, next })
        })
    }
}
