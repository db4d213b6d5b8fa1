//! One session: from connecting to the first trouble. A start, a reconnect and a rebuild after a failed delivery
//! are the same code, so that there is only one way in which delivery can begin.

pub mod ended;
pub mod occupied;
pub mod pump;
pub mod start;
pub mod tenure;
pub mod verdict;

use std::sync::Arc;
use std::time::Duration;

use pg_replication::{Client, EndLsn, Host, Lsn, PgOutput, Stream, TimelineHistory};
use sqlx::postgres::PgConnection;
use tokio::sync::watch;

use self::ended::Ended;
use self::occupied::Memory;
use self::pump::Pump;
use self::tenure::{Now, Tenure};
use self::verdict::{Findings, Verdict, judge};
use crate::config::{Access, Config, StartAt};
use crate::dead_letter::replay::Desk;
use crate::delivery::{Delivery, OutboxTable, Start, StreamForm, memory_limit};
use crate::kafka::credentials;
use crate::kafka::jobs::Jobs;
use crate::kafka::search::Searcher;
use crate::kafka::sink::{AckQueue, Producers};
use crate::postgres::backfill::{Backfill, Pages};
use crate::postgres::checkpoint::{self, Checkpoint, Committed, History, Progress, Progressed, Writer};
use crate::postgres::holder::{self, Own};
use crate::postgres::{columns, connection, publication, source, table};
use crate::progress::lineage::Lineage;
use crate::routing::mapping::{Mappings, Rule};
use crate::status::metrics::Metrics;
use crate::status::{Phase, Status};
use crate::topics::partitions::Partitions;
use crate::trouble::{Reason, Trouble};

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
    pub desk: Desk,
}

/// An open stream with what belongs to it.
struct Opened {
    stream: Stream,
    /// The server process at its other end.
    holder: Option<i64>,
    sql: PgConnection,
    /// Where both connections lead to.
    server: Host,
    history: History,
    start: Start,
    /// Rows to deliver before the stream.
    copy: Option<Backfill>,
    committed: Committed,
}

/// Runs one session. `Ok` means that `shutdown` was asked for. A trouble goes to `report` as soon as it is known: what
/// follows it, such as waiting for the last acknowledgements, may take a while.
pub async fn run(
    context: &Context,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
    report: &mut impl FnMut(&Trouble),
) -> Result<Ended, Trouble> {
    let context = &Context {
        config: Arc::new(credentials::current(&context.config).inspect_err(|trouble| report(trouble))?),
        ..context.clone()
    };
    let mut asked = shutdown.clone();
    let opened = tokio::select! {
        opened = open(context, memory) => opened.inspect_err(|trouble| report(trouble))?,
        // Nothing was sent: there is nothing to drain, and nothing is known of what is not confirmed.
        _ = asked.wait_for(|stop| *stop) => return Ok(Ended::NotStreaming),
    };
    let ended = stream(context, opened, memory, shutdown, report).await;
    memory.text_form |= ended.as_ref().is_err_and(|trouble| trouble.reason == Reason::StreamFormChanged);
    ended
}

async fn open(context: &Context, memory: &mut Memory) -> Result<Opened, Trouble> {
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
    context.status.connected_to(&address);
    let server =
        Server { system_identifier: identity.system_id, timelines, reached: memory.reached, address };
    source::check_same_server(&mut sql, server.history()).await?;
    source::check_preconditions(&mut sql, &config.source).await?;
    // Asked first: START_REPLICATION would be an error in the server's log at each try.
    occupied::until_free(&mut sql, config, memory).await?;
    table::check(&mut sql, config).await?;
    let own = holder::accompany(&mut sql, client.process_id().cast_signed()).await?;
    let judged = answered(judge_now(&mut sql, config, &server)).await?;
    let binary = reads_binary(&mut sql, config, memory, &judged).await?;
    let mut table = answered(publication::settle(&mut sql, config)).await?;
    if creates(judged.verdict) {
        create_slot(&mut sql, &mut client, context, &server, memory, &own).await?;
        // The slot has nothing from before the current table.
        table = table::oid(&mut sql, config).await?;
    }
    memory.takes(own, false);
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
    let taking = take_over(config, server, stream, binary, sql, table, memory);
    let taken = tokio::time::timeout(TAKE_OVER_WITHIN, taking).await;
    taken.map_err(|_| {
        let what = format!(
            "the slot was taken, and the checkpoint could not be read and written within {TAKE_OVER_WITHIN:?}: somebody \
             may hold a lock on it"
        );
        Trouble::new(Reason::CheckpointStalled, what)
    })?
}

