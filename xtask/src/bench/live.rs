//! How long an event takes from COMMIT to its consumer, and what that costs.
//!
//! Writers keep to their rate whatever the reader does, so a reader that falls behind is seen in every latency.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use testbed::load::{Load, LoadOptions};
use testbed::process::Program;
use testbed::records::Tail;
use testbed::wait;
use uuid::Uuid;

use super::comparison::{Figure, Measured, compare, table};
use super::debezium::Settings;
use super::readers::{Others, Reader, in_turn};
use super::report;
use super::site::{PARTITIONS, Servers, Site};
use super::usage::{Cpu, memory_mib};
use crate::Failure;
use crate::paint::faint;

/// Longest latency that is told apart: a minute.
const MOST_MICROS: u64 = 60_000_000;
/// Longer than any reader takes to start.
const READS_WITHIN: Duration = Duration::from_secs(120);

/// Options of `live`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Events per second; several rates are measured one after the other.
    #[arg(long, value_name = "EVENTS", value_delimiter = ',', default_value = "1000")]
    rate: Vec<f64>,
    /// Seconds measured.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seconds before, not counted.
    #[arg(long, default_value_t = 15)]
    warm_up: u64,
    /// Rounds; each measures all readers at all rates.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of filler in each payload.
    #[arg(long, default_value_t = 200)]
    filler: usize,
    /// Partitions of the topic.
    #[arg(long, default_value_t = PARTITIONS)]
    partitions: i32,
    /// Encrypts the readers' connections to PostgreSQL.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    #[serde(flatten)]
    others: Others,
}

/// One reader at one rate in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Followed {
    /// The reader's name.
    pub reader: String,
    /// Events per second that were asked for.
    pub rate: f64,
    /// Events per second that arrived.
    pub arrived_per_second: f64,
    /// Half of the events took no longer.
    pub p50_ms: f64,
    /// Nine of ten took no longer.
    pub p90_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// 999 of 1,000 took no longer.
    pub p999_ms: f64,
    /// None took longer.
    pub max_ms: f64,
    /// Microseconds per event while it was measured.
    pub cpu: Cpu,
    /// Most resident memory.
    pub peak_mib: f64,
}

/// All that is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures<O> {
    /// What was asked for.
    pub options: O,
    /// What all rounds say, for each rate.
    pub comparisons: Vec<(f64, Vec<Measured>)>,
    /// Every measurement, in its order.
    pub followed: Vec<Followed>,
}

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let readers = options.others.readers(programs, Settings::Latency)?;
    let servers = Servers::start(options.tls).await?;
    let mut figures = Figures { options, comparisons: Vec::new(), followed: Vec::new() };
    for number in 1..=options.rounds {
        for reader in in_turn(&readers, number) {
            for rate in &options.rate {
                let name = reader.name();
                println!("{}", faint(&format!("round {number} of {}: {name}, {rate}/s", options.rounds)));
                figures.followed.push(follow(options, &servers, reader, *rate).await?);
            }
        }
    }
    let names: Vec<String> = readers.iter().map(Reader::name).collect();
    let mut tables = String::new();
    for rate in &options.rate {
        let its: Vec<Followed> =
            figures.followed.iter().filter(|followed| followed.rate == *rate).cloned().collect();
        let rows = compare(&names, &its, |followed| &followed.reader, &MEASURES);
        tables += &format!("  {rate} events/s\n{}\n", table(&names, &rows));
        figures.comparisons.push((*rate, rows));
    }
    report("live", &tables, &figures)
}

/// What is compared; pictures know them by these names.
pub const LATENCIES: [&str; 2] = ["p50, ms", "p99, ms"];

const MEASURES: [(&str, Figure<Followed>); 11] = [
    ("arrived, events/s", |followed| followed.arrived_per_second),
    (LATENCIES[0], |followed| followed.p50_ms),
    ("p90, ms", |followed| followed.p90_ms),
    (LATENCIES[1], |followed| followed.p99_ms),
    ("p99.9, ms", |followed| followed.p999_ms),
    ("longest, ms", |followed| followed.max_ms),
    ("CPU per event, us: reader", |followed| followed.cpu.reader),
    ("walsender", |followed| followed.cpu.walsender),
    ("broker", |followed| followed.cpu.broker),
    ("whole machine", |followed| followed.cpu.machine),
    ("peak memory, MiB", |followed| followed.peak_mib),
];

