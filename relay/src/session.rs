//! One session: from connecting to the first trouble. A start, a reconnect and a rebuild after a failed delivery
//! are the same code, so that there is only one way in which delivery can begin.

use std::sync::Arc;
use std::time::Duration;

use pg_replication::{Client, EndLsn, PgOutput, SlotOptions, Snapshot, Stream};
use sqlx::postgres::PgConnection;
use tokio::sync::watch;

use crate::checkpoint::{self, Committed, History, Progress, Writer};
use crate::config::{Config, CreationPolicy};
use crate::delivery::{Delivery, Start};
use crate::jobs::Jobs;
use crate::mapping::{Mappings, Rule};
use crate::metrics::Metrics;
use crate::partitions::{Offsets, Partitions};
use crate::pump::{Ended, Pump};
use crate::search::Searcher;
use crate::sink::{AckQueue, Producers};
use crate::source;
use crate::status::{Phase, Status};
use crate::trouble::{Reason, Trouble};
use crate::verdict::{Findings, Verdict, judge};

/// How long the server may take to end the stream after everything was confirmed.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// What all sessions of a process share.
#[derive(Clone)]
pub struct Context {
    /// The configuration.
    pub config: Arc<Config>,
    /// What is shown.
    pub status: Status,
    /// What is counted.
    pub metrics: Metrics,
}

/// An open stream with what belongs to it.
struct Opened {
    stream: Stream,
    sql: PgConnection,
    history: History,
    start: Start,
    committed: Committed,
}

/// Runs one session. `Ok` means that `shutdown` was asked for.
pub async fn run(context: &Context, shutdown: &mut watch::Receiver<bool>) -> Result<Ended, Trouble> {
    context.status.enter(Phase::Starting);
    let mut asked = shutdown.clone();
    let opened = tokio::select! {
        opened = open(context) => opened?,
        // Nothing was sent: there is nothing to drain.
        _ = asked.wait_for(|stop| *stop) => return Ok(Ended::Drained),
    };
    let connected = context.metrics.connected.with_label_values(&["postgres"]);
    connected.set(1);
    context.metrics.streaming.set(1);
    let ended = stream(context, opened, shutdown).await;
    context.metrics.streaming.set(0);
    connected.set(0);
    ended
}

