//! `cargo xtask up`: the platform on this machine until interrupted, supervised as Kubernetes would.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use testbed::postgres::PgVersion;
use testbed::process::Program;

use crate::Failure;
use crate::build::{self, Profile};
use crate::stack::{Stack, StackOptions, TOKEN};

/// Kubernetes waits a little before it starts a container again, too.
const PAUSE_BEFORE_RESTART: Duration = Duration::from_secs(1);
/// How often it is looked whether something has died.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Options of `up`.
#[derive(Args, Debug)]
pub struct Options {
    /// Print one line of JSON with all addresses and process numbers when ready, and again after each restart.
    #[arg(long)]
    json: bool,
    /// Major version of PostgreSQL: 15, 17 or 18.
    #[arg(long, default_value = "18", value_parser = postgres_version)]
    postgres: PgVersion,
    /// Kafka brokers: 1 or 3.
    #[arg(long, default_value = "1", value_parser = broker_count)]
    brokers: usize,
    /// The relay's configuration, in place of one that fits the started servers.
    #[arg(long, value_name = "FILE")]
    relay_config: Option<PathBuf>,
    /// Do not start the relay.
    #[arg(long)]
    no_relay: bool,
    /// Do not start the basket API.
    #[arg(long)]
    no_api: bool,
}

fn postgres_version(text: &str) -> Result<PgVersion, String> {
    text.parse().ok().and_then(PgVersion::from_major).ok_or_else(|| "15, 17 or 18".to_owned())
}

fn broker_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| [1, 3].contains(count)).ok_or_else(|| "1 or 3".to_owned())
}

/// Runs until interrupted.
pub async fn run(options: Options) -> Result<(), Failure> {
    let programs = build::programs(Profile::Dev)?;
    let stack_options = StackOptions {
        postgres: options.postgres,
        brokers: options.brokers,
        api: !options.no_api,
        relay: !options.no_relay,
        relay_config: options.relay_config,
    };
    // Standard output is for the JSON line alone.
    let progress = |what: &str| eprintln!("  {what}");
    let mut stack = Stack::servers(stack_options, programs, progress).await?;
    stack.programs(progress).await?;
    announce(&stack, options.json);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if restart_dead(&mut stack).await? {
            announce(&stack, options.json);
        }
    }
}

fn announce(stack: &Stack, json: bool) {
    let addresses = addresses(stack);
    if json { println!("{addresses}") } else { println!("{addresses:#}") }
}

/// Where everything is.
pub fn addresses(stack: &Stack) -> Value {
    json!({
        "postgres_url": stack.database_url(),
        "kafka_bootstrap": stack.kafka.bootstrap(),
        "api_url": stack.api.as_ref().map(|_| stack.api_url()),
        "api_token": stack.api.as_ref().map(|_| TOKEN),
        "relay_admin_url": stack.relay.as_ref().map(|_| stack.relay_admin_url()),
        "pids": {
            "postgres": stack.postgres.pid(),
            "kafka": stack.kafka.pids(),
            "api": stack.api.as_ref().map(Program::pid),
            "relay": stack.relay.as_ref().map(Program::pid),
        },
    })
}

/// Restarts what has died. A program is not waited for: it reports when it is ready.
async fn restart_dead(stack: &mut Stack) -> Result<bool, Failure> {
    let api_died = stack.api.as_mut().is_some_and(|program| program.exit_status().is_some());
    let relay_died = stack.relay.as_mut().is_some_and(|program| program.exit_status().is_some());
    let (postgres_died, kafka_died) = (stack.postgres.has_ended(), stack.kafka.has_ended());
    if !(api_died || relay_died || postgres_died || kafka_died) {
        return Ok(false);
    }
    tokio::time::sleep(PAUSE_BEFORE_RESTART).await;
    if api_died {
        eprintln!("basket-api has died: starting it again");
        stack.launch_api()?;
    }
    if relay_died {
        eprintln!("outbox-relay has died: starting it again");
        stack.launch_relay()?;
    }
    if postgres_died {
        eprintln!("PostgreSQL has died: starting it again");
        stack.postgres.kill().await?;
        tried(stack.postgres.start_again().await);
    }
    if kafka_died {
        eprintln!("a Kafka broker has died: starting it again");
        tried(stack.kafka.start_again().await);
    }
    Ok(true)
}

/// A server that did not come up is found dead at the next look, and tried again.
fn tried(started: Result<(), testbed::Error>) {
    if let Err(error) = started {
        eprintln!("{error}");
    }
}
