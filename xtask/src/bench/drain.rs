//! How fast a backlog drains, and what that costs.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::{Deserialize, Serialize};
use testbed::load::{Backlog, write_backlog};
use testbed::log_ends::LogEnds;

use super::comparison::{Figure, Measured, compare, table};
use super::debezium::Settings;
use super::limits::Limits;
use super::readers::{Others, Reader, THIS, in_turn};
use super::report;
use super::site::{PARTITIONS, Servers, Site};
use super::statistics::{Spread, ratio};
use super::usage::{Cpu, memory_mib};
use crate::Failure;
use crate::paint::faint;

/// No drain takes longer.
const WITHIN: Duration = Duration::from_secs(1800);
/// Longer than any reader takes to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(120);
/// How often memory is looked at, and whether everything has been delivered.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Options of `drain`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Rows of the backlog.
    #[arg(long, default_value_t = 500_000)]
    rows: u64,
    /// Rows of a transaction; several sizes, such as 1,1,100, take turns.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "1")]
    transaction_rows: Vec<usize>,
    /// Bytes of filler in each payload.
    #[arg(long, default_value_t = 330)]
    filler: usize,
    /// Rounds; each measures all readers, each on its own copy of the same backlog. The first drain is not counted.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Partitions of each topic.
    #[arg(long, default_value_t = PARTITIONS)]
    partitions: i32,
    /// Topics that the rows are spread over.
    #[arg(long, default_value_t = 1)]
    topics: usize,
    /// Delivers a row to each topic first and stops, so that the reader that is measured starts again.
    #[arg(long)]
    restart: bool,
    /// Encrypts the readers' connections to PostgreSQL. pg_recvlogical reads without TLS.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    #[serde(flatten)]
    others: Others,
}

/// One reader in one round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drained {
    /// Its name.
    pub reader: String,
    /// From the first record to the last, by the broker's clock.
    pub events_per_second: f64,
    /// From the start of the process to the first record.
    pub first_record_ms: f64,
    /// Microseconds per event, from the start of the process on.
    pub cpu: Cpu,
    /// Most resident memory.
    pub peak_mib: f64,
    /// Seconds since the start, and resident memory then.
    pub memory_mib: Vec<(f64, f64)>,
    /// Records that were delivered more than once.
    pub surplus: u64,
}

/// All that is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures<O> {
    /// What was asked for.
    pub options: O,
    /// What all rounds say.
    pub comparison: Vec<Measured>,
    /// Every drain, in its order.
    pub drains: Vec<Drained>,
    /// Per round.
    pub limits: Vec<Limits>,
}

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let readers = options.others.readers(programs, Settings::Throughput)?;
    let servers = Servers::start(options.tls).await?;
    // The first drain finds a broker whose JVM has compiled nothing yet: it took a third longer than the same again.
    println!("{}", faint("a drain that is not counted, for Kafka to get warm"));
    let relay = readers.first().ok_or("nothing to measure")?;
    drain(options, &servers, relay, None).await?;
    let mut figures = Figures { options, comparison: Vec::new(), drains: Vec::new(), limits: Vec::new() };
    for number in 1..=options.rounds {
        for reader in in_turn(&readers, number) {
            println!("{}", faint(&format!("round {number} of {}: {}", options.rounds, reader.name())));
            let limits = (reader.name() == THIS).then_some(number % 2 == 0);
            let (drained, limits) = drain(options, &servers, reader, limits).await?;
            figures.drains.push(drained);
            figures.limits.extend(limits);
        }
    }
    let names: Vec<String> = readers.iter().map(Reader::name).collect();
    figures.comparison = compare(&names, &figures.drains, |drained| &drained.reader, &MEASURES);
    let table = table(&names, &figures.comparison) + &limits(&figures);
    report("drain", &table, &figures)
}

/// What is compared; pictures know them by these names.
pub const RATE: &str = "events/s, first to last record";
/// Most resident memory.
pub const PEAK: &str = "peak memory, MiB";
/// The parts of the CPU time that pictures show.
pub const CPU: [&str; 3] = ["CPU per event, us: reader", "walsender", "broker"];

const MEASURES: [(&str, Figure<Drained>); 7] = [
    (RATE, |drained| drained.events_per_second),
    ("first record after the start, ms", |drained| drained.first_record_ms),
    (CPU[0], |drained| drained.cpu.reader),
    (CPU[1], |drained| drained.cpu.walsender),
    (CPU[2], |drained| drained.cpu.broker),
    ("whole machine", |drained| drained.cpu.machine),
    (PEAK, |drained| drained.peak_mib),
];

