//! The program `outbox-relay`: arguments, configuration, wiring.

use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Parser, Subcommand};
use outbox_relay::cli::audit::Scope;
use outbox_relay::cli::replay::missing::Choice;
use outbox_relay::cli::replay::{DEAD_LETTERS_PATH, ROWS_PATH};
use outbox_relay::cli::{self, Format};
use outbox_relay::config::Config;
use outbox_relay::error::RelayError;
use outbox_relay::monitor::maintenance;
use outbox_relay::monitor::observer;
use outbox_relay::monitor::standbys;
use outbox_relay::replay::{ReplayHandle, ReplayRejected, from_dead_letters, from_table};
use outbox_relay::session::end::SessionEnd;
use outbox_relay::status::Status;
use outbox_relay::status::metrics::Metrics;
use outbox_relay::status::page;
use outbox_relay::supervisor;
use process::{
    ActionRefused, Admin, EXIT_BUG, EXIT_CONFIG, EXIT_UNAVAILABLE, Lines, LogFormat, LogLevel, StatusCode,
    init_logging,
};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// librdkafka's log lines repeat at every attempt; `/status` shows their content as errors.
const DEFAULT_LOG_FILTER: &str = "info,librdkafka=off,rdkafka=off";

/// The period that an audit covers without `--since`.
const AUDITED_BY_DEFAULT: TimeDelta = TimeDelta::hours(24);

