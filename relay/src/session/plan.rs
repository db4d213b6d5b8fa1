//! What a session would do, for `outbox-relay doctor`.

use pg_replication::Host;
use sqlx::postgres::PgConnection;

use super::decision::{DeliveryPhase, StartDecision};
use super::server::{ServerInfo, decide_now};
use crate::config::{Access, Config};
use crate::error::RelayError;
use crate::postgres::{connection, preconditions};

/// One sentence on what a session would do first if it started now. Does not take the slot.
pub async fn first_step(
    sql: &mut PgConnection,
    config: &Config,
    address: &Host,
) -> Result<String, RelayError> {
    let access = connection::access(&config.source)?;
    let same_host = Access { hosts: vec![address.clone()], ..access.clone() };
    let mut client = connection::connect_replication(&config.source, same_host).await?;
    if client.is_pooled() {
        connection::check_not_shared(&config.source, &access, address, sql).await?;
    }
    let server = ServerInfo::identify(&mut client, address.clone(), None).await?;
    preconditions::check_same_server(sql, server.history()).await?;
    Ok(match decide_now(sql, config, &server).await?.decision {
        StartDecision::CreateSlot => "a relay would create the slot".to_owned(),
        StartDecision::RecreateSlot => {
            "a relay would drop and recreate the slot: its creation was not completed".to_owned()
        }
        StartDecision::ReplaceSlot(cause) => format!(
            "a relay would replace the slot, and deliver from the table the rows that are missing in Kafka ({})",
            cause.name()
        ),
        StartDecision::Deliver(phase @ DeliveryPhase::Snapshot { .. }) if phase.refill().is_some() => {
            format!("a relay would continue to deliver the missing rows from before {}", phase.stream_start())
        }
        StartDecision::Deliver(DeliveryPhase::Snapshot { from, .. }) => {
            format!("a relay would deliver the initial snapshot, the rows from before {from}")
        }
        StartDecision::Deliver(DeliveryPhase::Stream { confirmed, .. }) => {
            format!("a relay would continue from {confirmed}")
        }
    })
}
