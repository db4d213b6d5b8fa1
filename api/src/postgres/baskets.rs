//! Reads the read model.

use basket::application::ports::{BoxFuture, PortError};
use basket::application::queries::{BasketFilter, BasketQueries, Page, PageRequest};
use basket::application::{BasketSummary, BasketView};
use basket::domain::{BasketId, BuyerId};
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder};

use super::documents::BasketDocument;
use super::keyset::Keyset;
use super::summary::SummaryDocument;
use super::{Database, port_error};

/// Queries over a database.
pub struct PostgresBaskets {
    database: Database,
}

impl PostgresBaskets {
    /// Over `database`.
    pub fn new(database: Database) -> PostgresBaskets {
        PostgresBaskets { database }
    }
}

impl BasketQueries for PostgresBaskets {
    fn get<'a>(
        &'a self,
        owner: &'a str,
        id: BasketId,
    ) -> BoxFuture<'a, Result<Option<BasketView>, PortError>> {
        Box::pin(self.database.unless_lost(async move {
            let mut sql = self.database.connection().await.map_err(port_error)?;
            let view: Option<Json<BasketDocument>> =
                sqlx::query_scalar("SELECT view FROM basket_view WHERE id = $1 AND owner = $2")
                    .bind(id.0)
                    .bind(owner)
                    .fetch_optional(&mut *sql)
                    .await
                    .map_err(port_error)?;
            view.map(|Json(view)| view.try_into()).transpose()
        }))
    }

    fn list<'a>(
        &'a self,
        owner: &'a str,
        filter: &'a BasketFilter,
        request: PageRequest<BasketId>,
    ) -> BoxFuture<'a, Result<Page<BasketSummary>, PortError>> {
        Box::pin(self.database.unless_lost(async move {
            let mut keyset = Keyset::new([
                ("owner", Some(owner)),
                ("buyer_id", filter.buyer_id.as_ref().map(BuyerId::as_str)),
                ("status", filter.status.map(|status| status.into_str())),
            ]);
            if let Some(after) = request.after {
                keyset.before(after.0);
            }
            let mut list = QueryBuilder::<Postgres>::new(SELECT);
            keyset.push(&mut list, i64::from(request.limit) + 1);
            let mut sql = self.database.list_connection().await.map_err(port_error)?;
            let found: Vec<Json<SummaryDocument>> =
                list.build_query_scalar().fetch_all(&mut *sql).await.map_err(port_error)?;
            drop(sql);
            let summaries: Result<Vec<BasketSummary>, PortError> =
                found.into_iter().map(|Json(summary)| summary.try_into()).collect();
            Ok(page(summaries?, request.limit))
        }))
    }
}

/// The lines stay in the database: those of a page are some 24 MB at most.
const SELECT: &str = "
    SELECT view - 'lines' || jsonb_build_object('line_count', jsonb_array_length(view -> 'lines'))
    FROM basket_view WHERE true";

/// A page of the entries. One more than asked for was read: it tells whether there is a next page.
pub(super) fn page<T>(mut entries: Vec<T>, limit: u32) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = entries.len() > limit;
    entries.truncate(limit);
    Page { entries, more }
}
