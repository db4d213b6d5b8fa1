//! `cargo xtask test`: what a change must pass.

use std::num::NonZero;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use testbed::LONG_MATRIX;
use testbed::guard;
use testbed::kafka::{Kafka, KafkaOptions};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::rust::cargo;
use testbed::shared::VARIABLE;

use crate::Failure;
use crate::build;
use crate::paint::{bad, good, heading};

/// Builds a separate relay for the kill points, which dies where a test says; all else runs the relay as it is
/// shipped. The whole workspace is named with it, so that no dependency is compiled again for another set of features.
const FAILPOINTS: &str = "outbox-relay/failpoints";

/// Options of `test`.
#[derive(Args, Debug)]
pub struct Options {
    /// Only what needs no server: seconds after the build.
    #[arg(long, conflicts_with = "all")]
    quick: bool,
    /// Also the long matrix.
    #[arg(long)]
    all: bool,
}

/// One part of the run.
struct Part {
    name: &'static str,
    arguments: &'static [&'static str],
}

/// Lints first: they are the cheapest way to fail. The demo last: the whole way, as a visitor sees it.
const QUICK: [Part; 2] = [
    Part { name: "formatting", arguments: &["fmt", "--all", "--check"] },
    Part { name: "unit tests", arguments: &["test", "--locked", "--workspace", "--lib", "--bins"] },
];
const DEFAULT: [Part; 5] = [
    Part { name: "formatting", arguments: &["fmt", "--all", "--check"] },
    Part {
        name: "lints",
        arguments: &[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--features",
            FAILPOINTS,
            "--",
            "-D",
            "warnings",
        ],
    },
    Part { name: "tests on real servers", arguments: &["test", "--locked", "--workspace", "--no-fail-fast"] },
    Part {
        name: "kill points",
        arguments: &[
            "test",
            "--locked",
            "--workspace",
            "--features",
            FAILPOINTS,
            "--test",
            "relay",
            "--",
            "killpoints::",
            "refill::killed::",
        ],
    },
    Part { name: "the API against its contract", arguments: &["xtask", "contract"] },
];
const SOAK: Part = Part { name: "soak", arguments: &["xtask", "soak", "--minutes", "2"] };
const LONG_SOAK: Part = Part { name: "long soak", arguments: &["xtask", "soak", "--minutes", "10"] };
/// What PostgreSQL's versions differ in.
const OLDER: Part = Part {
    name: "types, tables, publications and refills on an older PostgreSQL",
    arguments: &[
        "test",
        "--locked",
        "--workspace",
        "--no-fail-fast",
        "--test",
        "relay",
        "--",
        "columns::",
        "tables::",
        "publication::",
        "data::e1",
        "start::",
        "refill::",
    ],
};
/// Not of every change: what others have published since is no fault of one, and the tool has to be built first.
const AUDIT: Part = Part { name: "audit", arguments: &["xtask", "audit"] };
/// Not of every change: it builds the programs with --release, and wants a machine that does nothing else.
const GATE: Part =
    Part { name: "rate, CPU time and memory of the relay", arguments: &["xtask", "bench", "gate"] };
const DEMO: Part = Part { name: "the whole way: demo", arguments: &["xtask", "demo"] };

/// Runs all parts, also after one has failed, and ends with how many passed and failed.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let (mut passed, mut failed) = (0, 0);
    if options.quick {
        for part in &QUICK {
            count(part, run_part(part, &[]).await?, &mut passed, &mut failed);
        }
        return conclude(passed, failed);
    }
    println!("{}", heading("servers"));
    let (postgres, kafka) =
        tokio::try_join!(Postgres::start(PostgresOptions::default()), Kafka::start(KafkaOptions::default()))?;
    let shared = json!({ "postgres_url": postgres.url("postgres"), "kafka_bootstrap": kafka.bootstrap() });
    let mut environment = vec![(VARIABLE, shared.to_string()), tests_at_a_time()];
    if options.all {
        environment.push((LONG_MATRIX, "1".to_owned()));
    }
    let soak = if options.all { &LONG_SOAK } else { &SOAK };
    let only_all: &[&Part] = if options.all { &[&AUDIT, &GATE] } else { &[] };
    for part in DEFAULT.iter().chain(only_all.iter().copied()).chain([soak, &DEMO]) {
        count(part, run_part(part, &environment).await?, &mut passed, &mut failed);
    }
    if options.all {
        for version in [PgVersion::V15, PgVersion::V17] {
            let older = Postgres::start(PostgresOptions { version, ..PostgresOptions::default() }).await?;
            let shared =
                json!({ "postgres_url": older.url("postgres"), "kafka_bootstrap": kafka.bootstrap() });
            let environment = vec![(VARIABLE, shared.to_string()), tests_at_a_time()];
            count(&OLDER, run_part(&OLDER, &environment).await?, &mut passed, &mut failed);
        }
    }
    conclude(passed, failed)
}

/// Three tests at a time for two processors: tests on real servers wait most of the time, and with libtest's one for each
/// processor more than half of the machine is idle. A number in the environment wins.
fn tests_at_a_time() -> (&'static str, String) {
    const THREADS: &str = "RUST_TEST_THREADS";
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    (THREADS, std::env::var(THREADS).unwrap_or_else(|_| (cpus * 3).div_ceil(2).to_string()))
}

/// Whether it passed, and how long it took.
async fn run_part(part: &Part, environment: &[(&str, String)]) -> Result<(bool, Duration), Failure> {
    println!("{}", heading(part.name));
    let start = Instant::now();
    let mut command = tokio::process::Command::from(cargo());
    command.current_dir(build::repository()).args(part.arguments).stdin(Stdio::null());
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    let mut cargo = command.process_group(0).spawn()?;
    // Without it, the tests would continue after a stop.
    guard::register(cargo.id().unwrap_or_default())?;
    Ok((cargo.wait().await?.success(), start.elapsed()))
}

fn count(part: &Part, (success, took): (bool, Duration), passed: &mut u32, failed: &mut u32) {
    let (counter, word) = if success { (passed, good("passed")) } else { (failed, bad("FAILED")) };
    *counter += 1;
    println!("{}: {word} in {} s", part.name, took.as_secs());
}

/// The last line is for machines.
fn conclude(passed: u32, failed: u32) -> Result<(), Failure> {
    println!("\n{passed} passed, {failed} failed");
    if failed == 0 { Ok(()) } else { Err("a part of the tests failed: see above".into()) }
}
