//! One backlog, one reader: how fast it is delivered, and what that costs.

use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::{Deserialize, Serialize};
use testbed::load::{Backlog, write_backlog};
use testbed::log_ends::{Appended, LogEnds};
use testbed::process::Program;

use super::comparison::Figure;
use super::limits::Limits;
use super::readers::Reader;
use super::reads::{CountReads, Counter, Reads};
use super::site::{PARTITIONS, Servers, Site};
use super::usage::{Cpu, MIB, memory_mib};
use crate::Failure;
use crate::paint::faint;

/// Makes payloads of about 400 bytes.
const FILLER: usize = 330;
/// No drain takes longer.
const WITHIN: Duration = Duration::from_secs(1800);
/// Longer than a reader takes to stop, if it does.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// How often memory is looked at, and whether everything has been delivered.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A backlog, and the topics it goes to.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Shape {
    /// Rows of the backlog.
    #[arg(long, default_value_t = 500_000)]
    pub rows: u64,
    /// Rows of a transaction; several sizes, such as 1,1,100, take turns.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "1")]
    pub transaction_rows: Vec<usize>,
    /// Bytes of filler in each payload.
    #[arg(long, default_value_t = FILLER)]
    pub filler: usize,
    /// Partitions of each topic.
    #[arg(long, default_value_t = PARTITIONS)]
    pub partitions: i32,
    /// Topics that the rows are spread over.
    #[arg(long, default_value_t = 1)]
    pub topics: usize,
    /// Delivers a row to each topic first and stops, so that the reader that is measured starts again.
    #[arg(long)]
    pub restart: bool,
}

/// One reader in one round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drained {
    /// Its name.
    pub reader: String,
    /// Rows that it delivered.
    pub rows: u64,
    /// From the first record to the last, by the broker's clock.
    pub events_per_second: f64,
    /// What the broker stored in that time.
    pub mib_per_second: f64,
    /// From the middle record to the last: by then a virtual machine has compiled most of what it runs.
    pub warm_per_second: f64,
    /// From the start of the process to the first record.
    pub first_record_ms: f64,
    /// From the start of the process to the last record.
    pub last_record_ms: f64,
    /// Microseconds per event, from the start of the process on.
    pub cpu: Cpu,
    /// Those of the reader in the second half; not known of a drain that is too short.
    pub warm_cpu: Option<f64>,
    /// Most resident memory.
    pub peak_mib: f64,
    /// Seconds since the start, and resident memory then.
    pub memory_mib: Vec<(f64, f64)>,
    /// Records of a batch that the broker stored.
    pub batch_records: Option<f64>,
    /// Bytes of such a batch.
    pub batch_bytes: Option<f64>,
    /// Reads of the slot, if they were counted.
    pub reads: Option<Reads>,
    /// Records that were delivered more than once.
    pub surplus: u64,
}

/// What is compared; pictures know them by these names.
pub const RATE: &str = "events/s, first to last record";
/// Most resident memory.
pub const PEAK: &str = "peak memory, MiB";
/// The parts of the CPU time that pictures show.
pub const CPU: [&str; 3] = ["CPU per event, us: reader", "walsender", "broker"];
/// How soon a reader that is started delivers.
pub const FIRST: (&str, Figure<Drained>) =
    ("first record after the start, ms", |drained| Some(drained.first_record_ms));

/// Every figure of a drain.
pub const MEASURES: [(&str, Figure<Drained>); 14] = [
    (RATE, |drained| Some(drained.events_per_second)),
    ("events/s, second half", |drained| Some(drained.warm_per_second)),
    ("MiB/s", |drained| Some(drained.mib_per_second)),
    FIRST,
    (CPU[0], |drained| Some(drained.cpu.reader)),
    ("reader, second half", |drained| drained.warm_cpu),
    (CPU[1], |drained| Some(drained.cpu.walsender)),
    (CPU[2], |drained| Some(drained.cpu.broker)),
    ("whole machine", |drained| Some(drained.cpu.machine)),
    (PEAK, |drained| Some(drained.peak_mib)),
    ("records of a batch", |drained| drained.batch_records),
    ("bytes of a batch", |drained| drained.batch_bytes),
    ("reads of the slot per second", |drained| Some(drained.reads?.per_second)),
    ("bytes of a read", |drained| Some(drained.reads?.bytes)),
];

