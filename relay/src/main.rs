//! The program `outbox-relay`: arguments, configuration, wiring.

use std::path::PathBuf;
use std::process::exit;

use admin::{Admin, EXIT_BUG, EXIT_CONFIG, LogFormat, LogLevel, init_logging};
use clap::{Parser, Subcommand, ValueEnum};
use outbox_relay::config::Config;
use outbox_relay::metrics::Metrics;
use outbox_relay::pump::Ended;
use outbox_relay::status::Status;
use outbox_relay::{maintenance, observer, relay};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// librdkafka's own lines repeat at every attempt; what they say is in the relay's own words in `/status`.
const DEFAULT_LOG_FILTER: &str = "info,librdkafka=off,rdkafka=off";

/// Carries committed outbox rows from Postgres to Kafka.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 stopped in order, 64 invalid configuration, 70 a bug.\n\
    Nothing else ends the process: a fault is shown by /readyz, /status and metrics of the admin listener."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Deliver until stopped. SIGTERM finishes what is under way, confirms it, and exits 0.
    Run {
        /// The configuration file. Environment variables OUTBOX_RELAY__SECTION__FIELD override its fields;
        /// OUTBOX_RELAY_SOURCE_PASSWORD gives the source role's password.
        #[arg(long, env = "OUTBOX_RELAY_CONFIG")]
        config: PathBuf,
        /// How log lines look.
        #[arg(long, env = "OUTBOX_RELAY_LOG_FORMAT", default_value = "text")]
        log_format: LogLines,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLines {
    Text,
    Json,
}

fn main() {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| {
        drop(error.print());
        exit(if error.use_stderr() { EXIT_CONFIG } else { 0 })
    });
    let Command::Run { config, log_format } = arguments.command;
    let format = match log_format {
        LogLines::Text => LogFormat::Text,
        LogLines::Json => LogFormat::Json,
    };
    let log_level = init_logging(DEFAULT_LOG_FILTER, format);
    admin::exit_on_panic();
    let config = Config::load(&config, std::env::vars()).unwrap_or_else(|error| {
        eprintln!("invalid configuration: {error}");
        exit(EXIT_CONFIG)
    });
    exit(run(config, log_level))
}

/// The listener and the observer share one runtime; the relay has a thread of its own, where it may pause without
/// anybody noticing.
fn run(config: Config, log_level: LogLevel) -> i32 {
    let shared = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (Ok(shared), Ok(own), Ok(metrics)) = (shared, own, Metrics::new()) else {
        tracing::error!("cannot start the runtime");
        return EXIT_BUG;
    };
    let status = Status::default();
    let (stop, shutdown) = watch::channel(false);
    let (ready, show) = (status.clone(), status.clone());
    let admin = Admin::new(metrics.registry.clone(), log_level)
        .readiness(move || ready.readiness())
        .status(move || show.json());
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
    tracing::info!(%address, name = %config.name, version = env!("CARGO_PKG_VERSION"), "outbox-relay starts");
    shared.spawn(observer::observe(config.clone(), status.clone(), metrics.clone()));
    shared.spawn(maintenance::maintain(config.clone(), status.clone()));
    shared.spawn(stop_on_signal(stop));
    let ended = own.block_on(relay::run(config, status, metrics, shutdown));
    match ended {
        Ended::Drained => tracing::info!("stopped in order"),
        Ended::GaveUp => tracing::warn!("stopped at the deadline; what was not confirmed will be replayed"),
    }
    // Blocking calls into Kafka that are still under way have nothing left to say.
    own.shutdown_background();
    shared.shutdown_background();
    0
}

async fn stop_on_signal(stop: watch::Sender<bool>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: finishing what is under way");
    stop.send_replace(true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