async fn open(context: &Context) -> Result<Opened, Trouble> {
    let config = &*context.config;
    let access = source::access(&config.source)?;
    // The stream first: it finds the host, and is stricter about the server's certificate.
    let mut client = source::connect_replication(&config.source, access.clone()).await?;
    let identity = client.identify_system().await?;
    let history = History { system_identifier: identity.system_id, timeline: identity.timeline };
    let mut sql = source::connect_to(&config.source, &access, client.host(), "session").await?;
    source::check_same_server(&mut sql, history).await?;
    source::check_preconditions(&mut sql, &config.source).await?;
    source::ensure_publication(&mut sql, &config.source).await?;
    if judge_now(&mut sql, config, history).await? == Verdict::CreateSlot {
        create_slot(&mut sql, &mut client, config, history).await?;
    }
    let output = PgOutput {
        publications: vec![config.source.publication.name.clone()],
        binary: true,
        // Nothing is written to the stream by the relay itself yet.
        messages: false,
    };
    // From zero: the slot's own position. Never beyond it, because what the slot has not confirmed is only known to
    // be in Kafka once the checkpoint has been read while the slot is held.
    let stream = client.start_replication(&config.source.slot.name, EndLsn::ZERO, &output).await?;
    tracing::info!(slot = %config.source.slot.name, "the slot is held");
    let Verdict::Stream { confirmed } = judge_now(&mut sql, config, history).await? else {
        return Err(Trouble::new(Reason::SlotLost, "the slot vanished while it was being taken"));
    };
    let checkpoint = checkpoint::load(&mut sql, config).await?;
    let (stored, offsets) =
        checkpoint.map_or_else(Default::default, |checkpoint| (checkpoint.mappings, checkpoint.offsets));
    let horizon = source::flush_lsn(&mut sql).await?;
    let mappings = mappings_of(config, stored, confirmed, horizon);
    checkpoint::register(&mut sql, config, history).await?;
    let progress = Progress { confirmed, mappings, revision: 0, offsets };
    checkpoint::write_now(&mut sql, config, history, &progress).await?;
    let Progress { mappings, offsets, .. } = progress;
    let partitions = Partitions::from_checkpoint(&mappings, &offsets);
    let start = Start { confirmed, horizon, timeline: history.timeline, mappings, partitions };
    let committed = Committed { confirmed, revision: 0 };
    Ok(Opened { stream, sql, history, start, committed })
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

async fn judge_now(sql: &mut PgConnection, config: &Config, history: History) -> Result<Verdict, Trouble> {
    let checkpoint = checkpoint::load(sql, config).await?;
    let slot = source::slot_state(sql, &config.source.slot.name).await?;
    judge(&Findings {
        history,
        database: &config.source.database,
        slot_name: &config.source.slot.name,
        checkpoint: checkpoint.as_ref(),
        slot: slot.as_ref(),
        may_create: config.source.slot.creation_policy == CreationPolicy::IfMissing,
    })
}

/// Registers first: from then on nobody may drop rows this relay has not confirmed.
async fn create_slot(
    sql: &mut PgConnection,
    client: &mut Client,
    config: &Config,
    history: History,
) -> Result<(), Trouble> {
    checkpoint::register(sql, config, history).await?;
    let slot = &config.source.slot.name;
    tracing::info!(%slot, "creating the slot; this waits for transactions that are open now");
    let options = SlotOptions { snapshot: Snapshot::Nothing, failover: false, temporary: false };
    let created = client.create_slot(slot, &options).await?;
    let confirmed = created.consistent_point;
    let mappings = Mappings::first(Rule::of(config));
    let progress = Progress { confirmed, mappings, revision: 0, offsets: Offsets::new() };
    checkpoint::write_now(sql, config, history, &progress).await?;
    tracing::info!(%slot, lsn = %confirmed, "created the slot; events committed from here on are delivered");
    Ok(())
}

async fn stream(
    context: &Context,
    opened: Opened,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<Ended, Trouble> {
    let config = &*context.config;
    let refused =
        |error| Trouble::new(Reason::KafkaUnreachable, format!("cannot make a Kafka client: {error}"));
    let acks = Arc::new(AckQueue::default());
    let largest_batch = opened.start.mappings.smallest_limit();
    let producers = Producers::new(&config.sink, config.delivery.max_in_flight_events, largest_batch, &acks)
        .map_err(refused)?;
    let searcher = Searcher::new(&config.sink, config.source.event_source(), opened.history.timeline);
    let (jobs, answers) = Jobs::new(Arc::new(searcher.map_err(refused)?), context.status.clone());
    let writer = Writer::start(opened.sql, config, opened.history, opened.committed).await?;
    tracing::info!(confirmed = %opened.start.confirmed, horizon = %opened.start.horizon, "streaming");
    let delivery =
        Delivery::new(config, opened.start, producers, Arc::clone(&acks), jobs, context.metrics.clone())?;
    context.status.enter(Phase::Streaming);
    let mut pump = Pump::new(
        opened.stream,
        delivery,
        acks,
        answers,
        writer,
        context.status.clone(),
        context.metrics.clone(),
    );
    let ended = pump.run(shutdown).await;
    let (stream, delivery) = pump.into_parts();
    let producers = delivery.into_producers();
    if ended.is_ok() {
        finish(stream).await;
    } else {
        // In this order: when the slot is free, another relay may send, and nothing new must come from here.
        producers.give_up_unsent();
        drop(stream);
    }
    drop(tokio::task::spawn_blocking(move || producers.settle()).await);
    ended
}

async fn finish(stream: Stream) {
    match stream.finish(FINISH_WITHIN).await {
        Ok(_) => tracing::info!("everything delivered is confirmed; the stream is closed"),
        Err(error) => {
            let error = crate::trouble::chain(&error);
            tracing::warn!(error, "the stream did not end in order; what is not confirmed will be replayed");
        }
    }
}
