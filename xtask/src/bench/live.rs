//! How long an event takes from COMMIT to its consumer.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use sqlx::Row;
use testbed::load::{Load, LoadOptions};
use testbed::records::Tail;
use uuid::Uuid;

use super::baseline::{Baseline, Build};
use super::report;
use super::site::{PARTITIONS, Servers, Site};
use crate::Failure;

/// Longest latency that is told apart: a minute.
const MOST_MICROS: u64 = 60_000_000;

/// Options of `live`.
#[derive(Args, Debug)]
pub struct Options {
    /// Events per second.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Seconds measured.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seconds before, not counted.
    #[arg(long, default_value_t = 5)]
    warm_up: u64,
    /// Rounds.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Partitions of the topic.
    #[arg(long, default_value_t = PARTITIONS)]
    partitions: i32,
    /// Encrypts the relay's connections to PostgreSQL.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    baseline: Baseline,
}

#[derive(Serialize)]
struct Figures {
    build: &'static str,
    rate_wanted: f64,
    rate_reached: f64,
    events: u64,
    relay_cpu_microseconds_per_event: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    relay_peak_rss_mib: f64,
}

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let servers = Servers::start(options.tls).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        for build in options.baseline.builds(programs, number) {
            rounds.push(round(options, &servers, &build).await?);
        }
    }
    let mut table = String::from(
        "  build      events/s   p50 ms   p90 ms   p99 ms   max ms   relay CPU/event   relay peak memory\n",
    );
    for round in &rounds {
        table.push_str(&format!(
            "  {:<8}   {:>8.0} {:>8.2} {:>8.2} {:>8.2} {:>8.1} {:>14.1} us {:>15.1} MiB\n",
            round.build,
            round.rate_reached,
            round.p50_ms,
            round.p90_ms,
            round.p99_ms,
            round.max_ms,
            round.relay_cpu_microseconds_per_event,
            round.relay_peak_rss_mib
        ));
    }
    let medians = rounds.iter().map(|round| (round.build, round.p50_ms));
    table.push_str(&options.baseline.ratio("p50", medians));
    report("live", &table, &rounds)
}

/// Live traffic through one build.
async fn round(options: &Options, servers: &Servers, build: &Build) -> Result<Figures, Failure> {
    let site = Site::new(servers, &build.programs, options.partitions).await?;
    let relay = site.relay(&build.programs)?;
    relay.until_streaming().await?;
    let tail = Tail::start(&servers.kafka.bootstrap(), &[&site.topic()]).await?;
    let load = LoadOptions {
        rows: 1..=1,
        rollback_percent: 0,
        savepoint_percent: 0,
        filler_bytes: 200,
        rate: Some(options.rate),
        aggregatetype: site.aggregate.clone(),
        topic: site.topic(),
        ..LoadOptions::default()
    };
    let load = Load::start(site.database.url(), load).await?;
    let warm = SystemTime::now() + Duration::from_secs(options.warm_up);
    let end = warm + Duration::from_secs(options.seconds);
    let mut arrived: HashMap<Uuid, SystemTime> = HashMap::new();
    while SystemTime::now() < end {
        if let Ok(record) = tokio::time::timeout(Duration::from_millis(100), tail.next()).await {
            let now = SystemTime::now();
            arrived.extend(record?.event_id().filter(|_| now >= warm).map(|id| (id, now)));
        }
    }
    load.stop().await?;
    let (_, peak) = relay.program.memory().ok_or("the relay is gone")?;
    let cpu = relay.program.cpu_seconds();
    let (events, latencies) = latencies(&site, &arrived).await?;
    let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Figures {
        build: build.name,
        rate_wanted: options.rate,
        rate_reached: latencies.len() as f64 / options.seconds as f64,
        events: latencies.len(),
        relay_cpu_microseconds_per_event: cpu * 1e6 / events as f64,
        p50_ms: ms(0.5),
        p90_ms: ms(0.9),
        p99_ms: ms(0.99),
        max_ms: latencies.max() as f64 / 1000.0,
        relay_peak_rss_mib: peak as f64 / 1048576.0,
    })
}

/// How many events there are, and arrival minus commit, as PostgreSQL timed it, of those that are measured. One machine, one clock.
async fn latencies(
    site: &Site,
    arrived: &HashMap<Uuid, SystemTime>,
) -> Result<(usize, Histogram<u64>), Failure> {
    let mut histogram = Histogram::new_with_bounds(1, MOST_MICROS, 3)?;
    let mut connection = site.database.connect().await?;
    let commits =
        "SELECT id, (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint FROM outbox";
    let rows = sqlx::query(commits).fetch_all(&mut connection).await?;
    for row in &rows {
        let (id, committed): (Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
        let Some(arrived) = arrived.get(&id) else { continue };
        let arrived = arrived.duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        let micros = u64::try_from(arrived)?.saturating_sub(committed.unsigned_abs());
        histogram.record(micros.clamp(1, MOST_MICROS))?;
    }
    Ok((rows.len(), histogram))
}
