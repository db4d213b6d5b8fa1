//! One session: from connecting to the first trouble. A start, a reconnect and a rebuild after a failed delivery
//! are the same code, so that there is only one way in which delivery can begin.

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
use crate::delivery::{Delivery, InitialState, OutboxTable, StreamForm, memory_limit};
use crate::error::{ErrorKind, RelayError};
use crate::kafka::credentials;
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

/// How long the checkpoint may take to be read and written while the slot is held and its stream is not read: half of what
/// the server's default `wal_sender_timeout` allows.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(30);

/// What all sessions of a process share.
#[derive(Clone)]
pub struct Context {
    /// The configuration.
    pub config: Arc<Config>,
    /// What is shown.
    pub status: Status,
    /// What is counted.
    pub metrics: Metrics,
    /// Dead letters to send again.
    pub desk: ReplayHandle,
}

/// An open stream with what belongs to it.
struct OpenSession {
    stream: Stream,
    /// The server process at its other end.
    holder: Option<i64>,
    sql: PgConnection,
    /// Where both connections lead to.
    server: Host,
    history: ClusterTimeline,
    start: InitialState,
    /// Rows to deliver before the stream.
    copy: Option<Backfill>,
    committed: CommittedCheckpoint,
}

/// Runs one session. `Ok` means that `shutdown` was asked for. A trouble goes to `report` as soon as it is known: what
/// follows it, such as waiting for the last acknowledgements, may take a while.
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
    let mut asked = shutdown.clone();
    let opened = tokio::select! {
        opened = open(context, memory) => opened.inspect_err(|error| report(error))?,
        // Nothing was sent: there is nothing to drain, and nothing is known of what is not confirmed.
        _ = asked.wait_for(|stop| *stop) => return Ok(SessionEnd::NotStreaming),
    };
    let ended = stream(context, opened, memory, shutdown, report).await;
    memory.text_form |= ended.as_ref().is_err_and(|error| error.kind == ErrorKind::StreamFormChanged);
    ended
}

async fn open(context: &Context, memory: &mut Memory) -> Result<OpenSession, RelayError> {
    let config = &*context.config;
    let access = connection::access(&config.source)?;
    // The stream first: it finds the host and its address.
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
    // Asked first: START_REPLICATION would be an error in the server's log at each try.
    slot_wait::until_free(&mut sql, config, memory).await?;
    table::check(&mut sql, config).await?;
    let own = slot_holder::announce_companion(&mut sql, client.process_id().cast_signed()).await?;
    let judged = answered(decide_now(&mut sql, config, &server)).await?;
    let binary = reads_binary(&mut sql, config, memory, &judged).await?;
    let mut table = answered(publication::ensure(&mut sql, config)).await?;
    if creates(judged.verdict) {
        create_slot(&mut sql, &mut client, context, &server, memory, &own).await?;
        // The slot has nothing from before the current table.
        table = table::oid(&mut sql, config).await?;
    }
    memory.on_slot_taken(own, false);
    let output = PgOutput {
        publications: vec![config.source.publication.name.clone()],
        binary,
        // Heartbeats.
        messages: true,
    };
    // From zero: the slot's own position. Never beyond it, because what the slot has not confirmed is only known to
    // be in Kafka once the checkpoint has been read while the slot is held.
    let stream = client.start_replication(&config.source.slot.name, EndLsn::ZERO, &output).await?;
    tracing::info!(slot = %config.source.slot.name, "the slot is held");
    // The stream is not read meanwhile.
    let taking = claim_checkpoint(config, server, stream, binary, sql, table, memory);
    let taken = tokio::time::timeout(TAKE_OVER_WITHIN, taking).await;
    taken.map_err(|_| {
        let what = format!(
            "the slot was taken, and the checkpoint could not be read and written within {TAKE_OVER_WITHIN:?}: somebody \
             may hold a lock on it"
        );
        RelayError::new(ErrorKind::CheckpointStalled, what)
    })?
}

