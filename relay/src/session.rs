//! One session: from connecting to the first error. Starting, reconnecting and rebuilding the producers after a failed
//! delivery all run this code, so delivery can begin in one way only.

pub mod bootstrap;
pub mod decision;
pub mod end;
pub mod event_loop;
pub mod slot_guard;
pub mod slot_wait;

use std::sync::Arc;
use std::time::Duration;

use pg_replication::{Client, EndLsn, Host, Lsn, PgOutput, Stream, TimelineHistory};
use sqlx::postgres::PgConnection;
use tokio::sync::watch;

use self::decision::{StartDecision, StartInputs, decide};
use self::end::SessionEnd;
use self::event_loop::EventLoop;
use self::slot_guard::{Now, SlotGuard};
use self::slot_wait::Memory;
use crate::config::{Access, Config, StartAt};
use crate::dead_letters::replay::ReplayHandle;
use crate::delivery::{Delivery, InitialState, KafkaBroker, OutboxTable, StreamForm, memory_limit};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::credentials;
use crate::kafka::own_records::OwnRecords;
use crate::kafka::producers::{AckQueue, Producers};
use crate::kafka::queries::KafkaQueries;
use crate::kafka::scanner::PartitionScanner;
use crate::postgres::backfill::{Backfill, Pages};
use crate::postgres::checkpoint::{
    self, Checkpoint, CheckpointPhase, CheckpointUpdate, ClusterTimeline, CommittedCheckpoint, Writer,
};
use crate::postgres::slot_holder::{self, Own};
use crate::postgres::{columns, connection, preconditions, publication, slot, table};
use crate::progress::lineage::Lineage;
use crate::routing::mapping::RoutingHistory;
use crate::status::metrics::Metrics;
use crate::status::{Phase, Status};
use crate::topics::partitions::Partitions;

/// Limit for reading and writing the checkpoint while this session holds the slot and does not read its stream: half of
/// the default `wal_sender_timeout`.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(30);

/// Shared by all sessions of the process.
#[derive(Clone)]
pub struct Context {
    /// The configuration. Each session reads the credentials in it again.
    pub config: Arc<Config>,
    /// The state that `/status` and `/readyz` show.
    pub status: Status,
    /// The Prometheus metrics.
    pub metrics: Metrics,
    /// Requests to replay dead letters.
    pub replays: ReplayHandle,
}

/// An open stream and everything that runs on it.
struct OpenSession {
    stream: Stream,
    /// Process id of the walsender that serves the stream.
    walsender_pid: Option<i64>,
    sql: PgConnection,
    /// The host both connections use.
    server: Host,
    history: ClusterTimeline,
    start: InitialState,
    /// The initial snapshot, if its rows are still to be delivered before the stream.
    snapshot: Option<Backfill>,
    committed: CommittedCheckpoint,
}

/// Runs one session. `Ok` means that `shutdown` was requested. An error goes to `report` as soon as it is known,
/// because the cleanup after it, such as waiting for the last acknowledgements, may take a while.
pub async fn run(
    context: &Context,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
    report: &mut impl FnMut(&RelayError),
) -> Result<SessionEnd, RelayError> {
    let context = &Context {
        config: Arc::new(credentials::current(&context.config).inspect_err(|error| report(error))?),
        ..context.clone()
    };
    let mut requested = shutdown.clone();
    let opened = tokio::select! {
        opened = open(context, memory) => opened.inspect_err(|error| report(error))?,
        // This session sent nothing, so there is nothing to drain. What earlier sessions left unconfirmed is unknown.
        _ = requested.wait_for(|stop| *stop) => return Ok(SessionEnd::NotStreaming),
    };
    let ended = stream(context, opened, memory, shutdown, report).await;
    memory.text_form |= ended.as_ref().is_err_and(|error| error.kind == ErrorKind::StreamFormChanged);
    ended
}

