//! The publication: created where it is missing, and marked as this resource's, so that one of another owner is never dropped.

use outbox_relay::config::{self, quote};
use outbox_relay::error::RelayError;
use outbox_relay::postgres::publication::{self, PublicationState};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::Context;
use crate::desired::configuration::identity;
use crate::events::EventType;
use crate::resource::OutboxRelay;

/// Makes sure that the publication exists and suits; marks one that it creates as this resource's.
pub(super) async fn create_if_missing(
    relay: &OutboxRelay,
    context: &Context,
    sql: &mut PgConnection,
    source: &config::Source,
) -> Result<(), RelayError> {
    if publication::state(sql, source).await? == PublicationState::Suitable {
        return Ok(());
    }
    let name = &source.publication.name;
    let mut transaction = sql.begin().await?;
    publication::create_if_missing(&mut transaction, source).await?;
    let comment = quote_literal(&ownership_comment(relay));
    let mark = format!("COMMENT ON PUBLICATION {} IS {comment}", quote(name));
    sqlx::query(AssertSqlSafe(mark)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    let note = format!("made publication {name}");
    context.publish_event(relay, EventType::Normal, "PublicationCreated", &note);
    Ok(())
}

/// Drops a publication that is the resource's own.
pub(super) async fn drop(sql: &mut PgConnection, name: &str) -> Result<(), RelayError> {
    let statement = format!("DROP PUBLICATION IF EXISTS {}", quote(name));
    sqlx::query(AssertSqlSafe(statement)).execute(sql).await?;
    tracing::info!(publication = name, "dropped the publication");
    Ok(())
}

/// The comment of a publication that the operator has created for `relay`.
fn ownership_comment(relay: &OutboxRelay) -> String {
    format!("made by outbox-operator for {}", identity(relay))
}

/// Whether the operator has created a publication for `relay`.
pub(super) async fn is_own(
    sql: &mut PgConnection,
    name: &str,
    relay: &OutboxRelay,
) -> Result<bool, RelayError> {
    let comment: Option<String> = sqlx::query_scalar(
        "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = $1",
    )
    .bind(name)
    .fetch_optional(sql)
    .await?
    .flatten();
    Ok(comment.is_some_and(|comment| comment == ownership_comment(relay)))
}

fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