impl Shape {
    /// The default shape, with so many rows.
    pub fn of(rows: u64) -> Shape {
        Shape {
            rows,
            transaction_rows: vec![1],
            filler: FILLER,
            partitions: PARTITIONS,
            topics: 1,
            restart: false,
        }
    }

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

/// When the limits are measured on the same backlog: the first one finds the WAL cold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitsOrder {
    /// Before the drain.
    First,
    /// After it.
    Last,
}

impl LimitsOrder {
    /// They alternate from round to round.
    pub fn of_round(number: usize) -> LimitsOrder {
        if number.is_multiple_of(2) { LimitsOrder::Last } else { LimitsOrder::First }
    }
}

/// Writes a backlog for a reader and lets it drain.
pub async fn drain(
    shape: &Shape,
    servers: &Servers,
    reader: &Reader,
    counted: CountReads,
) -> Result<Drained, Failure> {
    let site = prepared(shape, servers, reader).await?;
    write_backlog(site.database.url(), &shape.backlog(&site.aggregate)).await?;
    delivered(shape.rows, servers, reader, &site, counted).await
}

/// The same, and what readers reach that deliver nothing.
pub async fn drain_and_limits(
    shape: &Shape,
    servers: &Servers,
    reader: &Reader,
    counted: CountReads,
    order: LimitsOrder,
) -> Result<(Drained, Limits), Failure> {
    let site = prepared(shape, servers, reader).await?;
    Limits::prepare(&site).await?;
    write_backlog(site.database.url(), &shape.backlog(&site.aggregate)).await?;
    let rows = shape.rows as f64;
    match order {
        LimitsOrder::First => {
            let limits = Limits::measure(&site, rows).await?;
            Ok((delivered(shape.rows, servers, reader, &site, counted).await?, limits))
        }
        LimitsOrder::Last => {
            let drained = delivered(shape.rows, servers, reader, &site, counted).await?;
            Ok((drained, Limits::measure(&site, rows).await?))
        }
    }
}

/// A database with its topics, and a slot from which rows written from now on are read.
async fn prepared(shape: &Shape, servers: &Servers, reader: &Reader) -> Result<Site, Failure> {
    let aggregatetypes = |own: &str| shape.backlog(own).aggregatetypes();
    let site = Site::new(servers, shape.partitions, aggregatetypes).await?;
    reader.prepare(&site).await?;
    if shape.restart {
        let backlog = shape.backlog(&site.aggregate);
        let each_topic = Backlog { rows: shape.topics, rows_per_transaction: vec![1], ..backlog };
        write_backlog(site.database.url(), &each_topic).await?;
        delivered(shape.topics as u64, servers, reader, &site, CountReads::No).await?;
    }
    Ok(site)
}

