//! `cargo xtask bench`: measurements, side by side in one run. What counts is the ratio; absolute figures belong with
//! the machine they were taken on, which the result names.

mod api;
mod baseline;
mod drain;
mod live;
mod site;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::Failure;
use crate::build::{self, Profile};
use crate::paint::{faint, heading};

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand, Debug)]
enum Scenario {
    /// A backlog of one-row transactions: the relay to Kafka against pg_recvlogical to nowhere.
    Drain(drain::Options),
    /// Live traffic at a fixed rate: from COMMIT to the consumer.
    Live(live::Options),
    /// Commands and queries over HTTP: the basket API against pgbench running the same statements.
    Api(api::Options),
}

/// Runs one.
pub async fn run(options: &Options) -> Result<(), Failure> {
    build::require_tools()?;
    let programs = build::programs(Profile::Release)?;
    match &options.scenario {
        Scenario::Drain(options) => drain::run(options, &programs).await,
        Scenario::Live(options) => live::run(options, &programs).await,
        Scenario::Api(options) => api::run(options, &programs).await,
    }
}

/// Where figures come from.
#[derive(Serialize)]
struct Machine {
    cpu: String,
    cpus: usize,
    memory_kib: String,
    kernel: String,
}

impl Machine {
    fn here() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_kib: field(&read("/proc/meminfo"), "MemTotal"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Prints a table and keeps the figures in `target/bench`.
fn report<T: Serialize>(name: &str, table: &str, figures: &T) -> Result<(), Failure> {
    println!("{}\n{table}", heading(name));
    let folder: PathBuf = build::target().join("bench");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.json"));
    let result = serde_json::json!({ "machine": Machine::here(), "figures": figures });
    std::fs::write(&path, serde_json::to_string_pretty(&result)?)?;
    println!("{}", faint(&format!("figures: {}", path.display())));
    Ok(())
}
