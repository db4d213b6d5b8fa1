//! Reads the read model.

use basket::application::ports::{BoxFuture, PortError};
use basket::application::queries::{BasketFilter, BasketQueries, Page, PageRequest};
use basket::application::{BasketSummary, BasketView};
use basket::domain::BasketId;
use sqlx::PgPool;
use sqlx::types::Json;

use super::documents::BasketDocument;
use super::port_error;
use super::summary::SummaryDocument;

/// Queries over a pool.
pub struct PostgresBaskets {
    pool: PgPool,
}

impl PostgresBaskets {
    /// Over `pool`.
    pub fn new(pool: PgPool) -> PostgresBaskets {
        PostgresBaskets { pool }
    }
}

impl BasketQueries for PostgresBaskets {
    fn get<'a>(
        &'a self,
        owner: &'a str,
        id: BasketId,
    ) -> BoxFuture<'a, Result<Option<BasketView>, PortError>> {
        Box::pin(async move {
            let view: Option<Json<BasketDocument>> =
                sqlx::query_scalar("SELECT view FROM basket_view WHERE id = $1 AND owner = $2")
                    .bind(id.0)
                    .bind(owner)
                    .fetch_optional(&self.pool)
                    .await
                    .map_err(port_error)?;
            view.map(|Json(view)| view.try_into()).transpose()
        })
    }

    fn list<'a>(
        &'a self,
        owner: &'a str,
        filter: &'a BasketFilter,
        request: PageRequest<BasketId>,
    ) -> BoxFuture<'a, Result<Page<BasketSummary>, PortError>> {
        Box::pin(async move {
            let found: Vec<Json<SummaryDocument>> = sqlx::query_scalar(
                // The lines stay in the database: those of a page are some 24 MB at most.
                "SELECT view - 'lines' || jsonb_build_object('line_count', jsonb_array_length(view -> 'lines'))
                 FROM basket_view
                 WHERE owner = $1 AND ($2::text IS NULL OR buyer_id = $2) AND ($3::text IS NULL OR status = $3)
                   AND ($4::uuid IS NULL OR id < $4)
                 ORDER BY id DESC LIMIT $5",
            )
            .bind(owner)
            .bind(filter.buyer_id.as_ref().map(|buyer| buyer.as_str()))
            .bind(filter.status.map(|status| status.into_str()))
            .bind(request.after.map(|id| id.0))
            .bind(i64::from(request.limit) + 1)
            .fetch_all(&self.pool)
            .await
            .map_err(port_error)?;
            let summaries: Result<Vec<BasketSummary>, PortError> =
                found.into_iter().map(|Json(summary)| summary.try_into()).collect();
            Ok(page(summaries?, request.limit))
        })
    }
}

/// A page of the entries. One more than asked for was read: it tells whether there is a next page.
pub(super) fn page<T>(mut entries: Vec<T>, limit: u32) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = entries.len() > limit;
    entries.truncate(limit);
    Page { entries, more }
}