/// Carries committed outbox rows from PostgreSQL to Kafka.
#[derive(Parser)]
#[command(
    version = process::version(),
    about,
    after_help = "Exit codes: 0 done, or stopped by SIGTERM or SIGINT; 64 invalid configuration or arguments; 69 a problem was found, or \
    the command failed (not for 'run'); 70 a bug.\n\
    Nothing else ends 'run': faults are reported by /readyz, /status and the metrics of the admin listener."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Deliver until stopped. SIGTERM completes what is in flight, confirms it, and exits 0.
    Run {
        #[command(flatten)]
        file: File,
        /// Format of log lines.
        #[arg(long, env = "OUTBOX_RELAY_LOG_FORMAT", default_value = "text")]
        log_format: LogFormat,
    },
    /// Check source and sink, one line each: ok, warn or problem, with a remedy. Changes nothing.
    ///
    /// Exit codes: 0 no problem (warnings do not count), 64 invalid configuration, 69 a problem.
    Doctor {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        output: Output,
    },
    /// Show how far behind delivery is: what the database knows to be confirmed, and, if the relay responds, what it
    /// has read, published and acknowledged.
    ///
    /// Exit codes: 0 shown, even if no relay responds; 64 invalid configuration; 69 the database does not respond.
    Lag {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        output: Output,
    },
    /// Say what has become of an event: committed, confirmed, and acknowledged in which topic, partition and offset; or
    /// why it is not in Kafka.
    ///
    /// Searches the table, and the topic from the time on at which the row was written: for a minute at most each.
    ///
    /// Exit codes: 0 its record is in its topic; 64 invalid configuration; 69 it is not, or that cannot be found out.
    Where {
        #[command(flatten)]
        file: File,
        /// The event's id: column id of the table, header ce_id of the record.
        #[arg(long)]
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Compare the rows of the table with the records in Kafka: missing, duplicate and out-of-order events, and events
    /// without a row.
    ///
    /// Reads the rows of the period, and the topics from that time on. Judges the rows that the checkpoint counts as
    /// delivered; others are counted as waiting. Changes nothing, and needs no running relay.
    ///
    /// Exit codes: 0 every row is in Kafka once, in order; 64 invalid configuration; 69 not so, or that cannot be found
    /// out.
    Audit {
        #[command(flatten)]
        file: File,
        /// Rows written at this time or later, such as 2026-11-24T10:00:00Z; by default those of the last 24 hours.
        #[arg(long)]
        since: Option<DateTime<Utc>>,
        /// Rows written before this time.
        #[arg(long)]
        until: Option<DateTime<Utc>>,
        /// A topic besides those that the checkpoint has, for events of an earlier routing; may be given several times.
        #[arg(long = "topic")]
        topics: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Have the running relay (admin.listen) send events of the table again, in the order of column seq, to the topics its
    /// present routing gives, or to another one.
    ///
    /// A replayed event has the same ce_id and ce_time as before, the header ce_replay with the name of the replay, and no
    /// ce_sequence. It arrives behind newer events of its key, and consumers that deduplicate on ce_id skip it if they
    /// have it. What is replayed twice is in Kafka twice. Rows that the checkpoint does not count as delivered are left
    /// out.
    ///
    /// With --missing it compares table and Kafka first, as 'audit' does, and sends the rows that are not in Kafka: what a
    /// topic lost, or never got. Running it again sends nothing, unless more is missing.
    ///
    /// Exit codes: 0 all selected are in Kafka, or listed with --dry-run; 64 invalid configuration or arguments; 69 not
    /// all, or no relay is streaming.
    Replay {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        rows: SelectedRows,
        #[command(flatten)]
        missing: Missing,
        /// List the events that would be sent, and send nothing. Needs no running relay.
        #[arg(long)]
        dry_run: bool,
        /// Send: the consumers can take old events of a key behind newer ones. Not needed with --topic.
        #[arg(long, required_unless_present_any = ["dry_run", "topic"], conflicts_with = "dry_run")]
        allow_reorder: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Rows that could not be delivered and were sent to delivery.deadLetterTopic.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
}

#[derive(Subcommand)]
enum DeadLetters {
    /// Show the dead letters now in the topic: position, time, reason, topic, key, id, error.
    ///
    /// Exit codes: 0 shown, 64 invalid configuration, 69 the topic cannot be read.
    List {
        #[command(flatten)]
        file: File,
        /// Only those written at this time or later, such as 2026-11-24T10:00:00Z.
        #[arg(long)]
        since: Option<DateTime<Utc>>,
        /// At most this many.
        #[arg(long)]
        limit: Option<usize>,
        #[command(flatten)]
        output: Output,
    },
    /// Have the running relay (admin.listen) send dead letters again, to the topic its present routing gives.
    ///
    /// They stay in the dead-letter topic: what is replayed twice is in Kafka twice. Replayed events carry the header
    /// dead_letter_replayed and no ce_sequence.
    ///
    /// Exit codes: 0 all selected are in Kafka; 64 invalid configuration; 69 not all, or no relay is streaming.
    Replay {
        #[command(flatten)]
        file: File,
        /// Event id of a dead letter; may be given several times.
        #[arg(long = "id", required_unless_present = "all")]
        ids: Vec<String>,
        /// All dead letters.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// Only those written at this time or later.
        #[arg(long)]
        since: Option<DateTime<Utc>>,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
struct File {
    /// The configuration file. Environment variables OUTBOX_RELAY__SECTION__FIELD override its fields;
    /// OUTBOX_RELAY_SOURCE_PASSWORD gives the source role's password.
    #[arg(long, env = "OUTBOX_RELAY_CONFIG")]
    config: PathBuf,
}

/// The rows to replay. A row has to meet all criteria.
#[derive(Args)]
struct SelectedRows {
    /// Event id; may be given several times.
    #[arg(long = "id", required_unless_present_any = ["since", "missing"], conflicts_with = "missing")]
    ids: Vec<String>,
    /// Only events written at this time or later, such as 2026-11-24T10:00:00Z.
    #[arg(long)]
    since: Option<DateTime<Utc>>,
    /// Only events written before this time.
    #[arg(long)]
    until: Option<DateTime<Utc>>,
    /// Only events of this type.
    #[arg(long = "type")]
    event_type: Option<String>,
    /// Only events of this key (column aggregateid).
    #[arg(long)]
    key: Option<String>,
    /// Name of the replay, for the header ce_replay; by default the present time.
    #[arg(long)]
    name: Option<String>,
    /// Maximum number of events per second.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Send to this topic, which must exist and be none that the relay delivers to: a consumer's own topic.
    #[arg(long, conflicts_with = "missing")]
    topic: Option<String>,
}

/// The rows that Kafka lacks.
#[derive(Args)]
struct Missing {
    /// Only events that are not in Kafka; without --since, of the last 24 hours.
    #[arg(long)]
    missing: bool,
    /// Send those, too, of which it is not known whether they are missing: retention or compaction may have removed their
    /// records. Some may have been delivered.
    #[arg(long, requires = "missing")]
    include_unverifiable: bool,
    /// A topic that an earlier routing gave; may be given several times. Events there are not missing.
    #[arg(long = "earlier-topic", requires = "missing")]
    earlier_topics: Vec<String>,
}

impl SelectedRows {
    fn selection(self) -> from_table::Selection {
        let SelectedRows { ids, since, until, event_type, key, name, rate, topic } = self;
        let name = name.unwrap_or_else(|| Utc::now().format("%Y%m%dT%H%M%SZ").to_string());
        let (ids, seqs) = (ids.into(), Vec::new());
        from_table::Selection { name, ids, seqs, since, until, event_type, key, rate, topic }
    }
}

#[derive(Args)]
struct Output {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() {
    let arguments: Arguments = process::arguments();
    let code = match arguments.command {
        Command::Run { file, log_format } => {
            let log_level = init_logging(DEFAULT_LOG_FILTER, log_format);
            process::exit_on_panic();
            outbox_relay::failpoint::arm();
            run(Arc::new(file.load()), log_level)
        }
        Command::Doctor { file, output } => {
            let config = file.load();
            block_on(async { process::report(&outbox_relay::doctor::examine(&config).await, output.json) })
        }
        Command::Lag { file, output } => {
            block_on(async { exit_code(cli::lag::lag(&file.load(), output.format()).await) })
        }
        Command::Where { file, id, output } => block_on(locate(&file.load(), &id, output.format())),
        Command::Audit { file, since, until, topics, output } => {
            block_on(audit(&file.load(), &audited(since, until, topics), output.format()))
        }
        Command::Replay { file, rows, missing, dry_run, output, .. } => {
            let (config, selection, format) = (file.load(), rows.selection(), output.format());
            let Missing { missing, include_unverifiable, earlier_topics } = missing;
            block_on(async {
                exit_code(if missing {
                    let scope = audited(selection.since, selection.until, earlier_topics);
                    let choice = Choice { include_unverifiable, dry_run };
                    cli::replay::missing::replay_missing(&config, &scope, &selection, choice, format).await
                } else if dry_run {
                    cli::replay::list_rows(&config, &selection, format).await
                } else {
                    cli::replay::replay_rows(&config, &selection, format)
                })
            })
        }
        Command::DeadLetters(DeadLetters::List { file, since, limit, output }) => {
            exit_code(cli::dead_letters::list(&file.load(), since, limit, output.format()))
        }
        Command::DeadLetters(DeadLetters::Replay { file, ids, all, since, output }) => {
            let selection = from_dead_letters::Selection { ids: ids.into(), all, since };
            exit_code(cli::replay::replay_dead_letters(&file.load(), &selection, output.format()))
        }
    };
    exit(code)
}

impl File {
    fn load(&self) -> Config {
        Config::load(&self.config, std::env::vars()).unwrap_or_else(|error| {
            eprintln!("invalid configuration: {error}");
            exit(EXIT_CONFIG)
        })
    }
}

impl Output {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

fn exit_code<E: std::fmt::Display>(done: Result<(), E>) -> i32 {
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            EXIT_UNAVAILABLE
        }
    }
}

/// Runs a command to its exit code.
fn block_on(command: impl Future<Output = i32>) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_or(EXIT_BUG, |runtime| runtime.block_on(command))
}

async fn locate(config: &Config, id: &str, format: Format) -> i32 {
    match cli::locate::locate(config, id, format).await {
        Ok(true) => 0,
        Ok(false) => EXIT_UNAVAILABLE,
        Err(error) => exit_code::<RelayError>(Err(error)),
    }
}

/// What an audit compares.
fn audited(since: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>, topics: Vec<String>) -> Scope {
    Scope { since: since.unwrap_or_else(|| Utc::now() - AUDITED_BY_DEFAULT), until, topics }
}

async fn audit(config: &Config, scope: &Scope, format: Format) -> i32 {
    match cli::audit::audit(config, scope, format).await {
        Ok(true) => 0,
        Ok(false) => EXIT_UNAVAILABLE,
        Err(error) => exit_code(Err(error)),
    }
}

/// The listener and the observer share one runtime. The session runs on its own thread and single-threaded runtime, so
/// its deliberate pauses delay nothing else.
fn run(config: Arc<Config>, log_level: LogLevel) -> i32 {
    let shared = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (Ok(shared), Ok(own), Ok(metrics)) = (shared, own, Metrics::new()) else {
        tracing::error!("cannot start the runtime");
        return EXIT_BUG;
    };
    metrics.set_relay_info(&config);
    let status = Status::new(&config);
    let replays = ReplayHandle::default();
    let (stop, shutdown) = watch::channel(false);
    let (ready, show) = (status.clone(), status.clone());
    let admin = Admin::new(metrics.registry.clone(), log_level)
        .readiness(move || ready.readiness())
        .status(move || show.json())
        .page(page::page())
        .action(DEAD_LETTERS_PATH, replay_by(&replays, &config, ReplayHandle::replay_dead_letters))
        .action(ROWS_PATH, replay_by(&replays, &config, ReplayHandle::replay_rows));
    let address = match shared.block_on(admin.bind(config.admin.listen)) {
        Ok((address, listener)) => {
            shared.spawn(listener);
            address
        }
        Err(error) => {
            eprintln!("invalid configuration: admin.listen: {error}");
            return EXIT_CONFIG;
        }
    };
    tracing::info!(%address, name = %config.name, version = process::version(), "outbox-relay starts");
    shared.spawn(observer::observe(Config::clone(&config), status.clone(), metrics.clone()));
    shared.spawn(standbys::observe(Config::clone(&config), status.clone()));
    shared.spawn(maintenance::maintain(Config::clone(&config), status.clone()));
    shared.spawn(stop_on_signal(stop, config.shutdown.grace()));
    let ended = own.block_on(supervisor::run(config, status, metrics, replays, shutdown));
    if ended.is_clean() {
        tracing::info!("{ended}");
    } else {
        tracing::warn!("{ended}");
    }
    // Blocking calls to Kafka that are still in progress have no effect any more.
    own.shutdown_background();
    shared.shutdown_background();
    0
}

/// A replay that is requested by HTTP, with a selection as its body.
fn replay_by<S: DeserializeOwned>(
    replays: &ReplayHandle,
    config: &Arc<Config>,
    replay: impl Fn(&ReplayHandle, &Arc<Config>, S) -> Result<Lines, ReplayRejected> + Send + Sync + 'static,
) -> impl Fn(&[u8]) -> Result<Lines, ActionRefused> + Send + Sync + 'static {
    let (replays, config) = (replays.clone(), Arc::clone(config));
    move |body| {
        let refused = |status, message: String| ActionRefused { status, message };
        let selection = serde_json::from_slice(body)
            .map_err(|error| refused(StatusCode::BAD_REQUEST, format!("invalid selection: {error}")))?;
        replay(&replays, &config, selection)
            .map_err(|rejected| refused(status_code(&rejected), rejected.to_string()))
    }
}

fn status_code(rejected: &ReplayRejected) -> StatusCode {
    match rejected {
        ReplayRejected::NothingSelected(_) | ReplayRejected::NoTopic | ReplayRejected::Name => {
            StatusCode::BAD_REQUEST
        }
        ReplayRejected::NotStreaming | ReplayRejected::Busy => StatusCode::CONFLICT,
        ReplayRejected::Credentials(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The first signal lets the relay stop gracefully; a second one, or the end of the grace period, ends it immediately.
async fn stop_on_signal(stop: watch::Sender<bool>, grace: Duration) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals");
        return;
    };
    let mut signalled = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    signalled().await;
    tracing::info!("stopping: completing what is in flight; a second signal stops immediately");
    stop.send_replace(true);
    match tokio::time::timeout(grace, signalled()).await {
        Ok(()) => {
            tracing::warn!(
                "stopped immediately by a second signal, before everything that was read was confirmed; the next start reads it again"
            )
        }
        Err(_) => tracing::warn!("{}", SessionEnd::Late),
    }
    exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_documents_are_accepted() {
        let parse = |words: &[String]| Arguments::try_parse_from(words).map(drop);
        testbed::documents::accepted("outbox-relay", 6, parse).unwrap();
    }
}
