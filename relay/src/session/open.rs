//! Opens a session: connects, decides how to start, creates the slot if there is none, and takes it.

use std::time::Duration;

use pg_replication::{Client, EndLsn, PgOutput};
use sqlx::postgres::PgConnection;

use super::claim::{OpenSession, claim_checkpoint};
use super::decision::{DeliveryPhase, StartDecision};
use super::memory::Memory;
use super::replace_slot::{Gap, replace_slot};
use super::server::{Decided, ServerInfo, decide_now};
use super::slot_wait;
use super::{Context, bootstrap};
use crate::config::{Config, StartAt};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::slot_holder::{self, Own};
use crate::postgres::{columns, connection, preconditions, publication, table};

/// Limit for reading and writing the checkpoint while this session holds the slot and does not read its stream: half of
/// the default `wal_sender_timeout`.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn open(context: &Context, memory: &mut Memory) -> Result<OpenSession, RelayError> {
    let config = &*context.config;
    let access = connection::access(&config.source)?;
    // The replication connection comes first: it selects the host and address that the SQL connection has to use.
    let mut client = connection::connect_replication(&config.source, access.clone()).await?;
    let address = client.address().clone();
    let server = ServerInfo::identify(&mut client, address, memory.reached).await?;
    let address = &server.address;
    let mut sql = connection::connect_to(&config.source, &access, address, "session").await?;
    if client.is_pooled() {
        connection::check_not_shared(&config.source, &access, address, &mut sql).await?;
    }
    context.status.set_server(address);
    preconditions::check_same_server(&mut sql, server.history()).await?;
    preconditions::check_preconditions(&mut sql, &config.source).await?;
    // Check before START_REPLICATION, which would write an error into the server log at every attempt.
    slot_wait::until_free(&mut sql, config, &mut memory.slot).await?;
    table::check(&mut sql, config).await?;
    let own = slot_holder::announce_companion(&mut sql, client.process_id().cast_signed()).await?;
    let decided = within_limit(decide_now(&mut sql, config, &server)).await?;
    let binary = reads_binary(&mut sql, config, memory, &decided).await?;
    let mut table = within_limit(publication::ensure(&mut sql, config)).await?;
    if decided.decision.creates_slot() {
        create_slot(&mut sql, &mut client, context, &server, memory, &own).await?;
        // The new slot streams only the current table, which may have been recreated while the slot creation waited.
        table = table::oid(&mut sql, config).await?;
    }
    memory.slot.on_taken(own);
    let output = PgOutput {
        publications: vec![config.source.publication.name.clone()],
        binary,
        // Heartbeats are logical decoding messages.
        messages: true,
    };
    // Zero means the slot's confirmed position. Never start beyond it: only a checkpoint that was read while this
    // session holds the slot proves that rows after that position are in Kafka.
    let stream = client.start_replication(&config.source.slot.name, EndLsn::ZERO, &output).await?;
    tracing::info!(slot = %config.source.slot.name, "this relay holds the slot");
    // The stream is not read until this completes, hence the limit.
    let claiming = claim_checkpoint(config, server, stream, binary, sql, table, memory);
    let claimed = tokio::time::timeout(CHECKPOINT_TIMEOUT, claiming).await;
    claimed.map_err(|_| {
        let what = format!(
            "the relay holds slot {}, but could not read and write its checkpoint within {CHECKPOINT_TIMEOUT:?}: \
             another session may hold a lock on outbox_checkpoint",
            config.source.slot.name
        );
        RelayError::new(ErrorKind::CheckpointStalled, what)
    })?
}

/// Gives up a query that waits for a lock or a silent server, so that the reason is shown before the next attempt.
async fn within_limit<T>(query: impl Future<Output = Result<T, RelayError>>) -> Result<T, RelayError> {
    tokio::time::timeout(CHECKPOINT_TIMEOUT, query).await.map_err(|_| {
        let what = format!(
            "checkpoint and publication could not be read within {CHECKPOINT_TIMEOUT:?}: another session may hold a \
             lock on outbox_checkpoint or the outbox table"
        );
        RelayError::new(ErrorKind::CheckpointStalled, what)
    })?
}

/// Whether to request values in binary form, which is faster and works for most tables. Before the first delivery an
/// unreadable column layout is an error. Later it is only a warning: the rows in the stream may belong to an earlier
/// layout, and each of them carries its own.
async fn reads_binary(
    sql: &mut PgConnection,
    config: &Config,
    memory: &Memory,
    decided: &Decided,
) -> Result<bool, RelayError> {
    let binary = !memory.text_form;
    let columns = columns::of(sql, &config.source).await?;
    let streams = matches!(decided.decision, StartDecision::Deliver(DeliveryPhase::Stream { .. }));
    let continues = streams && decided.checkpoint.is_some();
    match columns::layout(&columns, &config.routing.by_field) {
        Ok(layout) => Ok(binary && !layout.needs_text()),
        Err(error) if continues => {
            tracing::warn!(
                "rows written with the current columns of the outbox table will stop delivery: {error}"
            );
            Ok(binary)
        }
        Err(error) => Err(error),
    }
}

/// Creates the slot, unless another relay created it before this one got the lock.
async fn create_slot(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    server: &ServerInfo,
    memory: &mut Memory,
    own: &Own,
) -> Result<(), RelayError> {
    let config = &*context.config;
    bootstrap::lock(sql, &config.source.slot.name, &memory.slot).await?;
    memory.slot.on_creation_begun(own.clone());
    bootstrap::watch_client_connection(sql, client).await?;
    let Decided { decision, checkpoint } = decide_now(sql, config, server).await?;
    let history = server.history();
    if let (StartDecision::ReplaceSlot(cause), Some(checkpoint)) = (&decision, &checkpoint) {
        let is_counted = memory.ended_by == Some(cause.kind());
        let gap = Gap { checkpoint, cause: *cause, is_counted };
        replace_slot(sql, client, context, history, gap).await?;
    } else if decision.creates_slot() {
        if decision == StartDecision::RecreateSlot {
            bootstrap::drop_leftover(sql, &config.source.slot.name).await?;
        }
        if config.source.start == StartAt::Table {
            bootstrap::create_slot_with_snapshot(sql, client, context, history).await?;
        } else {
            bootstrap::create_slot(sql, client, context, history).await?;
        }
    }
    bootstrap::unlock(sql, &config.source.slot.name).await
}
