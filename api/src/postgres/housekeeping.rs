//! What has to be done to the tables from time to time, each in small portions, so that nothing waits for it long.

use std::time::Duration;

use basket::application::BasketView;
use basket::application::ports::PortError;
use basket::domain::{Basket, BasketId, Version};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::basket_row::basket;
use super::documents::BasketDocument;
use super::port_error;

/// Baskets or keys worked on at once.
const PORTION: i64 = 500;
/// Tells this job from others that use advisory locks on the database: "basket" in ASCII.
const LOCK: i64 = 0x6261_736b_6574;

/// A basket that nobody touched for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Which.
    pub id: BasketId,
    /// In which state it was seen.
    pub version: Version,
}

/// Work on the tables, over a pool.
#[derive(Clone)]
pub struct Housekeeping {
    pool: PgPool,
}

impl Housekeeping {
    /// Over `pool`.
    pub fn new(pool: PgPool) -> Housekeeping {
        Housekeeping { pool }
    }

    /// Takes the turn to keep house, or `None` while another replica has it. It ends with the transaction, so a
    /// replica that dies does not keep it.
    pub async fn turn(&self) -> Result<Option<sqlx::Transaction<'static, sqlx::Postgres>>, PortError> {
        let mut transaction = self.pool.begin().await.map_err(port_error)?;
        let ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut *transaction)
            .await
            .map_err(port_error)?;
        // It is idle while the work is done in other transactions.
        let patient = "SET LOCAL idle_in_transaction_session_timeout = 0";
        sqlx::query(patient).execute(&mut *transaction).await.map_err(port_error)?;
        Ok(ours.then_some(transaction))
    }

    /// Open baskets that were last touched before `before`, the oldest first, after `after`.
    pub async fn idle_baskets(
        &self,
        before: DateTime<Utc>,
        after: Option<BasketId>,
    ) -> Result<Vec<Idle>, PortError> {
        let rows = sqlx::query(
            "SELECT id, version FROM basket
             WHERE status = 'open' AND updated_at < $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
        )
        .bind(before)
        .bind(after.map(|id| id.0))
        .bind(PORTION)
        .fetch_all(&self.pool)
        .await
        .map_err(port_error)?;
        let idle = |row: &sqlx::postgres::PgRow| {
            Ok(Idle { id: BasketId(row.try_get("id")?), version: Version(row.try_get("version")?) })
        };
        rows.iter().map(idle).collect::<Result<_, sqlx::Error>>().map_err(port_error)
    }

    /// Forgets idempotency keys older than `keep`; returns how many. The commands stay in the log.
    pub async fn expire_keys(&self, keep: Duration) -> Result<u64, PortError> {
        let mut expired = 0;
        loop {
            let portion = sqlx::query(
                "DELETE FROM idempotency_key WHERE ctid = ANY (ARRAY(
                     SELECT ctid FROM idempotency_key WHERE received_at < now() - make_interval(secs => $1)
                     ORDER BY received_at LIMIT $2))",
            )
            .bind(keep.as_secs_f64())
            .bind(PORTION)
            .execute(&self.pool)
            .await
            .map_err(port_error)?
            .rows_affected();
            expired += portion;
            if portion == 0 {
                return Ok(expired);
            }
        }
    }

    /// Makes the log's coming partitions and drops those that ended longer than `keep` ago; returns how many.
    pub async fn maintain_log(&self, keep: Option<Duration>) -> Result<i32, PortError> {
        sqlx::query_scalar("SELECT command_log_maintain(make_interval(secs => $1))")
            .bind(keep.map(|keep| keep.as_secs_f64()))
            .fetch_one(&self.pool)
            .await
            .map_err(port_error)
    }

    /// Makes the read model again from the state; returns how many baskets there are. Safe while commands run: each
    /// portion is locked against them while it is rewritten.
    pub async fn rebuild_read_model(&self) -> Result<u64, PortError> {
        let (mut rebuilt, mut after) = (0, None);
        loop {
            let mut transaction = self.pool.begin().await.map_err(port_error)?;
            let baskets = portion(&mut transaction, after).await?;
            let Some(last) = baskets.last() else { break };
            after = Some(last.snapshot().id);
            rebuilt += u64::try_from(baskets.len()).unwrap_or(u64::MAX);
            write(&mut transaction, &baskets).await?;
            transaction.commit().await.map_err(port_error)?;
        }
        let orphans = "DELETE FROM basket_view v WHERE NOT EXISTS (SELECT FROM basket b WHERE b.id = v.id)";
        sqlx::query(orphans).execute(&self.pool).await.map_err(port_error)?;
        Ok(rebuilt)
    }
}

async fn portion(transaction: &mut PgConnection, after: Option<BasketId>) -> Result<Vec<Basket>, PortError> {
    let rows = sqlx::query(
        "SELECT * FROM basket WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2 FOR NO KEY UPDATE",
    )
    .bind(after.map(|id| id.0))
    .bind(PORTION)
    .fetch_all(transaction)
    .await
    .map_err(port_error)?;
    rows.iter().map(basket).collect()
}

async fn write(transaction: &mut PgConnection, baskets: &[Basket]) -> Result<(), PortError> {
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
    .execute(transaction)
    .await
    .map_err(port_error)?;
    Ok(())
}