async fn open(context: &Context, memory: &mut Memory) -> Result<OpenSession, RelayError> {
    let config = &*context.config;
    let access = connection::access(&config.source)?;
    // The replication connection comes first: it selects the host and address that the SQL connection has to use.
    let mut client = connection::connect_replication(&config.source, access.clone()).await?;
    let identity = client.identify_system().await?;
    let timelines = client.timeline_history(identity.timeline).await?;
    let address = client.address().clone();
    let mut sql = connection::connect_to(&config.source, &access, &address, "session").await?;
    if client.is_pooled() {
        connection::check_not_shared(&config.source, &access, &address, &mut sql).await?;
    }
    context.status.set_server(&address);
    let server =
        ServerInfo { system_identifier: identity.system_id, timelines, reached: memory.reached, address };
    preconditions::check_same_server(&mut sql, server.history()).await?;
    preconditions::check_preconditions(&mut sql, &config.source).await?;
    // Check before START_REPLICATION, which would write an error into the server log at every attempt.
    slot_wait::until_free(&mut sql, config, memory).await?;
    table::check(&mut sql, config).await?;
    let own = slot_holder::announce_companion(&mut sql, client.process_id().cast_signed()).await?;
    let decided = within_limit(decide_now(&mut sql, config, &server)).await?;
    let binary = reads_binary(&mut sql, config, memory, &decided).await?;
    let mut table = within_limit(publication::ensure(&mut sql, config)).await?;
    if creates(decided.decision) {
        create_slot(&mut sql, &mut client, context, &server, memory, &own).await?;
        // The new slot streams only the current table, which may have been recreated while the slot creation waited.
        table = table::oid(&mut sql, config).await?;
    }
    memory.on_slot_taken(own, false);
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
    let continues = matches!(decided.decision, StartDecision::Stream { .. }) && decided.checkpoint.is_some();
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

/// Takes the checkpoint over. This session holds the slot, so no other relay writes the checkpoint now.
async fn claim_checkpoint(
    config: &Config,
    server: ServerInfo,
    stream: Stream,
    binary: bool,
    mut sql: PgConnection,
    table: Option<u32>,
    memory: &mut Memory,
) -> Result<OpenSession, RelayError> {
    let slot_name = &config.source.slot.name;
    let walsender_pid = slot::state(&mut sql, slot_name).await?.and_then(|slot| slot.active_pid);
    let decided = decide_now(&mut sql, config, &server).await?;
    let (confirmed, snapshot) = match (decided.decision, decided.snapshot()) {
        (StartDecision::Snapshot { from }, Some(backfill)) => (from, Some(backfill)),
        (StartDecision::Stream { confirmed, .. }, _) => (confirmed, None),
        _ => {
            let what = format!("slot {slot_name} disappeared while the relay was starting to stream from it");
            return Err(RelayError::new(ErrorKind::SlotLost, what));
        }
    };
    let history = server.history();
    for doubt in table::doubts(&mut sql, config).await? {
        tracing::warn!("{doubt}");
    }
    adopt_checkpoint(&mut sql, config, &decided, history, confirmed).await?;
    checkpoint::store_owner(&mut sql, config).await?;
    let server_started = slot::server_start_time(&mut sql).await?;
    let flush = slot::flush_lsn(&mut sql).await?;
    let snapshot_cursor = snapshot.as_ref().map(|backfill| backfill.after);
    // Snapshot rows get positions right before the slot's start, and an earlier session may have sent some of them.
    let end = if snapshot_cursor.is_some() { flush.max(just_behind(confirmed)) } else { flush };
    let (stored, mut offsets) = decided
        .checkpoint
        .map_or_else(Default::default, |checkpoint| (checkpoint.mappings, checkpoint.offsets));
    if let Some(lost) = &memory.lost {
        lost.apply(&mut offsets);
    }
    let refusal = memory.refusal.take();
    let mut mappings = mappings_of(config, stored, confirmed, end);
    if let Some(refusal) = refusal.as_ref().filter(|refusal| refusal.is_poison)
        && !mappings.refused.add(refusal.refused())
    {
        let what = "Kafka refuses row after row: the checkpoint already holds as many refused, unconfirmed rows as it can";
        return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
    }
    let progress = CheckpointUpdate { confirmed, copied: snapshot_cursor, mappings, revision: 0, offsets };
    let committed = checkpoint::write_now(&mut sql, config, history, &progress).await?;
    memory.lost = None;
    let CheckpointUpdate { mappings, offsets, .. } = progress;
    let partitions = Partitions::from_checkpoint(&mappings, &offsets);
    let form = match binary {
        true => StreamForm::Binary,
        false => StreamForm::Text { largest_value: mappings.largest_value() },
    };
    let lineage = Lineage::new(server.timelines, end);
    let table = OutboxTable { name: config.source.table.clone(), oid: table };
    let start = InitialState {
        confirmed,
        snapshot_cursor,
        form,
        lineage,
        server_started,
        mappings,
        partitions,
        table,
        refusal,
    };
    Ok(OpenSession {
        stream,
        walsender_pid,
        sql,
        server: server.address,
        history,
        start,
        snapshot,
        committed,
    })
}

fn just_behind(lsn: EndLsn) -> EndLsn {
    EndLsn::new(Lsn::from(lsn.lsn().as_u64().saturating_add(1)))
}

/// The routing to deliver with: the configured one, plus the earlier ones from the checkpoint for rows that an earlier
/// session may have sent already.
fn mappings_of(
    config: &Config,
    stored: Option<RoutingHistory>,
    confirmed: EndLsn,
    horizon: EndLsn,
) -> RoutingHistory {
    let stored_version = stored.as_ref().map(|stored| stored.version);
    let mappings = RoutingHistory::at_start(stored, config.routing_rule(), confirmed, horizon);
    if stored_version.is_some_and(|stored| stored != mappings.version) {
        tracing::info!(
            version = mappings.version,
            until = %horizon,
            "the routing or a limit has changed; rows committed before that LSN are still routed by the earlier version"
        );
    }
    mappings
}

/// One sentence on what a session would do first if it started now. Does not take the slot.
pub async fn plan(sql: &mut PgConnection, config: &Config, address: &Host) -> Result<String, RelayError> {
    let access = connection::access(&config.source)?;
    let same_host = Access { hosts: vec![address.clone()], ..access.clone() };
    let mut client = connection::connect_replication(&config.source, same_host).await?;
    if client.is_pooled() {
        connection::check_not_shared(&config.source, &access, address, sql).await?;
    }
    let identity = client.identify_system().await?;
    let timelines = client.timeline_history(identity.timeline).await?;
    let server = ServerInfo {
        system_identifier: identity.system_id,
        timelines,
        reached: None,
        address: address.clone(),
    };
    preconditions::check_same_server(sql, server.history()).await?;
    Ok(match decide_now(sql, config, &server).await?.decision {
        StartDecision::CreateSlot => "a relay would create the slot".to_owned(),
        StartDecision::RecreateSlot => {
            "a relay would drop and recreate the slot: its creation was not completed".to_owned()
        }
        StartDecision::Snapshot { from } => {
            format!("a relay would deliver the initial snapshot, the rows from before {from}")
        }
        StartDecision::Stream { confirmed, .. } => format!("a relay would continue from {confirmed}"),
    })
}

/// The server, as the replication connection describes it.
struct ServerInfo {
    system_identifier: u64,
    timelines: TimelineHistory,
    /// The position this process had confirmed when it last streamed.
    reached: Option<(ClusterTimeline, EndLsn)>,
    address: Host,
}

impl ServerInfo {
    fn history(&self) -> ClusterTimeline {
        ClusterTimeline { system_identifier: self.system_identifier, timeline: self.timelines.timeline() }
    }
}

/// A decision and the checkpoint it is based on.
struct Decided {
    decision: StartDecision,
    checkpoint: Option<Checkpoint>,
}

impl Decided {
    /// The rows of the initial snapshot that are still to be delivered.
    fn snapshot(&self) -> Option<Backfill> {
        match &self.checkpoint.as_ref()?.progress {
            CheckpointPhase::Snapshotting { snapshot, cursor, .. } => {
                Some(Backfill { snapshot: snapshot.clone(), after: *cursor })
            }
            _ => None,
        }
    }
}

async fn decide_now(
    sql: &mut PgConnection,
    config: &Config,
    server: &ServerInfo,
) -> Result<Decided, RelayError> {
    // Read the slot before the checkpoint: another relay may be advancing both, and in this order the slot is never
    // seen ahead of the checkpoint.
    let slot = slot::state(sql, &config.source.slot.name).await?;
    let checkpoint = checkpoint::load(sql, config).await?;
    let decision = decide(&StartInputs {
        system_identifier: server.system_identifier,
        timelines: &server.timelines,
        flush: slot::flush_lsn(sql).await?,
        reached: server.reached,
        source: &config.source,
        checkpoint: checkpoint.as_ref(),
        slot: slot.as_ref(),
    })?;
    Ok(Decided { decision, checkpoint })
}

fn creates(decision: StartDecision) -> bool {
    matches!(decision, StartDecision::CreateSlot | StartDecision::RecreateSlot)
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
    bootstrap::lock(sql, &config.source.slot.name, memory).await?;
    memory.on_slot_taken(own.clone(), true);
    bootstrap::watch_client_connection(sql, client).await?;
    let decision = decide_now(sql, config, server).await?.decision;
    if creates(decision) {
        let history = server.history();
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

/// Moves the checkpoint to the server's current timeline: registers a new checkpoint, or carries one over a promotion
/// or a restore. This session holds the slot.
async fn adopt_checkpoint(
    sql: &mut PgConnection,
    config: &Config,
    decided: &Decided,
    history: ClusterTimeline,
    confirmed: EndLsn,
) -> Result<(), RelayError> {
    let Some(checkpoint) = &decided.checkpoint else {
        if publication::may_be_newer_than_slot(sql, config).await? {
            let (slot, publication) = (&config.source.slot.name, &config.source.publication.name);
            tracing::warn!(
                %slot, %publication,
                "the slot may be older than the publication: the stream does not contain rows that were written \
                 before the table was published"
            );
        }
        return checkpoint::register(sql, config, history).await;
    };
    let diverged = matches!(decided.decision, StartDecision::Stream { diverged: true, .. });
    if diverged {
        tracing::warn!(
            %confirmed,
            "the checkpoint is ahead of this server's history; continuing from the last common position. Events that \
             were delivered beyond it are in Kafka, but not in this database"
        );
    }
    if checkpoint.history == history && !diverged {
        return Ok(());
    }
    let was = checkpoint.history;
    tracing::info!(
        from = was.timeline,
        to = history.timeline,
        "moving the checkpoint to the server's timeline"
    );
    checkpoint::move_to_timeline(sql, config, was, history, confirmed).await
}

async fn stream(
    context: &Context,
    opened: OpenSession,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
    report: &mut impl FnMut(&RelayError),
) -> Result<SessionEnd, RelayError> {
    let history = opened.history;
    // Opened before the status shows "Streaming", so that a replay is accepted from then on.
    let mut replays = context.replays.open();
    let mut event_loop = event_loop(context, opened).await.inspect_err(|error| report(error))?;
    context.metrics.streaming.set(1);
    let stop = shutdown.clone();
    let ended = tokio::select! {
        ended = event_loop.run(shutdown, &mut replays) => ended,
        error = credentials::rotated(&context.config.sink, stop) => Err(error),
    };
    memory.reached = Some((history, event_loop.confirmed()));
    context.metrics.streaming.set(0);
    context.metrics.in_flight_events.set(0);
    context.metrics.in_flight_bytes.set(0);
    context.metrics.connected.with_label_values(&["kafka"]).set(0);
    let ended = if let Err(error) = ended {
        // First of all, because the rest takes time: once the slot is free another relay may send, so this one must not
        // send anything new. If another relay may be sending already, records in flight are not retried either.
        event_loop.purge(matches!(
            error.kind,
            ErrorKind::ProcessPaused | ErrorKind::SlotActive | ErrorKind::SlotLost
        ));
        Err(event_loop.explain(error).await)
    } else {
        ended
    };
    memory.refusal = event_loop.refusal();
    memory.lost = event_loop.lost();
    // The SQL session must outlive the stream: other relays treat a stream without its session as orphaned.
    let (stream, delivery, writer) = event_loop.into_parts();
    let producers = delivery.into_producers();
    let ended = match ended {
        Ok(ended) => Ok(end::finish(stream, ended).await),
        Err(error) => {
            end::send_final_status(stream, &error).await;
            let server = context.status.server();
            let error = publication::refine_slot_error(error, &context.config, server.as_ref()).await;
            report(&error);
            Err(error)
        }
    };
    drop(writer);
    drop(tokio::task::spawn_blocking(move || producers.close()).await);
    ended
}

/// The event loop of an open session, ready to run.
async fn event_loop(context: &Context, mut opened: OpenSession) -> Result<EventLoop, RelayError> {
    let config = &*context.config;
    let InitialState { table, mappings, form, .. } = &opened.start;
    opened.stream.limit_memory(memory_limit(table, mappings, *form));
    let slot_guard = SlotGuard::new(opened.stream.silence_limit(), opened.walsender_pid, Now::read());
    let refused = |error| {
        RelayError::new(
            ErrorKind::KafkaUnreachable,
            format!("the Kafka client could not be created: {error}"),
        )
    };
    let acks = Arc::new(AckQueue::new(&config.sink));
    let largest_batch = opened.start.mappings.smallest_limit();
    let producers = Producers::new(&config.sink, config.delivery.max_in_flight_events, largest_batch, &acks)
        .map_err(refused)?;
    let own = OwnRecords {
        source: config.source.event_source(),
        lineage: opened.start.lineage.clone(),
        server_started: opened.start.server_started,
    };
    let scanner = PartitionScanner::new(&config.sink, own);
    let (queries, query_results) = KafkaQueries::new(Arc::new(scanner.map_err(refused)?));
    let writer = Writer::start(opened.sql, config, opened.history, opened.committed, context.status.clone());
    let InitialState { confirmed, snapshot_cursor, lineage, mappings, .. } = &opened.start;
    let pages = match opened.snapshot {
        None => {
            tracing::info!(%confirmed, horizon = %lineage.end(), "streaming");
            context.status.enter(Phase::Streaming);
            None
        }
        Some(backfill) => {
            let pages =
                Pages::start(&config.source, &opened.server, opened.history, mappings, backfill).await?;
            tracing::info!(start = %confirmed, cursor = snapshot_cursor, "delivering the initial snapshot");
            context.status.enter(Phase::Copying);
            Some(pages)
        }
    };
    let delivery = Delivery::new(
        config,
        opened.start,
        KafkaBroker::new(producers, Arc::clone(&acks), queries),
        context.status.clone(),
        context.metrics.clone(),
    )?;
    let event_loop =
        EventLoop::new(opened.stream, delivery, acks, query_results, writer, slot_guard, context);
    Ok(match pages {
        Some(pages) => event_loop.with_snapshot(pages),
        None => event_loop,
    })
}
