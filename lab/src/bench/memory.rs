//! How much memory a reader holds: with nothing to do, with one large transaction, and while Kafka does not answer.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use testbed::load::{Backlog, write_backlog};
use testbed::log_ends::LogEnds;
use testbed::process::Program;

use super::comparison::{Figure, Measured, compare, table};
use super::debezium::Settings;
use super::readers::{Others, Reader, in_turn};
use super::report;
use super::site::{PARTITIONS, ServerOptions, Servers, Site};
use super::usage::memory_mib;
use crate::Failure;
use crate::paint::faint;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// No backlog takes longer.
const WITHIN: Duration = Duration::from_secs(600);

/// Options of `memory`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Seconds with nothing to do, and seconds in which Kafka does not answer.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Rows of the large transaction, and of the backlog that waits for Kafka.
    #[arg(long, default_value_t = 200_000)]
    rows: usize,
    /// Bytes of filler in each payload.
    #[arg(long, default_value_t = 330)]
    filler: usize,
    /// Rounds; each measures all readers.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerOptions,
    #[command(flatten)]
    #[serde(flatten)]
    others: Others,
}

/// One reader in one round, MiB of resident memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Held {
    /// Its name.
    pub reader: String,
    /// With nothing to do.
    pub idle: f64,
    /// Per cent of a CPU with nothing to do.
    pub idle_cpu: f64,
    /// At most, while it delivered one large transaction.
    pub large_transaction: f64,
    /// At most, while Kafka did not answer.
    pub without_kafka: f64,
    /// At most, while it delivered what had waited for Kafka.
    pub afterwards: f64,
}

const MEASURES: [(&str, Figure<Held>); 5] = [
    ("nothing to do, MiB", |held| Some(held.idle)),
    ("nothing to do, % of a CPU", |held| Some(held.idle_cpu)),
    ("one large transaction, peak MiB", |held| Some(held.large_transaction)),
    ("Kafka does not answer, peak MiB", |held| Some(held.without_kafka)),
    ("Kafka answers again, peak MiB", |held| Some(held.afterwards)),
];

/// All that is kept.
#[derive(Debug, Serialize)]
struct Figures<'a> {
    options: &'a Options,
    comparison: Vec<Measured>,
    held: Vec<Held>,
}

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let readers = options.others.readers(programs, Settings::Throughput)?;
    let servers = Servers::start(options.servers).await?;
    let mut held = Vec::new();
    for number in 1..=options.rounds {
        for reader in in_turn(&readers, number) {
            println!("{}", faint(&format!("round {number} of {}: {}", options.rounds, reader.name())));
            held.push(measure(options, &servers, reader).await?);
        }
    }
    let names: Vec<String> = readers.iter().map(Reader::name).collect();
    let all: Vec<&Held> = held.iter().collect();
    let comparison = compare(&names, &all, |held| &held.reader, &MEASURES);
    let table = table(&names, &comparison);
    report("memory", &table, &Figures { options, comparison, held })
}

async fn measure(options: &Options, servers: &Servers, reader: &Reader) -> Result<Held, Failure> {
    let site = Site::new(servers, PARTITIONS, |own| vec![own.to_owned()]).await?;
    reader.prepare(&site).await?;
    let mut program = reader.start(&site)?;
    site.until_read_by(&mut program).await?;
    let seconds = Duration::from_secs(options.seconds);
    let (idle, idle_cpu) = idle(&program, seconds).await?;

    let logs = LogEnds::open(&site.bootstrap, &site.topics).await?;
    write(options, &site, options.rows).await?;
    let large_transaction = peak_until_delivered(&mut program, &logs, options.rows).await?;

    servers.kafka.pause()?;
    write(options, &site, 1).await?;
    let without_kafka = peak_for(&mut program, seconds).await?;
    servers.kafka.resume()?;
    let afterwards = peak_until_delivered(&mut program, &logs, 2 * options.rows).await?;
    Ok(Held { reader: reader.name(), idle, idle_cpu, large_transaction, without_kafka, afterwards })
}

/// Memory and CPU of a reader that has nothing to do.
async fn idle(program: &Program, time: Duration) -> Result<(f64, f64), Failure> {
    let (before, clock) = (program.cpu_seconds(), Instant::now());
    tokio::time::sleep(time).await;
    let share = (program.cpu_seconds() - before) / clock.elapsed().as_secs_f64();
    let (now, _) = memory_mib(program).ok_or("the reader has ended")?;
    Ok((now, share * 100.0))
}

/// Rows in transactions of this size.
async fn write(options: &Options, site: &Site, transaction: usize) -> Result<(), Failure> {
    let backlog = Backlog {
        rows: options.rows,
        rows_per_transaction: vec![transaction],
        filler_bytes: options.filler,
        aggregatetype: site.aggregate.clone(),
        ..Backlog::default()
    };
    Ok(write_backlog(site.database.url(), &backlog).await?)
}

/// Most memory until so many records have been delivered.
async fn peak_until_delivered(program: &mut Program, logs: &LogEnds, rows: usize) -> Result<f64, Failure> {
    let (clock, mut peak) = (Instant::now(), 0.0);
    while logs.records().await? < rows as u64 {
        if clock.elapsed() > WITHIN {
            return Err(format!("the reader does not deliver: {}", program.log_tail()).into());
        }
        peak = peak_for(program, LOOK_EVERY).await?.max(peak);
    }
    Ok(peak)
}

/// Most memory within this time.
async fn peak_for(program: &mut Program, time: Duration) -> Result<f64, Failure> {
    let (clock, mut peak) = (Instant::now(), 0.0f64);
    while clock.elapsed() < time {
        if program.exit_status().is_some() {
            return Err(format!("the reader has ended: {}", program.log_tail()).into());
        }
        peak = memory_mib(program).map_or(peak, |(now, _)| peak.max(now));
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(peak)
}