impl Options {
    fn backlog(&self, aggregatetype: &str) -> Backlog {
        Backlog {
            rows: self.rows as usize,
            rows_per_transaction: self.transaction_rows.clone(),
            filler_bytes: self.filler,
            aggregatetype: aggregatetype.to_owned(),
            types: self.topics,
            ..Backlog::default()
        }
    }
}

/// Writes a backlog for a reader and lets it drain. With `limits`, they are measured on the same backlog, and the value says whether after
/// the drain: who is first finds the WAL cold.
async fn drain(
    options: &Options,
    servers: &Servers,
    reader: &Reader,
    limits: Option<bool>,
) -> Result<(Drained, Option<Limits>), Failure> {
    let aggregatetypes = |own: &str| options.backlog(own).aggregatetypes();
    let site = Site::new(servers, options.partitions, aggregatetypes).await?;
    reader.prepare(&site).await?;
    let backlog = options.backlog(&site.aggregate);
    if options.restart {
        let each_topic = Backlog { rows: options.topics, rows_per_transaction: vec![1], ..backlog.clone() };
        write_backlog(site.database.url(), &each_topic).await?;
        delivered(options.topics as u64, servers, reader, &site).await?;
    }
    if limits.is_some() {
        Limits::prepare(&site).await?;
    }
    write_backlog(site.database.url(), &backlog).await?;
    let rows = options.rows as f64;
    let before = match limits {
        Some(false) => Some(Limits::measure(&site, rows).await?),
        _ => None,
    };
    let drained = delivered(options.rows, servers, reader, &site).await?;
    let after = match limits {
        Some(true) => Some(Limits::measure(&site, rows).await?),
        _ => None,
    };
    Ok((drained, before.or(after)))
}

/// From the start of the reader until all rows are in Kafka; then it is stopped.
async fn delivered(rows: u64, servers: &Servers, reader: &Reader, site: &Site) -> Result<Drained, Failure> {
    let logs = LogEnds::open(&site.bootstrap, &site.topics).await?;
    let before = Cpu::before(servers);
    let (started, clock) = (SystemTime::now(), Instant::now());
    let mut program = reader.start(site)?;
    let mut memory = Vec::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    while logs.records().await? < rows {
        if program.exit_status().is_some() || clock.elapsed() > WITHIN {
            return Err(format!("{} does not deliver: {}", reader.name(), program.log_tail()).into());
        }
        memory.extend(memory_mib(&program).map(|(now, _)| (clock.elapsed().as_secs_f64(), now)));
        looks.tick().await;
    }
    let after = Cpu::now(servers, site, &program).await?;
    let (_, peak_mib) = memory_mib(&program).ok_or("the reader has ended")?;
    program.terminate()?;
    program.wait(STOPS_WITHIN).await?;
    let (first, last) = logs.appended().await?.ok_or("no record was delivered")?;
    // The broker's clock has milliseconds.
    let took = last.duration_since(first)?.max(Duration::from_millis(1));
    Ok(Drained {
        reader: reader.name(),
        events_per_second: rows as f64 / took.as_secs_f64(),
        first_record_ms: first.duration_since(started).unwrap_or_default().as_secs_f64() * 1e3,
        cpu: after.per_event(before, rows),
        peak_mib,
        memory_mib: memory,
        surplus: logs.records().await?.saturating_sub(rows),
    })
}

/// Lines for what delivers nothing, and for what was delivered too often.
fn limits<O>(figures: &Figures<O>) -> String {
    let relay = Spread::of(
        figures
            .drains
            .iter()
            .filter(|drained| drained.reader == THIS)
            .map(|drained| drained.events_per_second),
    );
    let mut lines = String::new();
    for (name, figure) in super::limits::MEASURES {
        let reached = Spread::of(figures.limits.iter().map(figure));
        if let (Some(Spread { min, median, max }), Some(times)) = (reached, ratio(relay, reached)) {
            lines += &format!(
                "  {name}: {median:.0} ({min:.0} to {max:.0}) rows/s; the relay's rate is {times:.2} of it\n"
            );
        }
    }
    let surplus: u64 = figures.drains.iter().map(|drained| drained.surplus).sum();
    if surplus > 0 {
        lines += &format!("  {surplus} records were delivered more than once\n");
    }
    lines
}
