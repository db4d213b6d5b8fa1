//! `cargo xtask bench`: measurements, side by side in one run. What counts is the ratio; absolute figures belong with
//! the machine they were taken on, which the result names.

mod api;
mod arrivals;
mod backlog;
mod cases;
mod comparison;
mod debezium;
mod drain;
mod gate;
mod limits;
mod live;
mod memory;
mod pictures;
mod readers;
mod reads;
mod relay;
mod scale;
mod site;
mod startup;
mod statistics;
mod svg;
mod usage;

use std::path::{Path, PathBuf};
use std::process::Command;

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
    /// Measures the programs in this folder instead of building those of this commit.
    #[arg(long, global = true, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Scenario {
    /// A backlog: how fast it is delivered to Kafka, and what that costs. pg_recvlogical reads the same into nothing.
    Drain(drain::Options),
    /// Live traffic at fixed rates: from COMMIT to the consumer.
    Live(live::Options),
    /// How soon a reader that is started again delivers, with few and with many topics that it knows.
    Startup(startup::Options),
    /// Resident memory: with nothing to do, with one large transaction, and while Kafka does not answer.
    Memory(memory::Options),
    /// Backlogs of different shapes: transactions, partitions, topics, payloads, replicas.
    Scale(scale::Options),
    /// A short drain against limits with wide margins. Fails beyond them.
    Gate(gate::Options),
    /// Commands and queries over HTTP: the basket API against pgbench running the same statements.
    Api(api::Options),
    /// Draws the results in target/bench into docs/images.
    Pictures,
}

/// Runs one.
pub async fn run(options: &Options) -> Result<(), Failure> {
    match &options.scenario {
        Scenario::Drain(scenario) => drain::run(scenario, &options.programs()?).await,
        Scenario::Live(scenario) => live::run(scenario, &options.programs()?).await,
        Scenario::Startup(scenario) => startup::run(scenario, &options.programs()?).await,
        Scenario::Memory(scenario) => memory::run(scenario, &options.programs()?).await,
        Scenario::Scale(scenario) => scale::run(scenario, &options.programs()?).await,
        Scenario::Gate(scenario) => gate::run(scenario, &options.programs()?).await,
        Scenario::Api(scenario) => api::run(scenario, &options.programs()?).await,
        Scenario::Pictures => pictures::run(),
    }
}

impl Options {
    /// The folder of the programs that are measured; builds them if need be.
    fn programs(&self) -> Result<PathBuf, Failure> {
        self.programs.clone().map_or_else(|| build::programs(Profile::Release), Ok)
    }
}

/// Where figures come from.
#[derive(Serialize)]
struct Machine {
    commit: String,
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
        let commit = build::output(Command::new("git").args(["describe", "--always", "--dirty"]));
        Machine {
            commit: String::from_utf8_lossy(&commit.unwrap_or_default()).trim().to_owned(),
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
    let path = results(name);
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
    let result = serde_json::json!({ "machine": Machine::here(), "figures": figures });
    std::fs::write(&path, serde_json::to_string_pretty(&result)?)?;
    println!("{}", faint(&format!("figures: {}", path.display())));
    Ok(())
}

/// Where the figures of a scenario are kept.
fn results(name: &str) -> PathBuf {
    build::target().join("bench").join(format!("{name}.json"))
}