/// What waits for a lock, or for a server that is silent, is given up and tried again, so that the reason is shown.
async fn answered<T>(asking: impl Future<Output = Result<T, RelayError>>) -> Result<T, RelayError> {
    tokio::time::timeout(TAKE_OVER_WITHIN, asking).await.map_err(|_| {
        let what = format!(
            "checkpoint and publication could not be read within {TAKE_OVER_WITHIN:?}: another session may hold a lock on \
             outbox_checkpoint or the outbox table"
        );
        RelayError::new(ErrorKind::CheckpointStalled, what)
    })?
}

/// Whether the stream is to have values in binary form: it is faster, and what most tables allow. Before anything is
/// delivered, the table has to be one whose rows can be read; later the rows tell, which may be of an earlier table.
async fn reads_binary(
    sql: &mut PgConnection,
    config: &Config,
    memory: &Memory,
    judged: &Decision,
) -> Result<bool, RelayError> {
    let binary = !memory.text_form;
    let columns = columns::of(sql, &config.source).await?;
    let goes_on = matches!(judged.verdict, StartDecision::Stream { .. }) && judged.checkpoint.is_some();
    match columns::layout(&columns, &config.routing.by_field) {
        Ok(layout) => Ok(binary && !layout.needs_text()),
        Err(error) if goes_on => {
            tracing::warn!("rows written from now on stop delivery: {error}");
            Ok(binary)
        }
        Err(error) => Err(error),
    }
}

/// Makes the checkpoint this session's own. The slot is held: nobody else has anything to write there.
async fn claim_checkpoint(
    config: &Config,
    server: ServerInfo,
    stream: Stream,
    binary: bool,
    mut sql: PgConnection,
    table: Option<u32>,
    memory: &mut Memory,
) -> Result<OpenSession, RelayError> {
    let holder = slot::state(&mut sql, &config.source.slot.name).await?.and_then(|slot| slot.active_pid);
    let judged = decide_now(&mut sql, config, &server).await?;
    let (confirmed, copy) = match (judged.verdict, judged.copy()) {
        (StartDecision::Copy { from }, Some(backfill)) => (from, Some(backfill)),
        (StartDecision::Stream { confirmed, .. }, _) => (confirmed, None),
        _ => return Err(RelayError::new(ErrorKind::SlotLost, "the slot vanished while it was being taken")),
    };
    let history = server.history();
    for doubt in table::doubts(&mut sql, config).await? {
        tracing::warn!("{doubt}");
    }
    adopt_checkpoint(&mut sql, config, &judged, history, confirmed).await?;
    let server_started = slot::server_start_time(&mut sql).await?;
    let flush = slot::flush_lsn(&mut sql).await?;
    let copied = copy.as_ref().map(|backfill| backfill.after);
    // Rows that are copied lie right before the slot's beginning, and may have been sent.
    let end = if copied.is_some() { flush.max(just_behind(confirmed)) } else { flush };
    let (stored, mut offsets) = judged
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
        let what = "Kafka refuses row after row, and too many of them are not confirmed to remember one more";
        return Err(RelayError::new(ErrorKind::DeliveryFailed, what));
    }
    let progress = CheckpointUpdate { confirmed, copied, mappings, revision: 0, offsets };
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
        snapshot_cursor: copied,
        form,
        lineage,
        server_started,
        mappings,
        partitions,
        table,
        refusal,
    };
    Ok(OpenSession { stream, holder, sql, server: server.address, history, start, copy, committed })
}

fn just_behind(lsn: EndLsn) -> EndLsn {
    EndLsn::new(Lsn::from(lsn.lsn().as_u64().saturating_add(1)))
}

