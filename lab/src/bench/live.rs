//! How long an event takes from COMMIT to its consumer, and what that costs.
//!
//! Writers keep to their rate whatever the reader does, and every event that was committed while it was measured counts, also one that
//! arrives after that or never: a reader that falls behind is seen in every latency.

use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::{Deserialize, Serialize};
use testbed::kafka::Batches;
use testbed::load::{Load, LoadOptions};
use testbed::process::Program;

use super::arrivals::{Arrivals, LONGEST, committed, latencies};
use super::comparison::{Figure, Measured, compare, table};
use super::debezium::Settings;
use super::readers::{Others, Reader, in_turn};
use super::reads::{CountReads, Counter, Reads};
use super::report;
use super::site::{PARTITIONS, ServerOptions, Servers, Site};
use super::usage::{Cpu, memory_mib};
use crate::Failure;
use crate::paint::faint;

/// The fewest connections that write.
const WRITERS: usize = 4;
/// Transactions per second that a connection commits with ease: most of its time it waits for the disk.
const RATE_OF_A_WRITER: f64 = 200.0;
/// Keys of the events: writers seldom wait for each other's.
const KEYS: usize = 1_000;
/// A reader that is this slow does not keep up: it is not measured at higher rates.
const TOO_SLOW_MS: f64 = 5_000.0;

/// Options of `live`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Events per second; several rates are measured one after the other, until a reader does not keep up.
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
    /// Counts the reads of the slot. That needs perf, and makes every system call of the machine slower.
    #[arg(long)]
    reads: bool,
    #[command(flatten)]
    #[serde(flatten)]
    servers: ServerOptions,
    #[command(flatten)]
    #[serde(flatten)]
    others: Others,
}

/// One reader at one rate in one round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Followed {
    /// The reader's name.
    pub reader: String,
    /// Events per second that were asked for.
    pub rate: f64,
    /// Events per second that were written.
    pub written_per_second: f64,
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
    /// Per cent of the events, and the latency that these did not exceed.
    pub distribution: Vec<(f64, f64)>,
    /// Microseconds per event while it was measured.
    pub cpu: Cpu,
    /// Most resident memory.
    pub peak_mib: f64,
    /// Records of a batch that the broker stored.
    pub batch_records: Option<f64>,
    /// Reads of the slot, if they were counted.
    pub reads: Option<Reads>,
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
    let servers = Servers::start(options.servers).await?;
    let mut rates = options.rate.clone();
    rates.sort_by(f64::total_cmp);
    let mut figures = Figures { options, comparisons: Vec::new(), followed: Vec::new() };
    for number in 1..=options.rounds {
        for reader in in_turn(&readers, number) {
            let name = reader.name();
            for rate in &rates {
                println!("{}", faint(&format!("round {number} of {}: {name}, {rate}/s", options.rounds)));
                let followed = follow(options, &servers, reader, *rate).await?;
                let too_slow = followed.p50_ms > TOO_SLOW_MS;
                figures.followed.push(followed);
                if too_slow {
                    println!("{}", faint(&format!("{name} does not keep up with {rate}/s")));
                    break;
                }
            }
        }
    }
    let names: Vec<String> = readers.iter().map(Reader::name).collect();
    let mut tables = String::new();
    for rate in &rates {
        let its: Vec<&Followed> = figures.followed.iter().filter(|followed| followed.rate == *rate).collect();
        let rows = compare(&names, &its, |followed| &followed.reader, &MEASURES);
        tables += &format!("  {rate} events/s\n{}\n", table(&names, &rows));
        figures.comparisons.push((*rate, rows));
    }
    report("live", &tables, &figures)
}

/// What is compared; pictures know them by these names.
pub const LATENCIES: [&str; 2] = ["p50, ms", "p99, ms"];

const MEASURES: [(&str, Figure<Followed>); 15] = [
    ("written, events/s", |followed| Some(followed.written_per_second)),
    ("arrived, events/s", |followed| Some(followed.arrived_per_second)),
    (LATENCIES[0], |followed| Some(followed.p50_ms)),
    ("p90, ms", |followed| Some(followed.p90_ms)),
    (LATENCIES[1], |followed| Some(followed.p99_ms)),
    ("p99.9, ms", |followed| Some(followed.p999_ms)),
    ("longest, ms", |followed| Some(followed.max_ms)),
    ("CPU per event, us: reader", |followed| Some(followed.cpu.reader)),
    ("walsender", |followed| Some(followed.cpu.walsender)),
    ("broker", |followed| Some(followed.cpu.broker)),
    ("whole machine", |followed| Some(followed.cpu.machine)),
    ("peak memory, MiB", |followed| Some(followed.peak_mib)),
    ("records of a batch", |followed| followed.batch_records),
    ("reads of the slot per second", |followed| Some(followed.reads?.per_second)),
    ("bytes of a read", |followed| Some(followed.reads?.bytes)),
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
    site.until_read_by(&mut program).await?;
    let arrivals = Arrivals::of(&site).await?;
    let load = LoadOptions {
        writers: WRITERS.max((rate / RATE_OF_A_WRITER).ceil() as usize),
        keys: KEYS,
        rows: 1..=1,
        rollback_percent: 0,
        savepoint_percent: 0,
        filler_bytes: options.filler,
        rate: Some(rate),
        aggregatetype: site.aggregate.clone(),
        topic: site.topics.concat(),
        ..LoadOptions::default()
    };
    let load = Load::start(site.database.url(), load).await?;
    let from = SystemTime::now() + Duration::from_secs(options.warm_up);
    let until = from + Duration::from_secs(options.seconds);
    sleep_until(from).await;
    let counter = CountReads::from(options.reads).start(&site, &program).await?;
    let before = Moment::now(servers, &site, &program, &arrivals).await?;
    sleep_until(until).await;
    let after = Moment::now(servers, &site, &program, &arrivals).await?;
    let reads = Counter::finished(counter, &program).await?;
    load.stop().await?;
    let (_, peak_mib) = memory_mib(&program).ok_or("the reader has ended")?;
    let committed = committed(&site, from, until).await?;
    let arrived = arrivals.all_of(&committed, LONGEST).await?;
    let latencies = latencies(&committed, &arrived)?;
    let in_time = after.arrived - before.arrived;
    let per_second = |events: u64| events as f64 / options.seconds as f64;
    let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Followed {
        reader: reader.name(),
        rate,
        written_per_second: per_second(latencies.len()),
        arrived_per_second: per_second(in_time),
        p50_ms: ms(0.5),
        p90_ms: ms(0.9),
        p99_ms: ms(0.99),
        p999_ms: ms(0.999),
        max_ms: ms(1.0),
        distribution: (0..100).map(f64::from).chain([99.9]).map(|share| (share, ms(share / 100.0))).collect(),
        cpu: after.cpu.per_event(before.cpu, in_time.max(1)),
        peak_mib,
        batch_records: (after.stored - before.stored).records_each(),
        reads,
    })
}

/// What is known at one moment.
struct Moment {
    cpu: Cpu,
    stored: Batches,
    arrived: u64,
}

impl Moment {
    async fn now(
        servers: &Servers,
        site: &Site,
        reader: &Program,
        arrivals: &Arrivals,
    ) -> Result<Moment, Failure> {
        Ok(Moment {
            cpu: Cpu::now(servers, site, reader).await?,
            stored: servers.kafka.batches(&site.topics)?,
            arrived: arrivals.count(),
        })
    }
}

async fn sleep_until(time: SystemTime) {
    if let Ok(left) = time.duration_since(SystemTime::now()) {
        tokio::time::sleep(left).await;
    }
}