/// What waits for a lock, or for a server that is silent, is given up and tried again, so that the reason is shown.
async fn answered<T>(asking: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    tokio::time::timeout(TAKE_OVER_WITHIN, asking).await.map_err(|_| {
        let what = format!(
            "checkpoint and publication could not be read within {TAKE_OVER_WITHIN:?}: another session may hold a lock on \
             outbox_checkpoint or the outbox table"
        );
        Trouble::new(Reason::CheckpointStalled, what)
    })?
}

/// Whether the stream is to have values in binary form: it is faster, and what most tables allow. Before anything is
/// delivered, the table has to be one whose rows can be read; later the rows tell, which may be of an earlier table.
async fn reads_binary(
    sql: &mut PgConnection,
    config: &Config,
    memory: &Memory,
    judged: &Judged,
) -> Result<bool, Trouble> {
    let binary = !memory.text_form;
    let columns = columns::of(sql, &config.source).await?;
    let goes_on = matches!(judged.verdict, Verdict::Stream { .. }) && judged.checkpoint.is_some();
    match columns::layout(&columns, &config.routing.by_field) {
        Ok(layout) => Ok(binary && !layout.needs_text()),
        Err(trouble) if goes_on => {
            tracing::warn!("rows written from now on stop delivery: {trouble}");
            Ok(binary)
        }
        Err(trouble) => Err(trouble),
    }
}

/// Makes the checkpoint this session's own. The slot is held: nobody else has anything to write there.
async fn take_over(
    config: &Config,
    server: Server,
    stream: Stream,
    binary: bool,
    mut sql: PgConnection,
    table: Option<u32>,
    memory: &mut Memory,
) -> Result<Opened, Trouble> {
    let holder =
        source::slot_state(&mut sql, &config.source.slot.name).await?.and_then(|slot| slot.active_pid);
    let judged = judge_now(&mut sql, config, &server).await?;
    let (confirmed, copy) = match (judged.verdict, judged.copy()) {
        (Verdict::Copy { from }, Some(backfill)) => (from, Some(backfill)),
        (Verdict::Stream { confirmed, .. }, _) => (confirmed, None),
        _ => return Err(Trouble::new(Reason::SlotLost, "the slot vanished while it was being taken")),
    };
    let history = server.history();
    for doubt in table::doubts(&mut sql, config).await? {
        tracing::warn!("{doubt}");
    }
    go_on_from(&mut sql, config, &judged, history, confirmed).await?;
    let server_started = source::started(&mut sql).await?;
    let flush = source::flush_lsn(&mut sql).await?;
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
        return Err(Trouble::new(Reason::DeliveryFailed, what));
    }
    let progress = Progress { confirmed, copied, mappings, revision: 0, offsets };
    let committed = checkpoint::write_now(&mut sql, config, history, &progress).await?;
    memory.lost = None;
    let Progress { mappings, offsets, .. } = progress;
    let partitions = Partitions::from_checkpoint(&mappings, &offsets);
    let form = match binary {
        true => StreamForm::Binary,
        false => StreamForm::Text { largest_value: mappings.largest_value() },
    };
    let lineage = Lineage::new(server.timelines, end);
    let table = OutboxTable { name: config.source.table.clone(), oid: table };
    let start =
        Start { confirmed, copied, form, lineage, server_started, mappings, partitions, table, refusal };
    Ok(Opened { stream, holder, sql, server: server.address, history, start, copy, committed })
}

fn just_behind(lsn: EndLsn) -> EndLsn {
    EndLsn::new(Lsn::from(lsn.lsn().as_u64().saturating_add(1)))
}