/// From the start of the reader until all rows are in Kafka; then it is stopped.
async fn delivered(
    rows: u64,
    servers: &Servers,
    reader: &Reader,
    site: &Site,
    counted: CountReads,
) -> Result<Drained, Failure> {
    let logs = LogEnds::open(&site.bootstrap, &site.topics).await?;
    let stored = servers.kafka.batches(&site.topics)?;
    let before = Cpu::before(servers);
    let started = SystemTime::now();
    let mut program = reader.start(site)?;
    let watch = Watch { rows, servers, site, counted, logs: &logs };
    let Watched { memory, counter, half_way } = watch.until_delivered(&mut program).await?;
    let after = Cpu::now(servers, site, &program).await?;
    let reads = Counter::finished(counter, &program).await?;
    let peak_mib = stopped(program).await?;
    let Appended { first, middle, last } = logs.appended().await?.ok_or("no record was delivered")?;
    // The broker's clock has milliseconds.
    let seconds = |from: SystemTime| -> Result<f64, Failure> {
        Ok(last.duration_since(from)?.max(Duration::from_millis(1)).as_secs_f64())
    };
    let took = seconds(first)?;
    let stored = servers.kafka.batches(&site.topics)? - stored;
    let since_start = |then: SystemTime| then.duration_since(started).unwrap_or_default().as_secs_f64() * 1e3;
    Ok(Drained {
        reader: reader.name(),
        rows,
        events_per_second: rows as f64 / took,
        warm_per_second: rows as f64 / 2.0 / seconds(middle)?,
        mib_per_second: stored.bytes as f64 / MIB / servers.replicas() as f64 / took,
        first_record_ms: since_start(first),
        last_record_ms: since_start(last),
        cpu: after.per_event(before, rows),
        warm_cpu: half_way.map(|(delivered, then)| after.per_event(then, rows - delivered).reader),
        peak_mib,
        memory_mib: memory,
        batch_records: stored.records_each(),
        batch_bytes: stored.bytes_each(),
        reads,
        surplus: logs.records().await?.saturating_sub(rows),
    })
}

/// A reader that delivers, and what is looked at meanwhile.
struct Watch<'a> {
    rows: u64,
    servers: &'a Servers,
    site: &'a Site,
    counted: CountReads,
    logs: &'a LogEnds,
}

/// What was seen.
#[derive(Default)]
struct Watched {
    /// Seconds since the start, and resident memory then.
    memory: Vec<(f64, f64)>,
    counter: Option<Counter>,
    /// How much was delivered when it was first more than half, and the CPU time until then.
    half_way: Option<(u64, Cpu)>,
}

impl Watch<'_> {
    async fn until_delivered(&self, reader: &mut Program) -> Result<Watched, Failure> {
        let (clock, mut seen) = (Instant::now(), Watched::default());
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            let delivered = self.logs.records().await?;
            if delivered >= self.rows {
                return Ok(seen);
            }
            if reader.exit_status().is_some() || clock.elapsed() > WITHIN {
                return Err(format!("a reader does not deliver: {}", reader.log_tail()).into());
            }
            if seen.half_way.is_none() && delivered > 0 && delivered >= self.rows / 2 {
                seen.half_way = Some((delivered, Cpu::now(self.servers, self.site, reader).await?));
            }
            seen.memory.extend(memory_mib(reader).map(|(now, _)| (clock.elapsed().as_secs_f64(), now)));
            if seen.counter.is_none() {
                seen.counter = self.counted.start(self.site, reader).await?;
            }
            looks.tick().await;
        }
    }
}

/// Stops a reader; returns the most memory that it had. How it stops is not measured, and Kafka Connect sometimes does not: its shutdown hook
/// waits forever for a task.
async fn stopped(mut program: Program) -> Result<f64, Failure> {
    let (_, peak_mib) = memory_mib(&program).ok_or("the reader has ended")?;
    program.terminate()?;
    if program.wait(STOPS_WITHIN).await.is_err() {
        println!("{}", faint("a reader did not stop, and is killed"));
        program.kill().await?;
    }
    Ok(peak_mib)
}

#[cfg(test)]
impl Drained {
    /// Of a reader that reached this rate.
    pub fn example(reader: &str, events_per_second: f64) -> Drained {
        Drained {
            reader: reader.to_owned(),
            rows: 1_000,
            events_per_second,
            warm_per_second: events_per_second,
            mib_per_second: 10.0,
            first_record_ms: 100.0,
            last_record_ms: 200.0,
            cpu: Cpu { reader: 4.0, walsender: 8.0, broker: 5.0, machine: 20.0 },
            warm_cpu: None,
            peak_mib: 30.0,
            memory_mib: Vec::new(),
            batch_records: Some(50.0),
            batch_bytes: Some(20_000.0),
            reads: None,
            surplus: 0,
        }
    }
}