/// The mapping to deliver under: the configured one, with what was stored for the rows it may have sent.
fn mappings_of(
    config: &Config,
    stored: Option<RoutingHistory>,
    confirmed: EndLsn,
    horizon: EndLsn,
) -> RoutingHistory {
    let rule = config.routing_rule();
    let Some(stored) = stored else { return RoutingHistory::first(rule) };
    let version = stored.version;
    let mappings = stored.without_what_is_confirmed(confirmed).under(rule, horizon);
    if mappings.version != version {
        tracing::info!(
            version = mappings.version,
            until = %horizon,
            "the routing or a limit has changed; rows committed before that LSN go where they would have gone"
        );
    }
    mappings
}

/// What a session that began now would do first, in a sentence; looked at without taking the slot.
pub async fn plan(sql: &mut PgConnection, config: &Config, address: &Host) -> Result<String, RelayError> {
    let access = connection::access(&config.source)?;
    let there = Access { hosts: vec![address.clone()], ..access.clone() };
    let mut client = connection::connect_replication(&config.source, there).await?;
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
    Ok(match decide_now(sql, config, &server).await?.verdict {
        StartDecision::CreateSlot => "a relay would create the slot".to_owned(),
        StartDecision::RecreateSlot => "a relay would create the slot anew: it was not finished".to_owned(),
        StartDecision::Copy { from } => {
            format!("a relay would deliver the rows that were there before {from}")
        }
        StartDecision::Stream { confirmed, .. } => format!("a relay would go on from {confirmed}"),
    })
}

/// The server, as the replication connection shows it.
struct ServerInfo {
    system_identifier: u64,
    timelines: TimelineHistory,
    /// What this process had confirmed when it last streamed.
    reached: Option<(ClusterTimeline, EndLsn)>,
    /// Where it is.
    address: Host,
}

impl ServerInfo {
    fn history(&self) -> ClusterTimeline {
        ClusterTimeline { system_identifier: self.system_identifier, timeline: self.timelines.timeline() }
    }
}

/// A verdict with the checkpoint it rests on.
struct Decision {
    verdict: StartDecision,
    checkpoint: Option<Checkpoint>,
}