/// The mapping to deliver under: the configured one, with what was stored for the rows it may have sent.
fn mappings_of(config: &Config, stored: Option<Mappings>, confirmed: EndLsn, horizon: EndLsn) -> Mappings {
    let rule = Rule::of(config);
    let Some(stored) = stored else { return Mappings::first(rule) };
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
pub async fn foresee(sql: &mut PgConnection, config: &Config, address: &Host) -> Result<String, Trouble> {
    let access = connection::access(&config.source)?;
    let there = Access { hosts: vec![address.clone()], ..access.clone() };
    let mut client = connection::connect_replication(&config.source, there).await?;
    if client.is_pooled() {
        connection::check_not_shared(&config.source, &access, address, sql).await?;
    }
    let identity = client.identify_system().await?;
    let timelines = client.timeline_history(identity.timeline).await?;
    let server =
        Server { system_identifier: identity.system_id, timelines, reached: None, address: address.clone() };
    source::check_same_server(sql, server.history()).await?;
    Ok(match judge_now(sql, config, &server).await?.verdict {
        Verdict::CreateSlot => "a relay would create the slot".to_owned(),
        Verdict::RecreateSlot => "a relay would create the slot anew: it was not finished".to_owned(),
        Verdict::Copy { from } => format!("a relay would deliver the rows that were there before {from}"),
        Verdict::Stream { confirmed, .. } => format!("a relay would go on from {confirmed}"),
    })
}

/// The server, as the replication connection shows it.
struct Server {
    system_identifier: u64,
    timelines: TimelineHistory,
    /// What this process had confirmed when it last streamed.
    reached: Option<(History, EndLsn)>,
    /// Where it is.
    address: Host,
}

impl Server {
    fn history(&self) -> History {
        History { system_identifier: self.system_identifier, timeline: self.timelines.timeline() }
    }
}

/// A verdict with the checkpoint it rests on.
struct Judged {
    verdict: Verdict,
    checkpoint: Option<Checkpoint>,
}

impl Judged {
    /// Which rows are still to be copied.
    fn copy(&self) -> Option<Backfill> {
        match &self.checkpoint.as_ref()?.progress {
            Progressed::Copying { snapshot, cursor, .. } => {
                Some(Backfill { snapshot: snapshot.clone(), after: *cursor })
            }
            _ => None,
        }
    }
}

async fn judge_now(sql: &mut PgConnection, config: &Config, server: &Server) -> Result<Judged, Trouble> {
    // The slot first: while another relay holds it, both move on, and the slot is never ahead of the checkpoint.
    let slot = source::slot_state(sql, &config.source.slot.name).await?;
    let checkpoint = checkpoint::load(sql, config).await?;
    let verdict = judge(&Findings {
        system_identifier: server.system_identifier,
        timelines: &server.timelines,
        flush: source::flush_lsn(sql).await?,
        reached: server.reached,
        source: &config.source,
        checkpoint: checkpoint.as_ref(),
        slot: slot.as_ref(),
    })?;
    Ok(Judged { verdict, checkpoint })
}

fn creates(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::CreateSlot | Verdict::RecreateSlot)
}

/// Creates the slot, unless another relay did so before this one had the lock.
async fn create_slot(
    sql: &mut PgConnection,
    client: &mut Client,
    context: &Context,
    server: &Server,
    memory: &mut Memory,
    own: &Own,
) -> Result<(), Trouble> {
    let config = &*context.config;
    start::lock(sql, &config.source.slot.name, memory).await?;
    memory.takes(own.clone(), true);
    start::notice_the_end(sql, client).await?;
    let verdict = judge_now(sql, config, server).await?.verdict;
    if creates(verdict) {
        let history = server.history();
        if verdict == Verdict::RecreateSlot {
            start::drop_leftover(sql, &config.source.slot.name).await?;
        }
        if config.source.start == StartAt::Table {
            start::create_slot_with_snapshot(sql, client, context, history).await?;
        } else {
            start::create_slot(sql, client, context, history).await?;
        }
    }
    start::unlock(sql, &config.source.slot.name).await
}