/// Live traffic through one reader.
async fn follow(
    options: &Options,
    servers: &Servers,
    reader: &Reader,
    rate: f64,
) -> Result<Followed, Failure> {
    let site = Site::new(servers, options.partitions, |aggregate| vec![aggregate.to_owned()]).await?;
    reader.prepare(&site).await?;
    let mut program = reader.start(&site)?;
    reads(&site, &mut program).await?;
    let topics: Vec<&str> = site.topics.iter().map(String::as_str).collect();
    let tail = Tail::start(&site.bootstrap, &topics).await?;
    let load = LoadOptions {
        rows: 1..=1,
        rollback_percent: 0,
        savepoint_percent: 0,
        filler_bytes: options.filler,
        rate: Some(rate),
        aggregatetype: site.aggregate.clone(),
        topic: topics.concat(),
        ..LoadOptions::default()
    };
    let load = Load::start(site.database.url(), load).await?;
    let warm = SystemTime::now() + Duration::from_secs(options.warm_up);
    arrivals(&tail, warm).await?;
    let before = Cpu::now(servers, &site, &program).await?;
    let arrived = arrivals(&tail, warm + Duration::from_secs(options.seconds)).await?;
    let after = Cpu::now(servers, &site, &program).await?;
    load.stop().await?;
    let (_, peak_mib) = memory_mib(&program).ok_or("the reader has ended")?;
    let latencies = latencies(&site, &arrived).await?;
    let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Followed {
        reader: reader.name(),
        rate,
        arrived_per_second: latencies.len() as f64 / options.seconds as f64,
        p50_ms: ms(0.5),
        p90_ms: ms(0.9),
        p99_ms: ms(0.99),
        p999_ms: ms(0.999),
        max_ms: ms(1.0),
        cpu: after.per_event(before, latencies.len().max(1)),
        peak_mib,
    })
}

/// Waits until the reader reads its slot.
async fn reads(site: &Site, program: &mut Program) -> Result<(), Failure> {
    let reading = wait::until("a reader on its slot", READS_WITHIN, async || match site.walsender().await {
        Ok(Some(_)) => Ok(Ok(())),
        Ok(None) if program.exit_status().is_some() => Ok(Err(program.log_tail())),
        Ok(None) => Err(program.log_tail()),
        Err(error) => Err(error.to_string()),
    });
    Ok(reading.await??)
}

/// The events that arrive until `end`, and when.
async fn arrivals(tail: &Tail, end: SystemTime) -> Result<HashMap<Uuid, SystemTime>, Failure> {
    let mut arrived = HashMap::new();
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        if let Ok(record) = tokio::time::timeout(left, tail.next()).await {
            let id = record?.event_id().ok_or("a record without the id of its event")?;
            arrived.entry(id).or_insert_with(SystemTime::now);
        }
    }
    Ok(arrived)
}

/// Arrival minus commit, as PostgreSQL timed it. One machine, one clock.
async fn latencies(site: &Site, arrived: &HashMap<Uuid, SystemTime>) -> Result<Histogram<u64>, Failure> {
    let mut histogram = Histogram::new_with_bounds(1, MOST_MICROS, 3)?;
    let mut connection = site.database.connect().await?;
    let commits =
        "SELECT id, (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint FROM outbox";
    for row in &sqlx::query(commits).fetch_all(&mut connection).await? {
        let (id, committed): (Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
        let Some(arrived) = arrived.get(&id) else { continue };
        let arrived = arrived.duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        let micros = u64::try_from(arrived)?.saturating_sub(committed.unsigned_abs());
        histogram.record(micros.clamp(1, MOST_MICROS))?;
    }
    Ok(histogram)
}