impl Decision {
    /// Which rows are still to be copied.
    fn copy(&self) -> Option<Backfill> {
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
) -> Result<Decision, RelayError> {
    // The slot first: while another relay holds it, both move on, and the slot is never ahead of the checkpoint.
    let slot = slot::state(sql, &config.source.slot.name).await?;
    let checkpoint = checkpoint::load(sql, config).await?;
    let verdict = decide(&StartInputs {
        system_identifier: server.system_identifier,
        timelines: &server.timelines,
        flush: slot::flush_lsn(sql).await?,
        reached: server.reached,
        source: &config.source,
        checkpoint: checkpoint.as_ref(),
        slot: slot.as_ref(),
    })?;
    Ok(Decision { verdict, checkpoint })
}

fn creates(verdict: StartDecision) -> bool {
    matches!(verdict, StartDecision::CreateSlot | StartDecision::RecreateSlot)
}

/// Creates the slot, unless another relay did so before this one had the lock.
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
    let verdict = decide_now(sql, config, server).await?.verdict;
    if creates(verdict) {
        let history = server.history();
        if verdict == StartDecision::RecreateSlot {
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

/// Puts the checkpoint's row on the server's history: a new one, or the one that a promotion or a restore has left
/// behind. The slot is held.
async fn adopt_checkpoint(
    sql: &mut PgConnection,
    config: &Config,
    judged: &Decision,
    history: ClusterTimeline,
    confirmed: EndLsn,
) -> Result<(), RelayError> {
    let Some(checkpoint) = &judged.checkpoint else {
        if publication::may_be_newer_than_slot(sql, config).await? {
            let (slot, publication) = (&config.source.slot.name, &config.source.publication.name);
            tracing::warn!(
                %slot, %publication,
                "the slot may be older than the publication: rows from before the table was published are not in the stream"
            );
        }
        return checkpoint::register(sql, config, history).await;
    };
    let diverged = matches!(judged.verdict, StartDecision::Stream { diverged: true, .. });
    if diverged {
        tracing::warn!(
            %confirmed,
            "the checkpoint is ahead of this server's history; going on from where they part. Events that were delivered \
             beyond it are in Kafka and not in this database"
        );
    }
    if checkpoint.history == history && !diverged {
        return Ok(());
    }
    let was = checkpoint.history;
    tracing::info!(from = was.timeline, to = history.timeline, "the server's timeline is another one since");
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
    // Before the status says that it streams.
    let mut desk = context.desk.open();
    let mut pump = event_loop(context, opened).await.inspect_err(|error| report(error))?;
    context.metrics.streaming.set(1);
    let stop = shutdown.clone();
    let ended = tokio::select! {
        ended = pump.run(shutdown, &mut desk) => ended,
        error = credentials::rotated(&context.config.sink, stop) => Err(error),
    };
    memory.reached = Some((history, pump.confirmed()));
    context.metrics.streaming.set(0);
    context.metrics.in_flight_events.set(0);
    context.metrics.in_flight_bytes.set(0);
    context.metrics.connected.with_label_values(&["kafka"]).set(0);
    let ended = if let Err(error) = ended {
        // Before anything else that takes time: when the slot is free, another relay may send, and nothing new must come
        // from here. If it may be sending already, nothing is sent again either.
        pump.give_up(matches!(
            error.kind,
            ErrorKind::ProcessPaused | ErrorKind::SlotActive | ErrorKind::SlotLost
        ));
        Err(pump.explain(error).await)
    } else {
        ended
    };
    memory.refusal = pump.refusal();
    memory.lost = pump.lost();
    // The session outlives the stream: a stream without one is taken for an orphan.
    let (stream, delivery, writer) = pump.into_parts();
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

/// All that belongs to a stream, ready to run.
async fn event_loop(context: &Context, mut opened: OpenSession) -> Result<EventLoop, RelayError> {
    let config = &*context.config;
    let InitialState { table, mappings, form, .. } = &opened.start;
    opened.stream.limit_memory(memory_limit(table, mappings, *form));
    let tenure = SlotGuard::new(opened.stream.silence_limit(), opened.holder, Now::read());
    let refused =
        |error| RelayError::new(ErrorKind::KafkaUnreachable, format!("cannot make a Kafka client: {error}"));
    let acks = Arc::new(AckQueue::default());
    let largest_batch = opened.start.mappings.smallest_limit();
    let producers = Producers::new(&config.sink, config.delivery.max_in_flight_events, largest_batch, &acks)
        .map_err(refused)?;
    let lineage = opened.start.lineage.clone();
    let started = opened.start.server_started;
    let searcher = PartitionScanner::new(&config.sink, config.source.event_source(), lineage, started);
    let (jobs, answers) = KafkaQueries::new(Arc::new(searcher.map_err(refused)?));
    let writer = Writer::start(opened.sql, config, opened.history, opened.committed, context.status.clone());
    let InitialState { confirmed, snapshot_cursor: copied, lineage, mappings, .. } = &opened.start;
    let pages = match opened.copy {
        None => {
            tracing::info!(%confirmed, horizon = %lineage.end(), "streaming");
            context.status.enter(Phase::Streaming);
            None
        }
        Some(backfill) => {
            let pages =
                Pages::start(&config.source, &opened.server, opened.history, mappings, backfill).await?;
            tracing::info!(start = %confirmed, cursor = copied, "delivering the rows that were there before the slot");
            context.status.enter(Phase::Copying);
            Some(pages)
        }
    };
    let delivery = Delivery::new(
        config,
        opened.start,
        producers,
        Arc::clone(&acks),
        jobs,
        context.status.clone(),
        context.metrics.clone(),
    )?;
    let mut pump = EventLoop::new(opened.stream, delivery, acks, answers, writer, tenure, context);
    if let Some(pages) = pages {
        pump = pump.with_snapshot(pages);
    }
    Ok(pump)
}