/// Puts the checkpoint's row on the server's history: a new one, or the one that a promotion or a restore has left
/// behind. The slot is held.
async fn go_on_from(
    sql: &mut PgConnection,
    config: &Config,
    judged: &Judged,
    history: History,
    confirmed: EndLsn,
) -> Result<(), Trouble> {
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
    let diverged = matches!(judged.verdict, Verdict::Stream { diverged: true, .. });
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
    checkpoint::adopt(sql, config, was, history, confirmed).await
}

async fn stream(
    context: &Context,
    opened: Opened,
    memory: &mut Memory,
    shutdown: &mut watch::Receiver<bool>,
    report: &mut impl FnMut(&Trouble),
) -> Result<Ended, Trouble> {
    let history = opened.history;
    // Before the status says that it streams.
    let mut desk = context.desk.open();
    let mut pump = pump(context, opened).await.inspect_err(|trouble| report(trouble))?;
    context.metrics.streaming.set(1);
    let stop = shutdown.clone();
    let ended = tokio::select! {
        ended = pump.run(shutdown, &mut desk) => ended,
        trouble = credentials::rotated(&context.config.sink, stop) => Err(trouble),
    };
    memory.reached = Some((history, pump.confirmed()));
    context.metrics.streaming.set(0);
    context.metrics.in_flight_events.set(0);
    context.metrics.in_flight_bytes.set(0);
    context.metrics.connected.with_label_values(&["kafka"]).set(0);
    let ended = if let Err(trouble) = ended {
        // Before anything else that takes time: when the slot is free, another relay may send, and nothing new must come
        // from here. If it may be sending already, nothing is sent again either.
        pump.give_up(matches!(trouble.reason, Reason::ProcessPaused | Reason::SlotActive | Reason::SlotLost));
        Err(pump.explained(trouble).await)
    } else {
        ended
    };
    memory.refusal = pump.refusal();
    memory.lost = pump.lost();
    // The session outlives the stream: a stream without one is taken for an orphan.
    let (stream, delivery, writer) = pump.into_parts();
    let producers = delivery.into_producers();
    let ended = match ended {
        Ok(ended) => Ok(ended::finish(stream, ended).await),
        Err(trouble) => {
            ended::last_word(stream, &trouble).await;
            let server = context.status.server();
            let trouble = publication::told_apart(trouble, &context.config, server.as_ref()).await;
            report(&trouble);
            Err(trouble)
        }
    };
    drop(writer);
    drop(tokio::task::spawn_blocking(move || producers.settle()).await);
    ended
}

/// All that belongs to a stream, ready to run.
async fn pump(context: &Context, mut opened: Opened) -> Result<Pump, Trouble> {
    let config = &*context.config;
    let Start { table, mappings, form, .. } = &opened.start;
    opened.stream.limit_memory(memory_limit(table, mappings, *form));
    let tenure = Tenure::new(opened.stream.silence_limit(), opened.holder, Now::read());
    let refused =
        |error| Trouble::new(Reason::KafkaUnreachable, format!("cannot make a Kafka client: {error}"));
    let acks = Arc::new(AckQueue::default());
    let largest_batch = opened.start.mappings.smallest_limit();
    let producers = Producers::new(&config.sink, config.delivery.max_in_flight_events, largest_batch, &acks)
        .map_err(refused)?;
    let lineage = opened.start.lineage.clone();
    let started = opened.start.server_started;
    let searcher = Searcher::new(&config.sink, config.source.event_source(), lineage, started);
    let (jobs, answers) = Jobs::new(Arc::new(searcher.map_err(refused)?), context.status.clone());
    let writer = Writer::start(opened.sql, config, opened.history, opened.committed, context.status.clone());
    let Start { confirmed, copied, lineage, mappings, .. } = &opened.start;
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
    let mut pump = Pump::new(opened.stream, delivery, acks, answers, writer, tenure, context);
    if let Some(pages) = pages {
        pump = pump.copying(pages);
    }
    Ok(pump)
}
