//! How fast a backlog drains.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use sqlx::AssertSqlSafe;
use testbed::load::{Backlog, write_backlog};
use testbed::process::cpu_seconds;

use super::baseline::{Baseline, Build};
use super::report;
use super::site::{PARTITIONS, Servers, Site};
use crate::Failure;
use crate::paint::faint;

/// Options of `drain`.
#[derive(Args, Debug)]
pub struct Options {
    /// Rows of the backlog, each a transaction.
    #[arg(long, default_value_t = 500_000)]
    rows: usize,
    /// Bytes of filler in each payload.
    #[arg(long, default_value_t = 330)]
    filler: usize,
    /// Rounds; each measures all readers on copies of one slot.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Partitions of the topic.
    #[arg(long, default_value_t = PARTITIONS)]
    partitions: i32,
    /// Encrypts the relay's connections to PostgreSQL. pg_recvlogical reads without TLS.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    baseline: Baseline,
}

#[derive(Serialize)]
struct Round {
    build: &'static str,
    rows: usize,
    relay_rows_per_second: f64,
    relay_cpu_microseconds_per_event: f64,
    walsender_cpu_microseconds_per_event: f64,
    broker_cpu_microseconds_per_event: f64,
    relay_peak_rss_mib: f64,
    pg_recvlogical_rows_per_second: f64,
    decode_only_rows_per_second: f64,
    relay_to_pg_recvlogical: f64,
}

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let servers = Servers::start(options.tls).await?;
    // The first drain finds a JVM that has compiled nothing yet: it took a third longer than the same again.
    println!("{}", faint("a drain that is not counted, for Kafka to get warm"));
    let this = Build { name: "this", programs: programs.to_owned() };
    round(options, &servers, &this, false).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        println!("{}", faint(&format!("round {number} of {}", options.rounds)));
        for build in options.baseline.builds(programs, number) {
            rounds.push(round(options, &servers, &build, number % 2 == 0).await?);
        }
    }
    let mut table = String::from(
        "                                                                  CPU per event, us\n  \
         build      rows/s relay   pg_recvlogical   ratio   decode only   relay   walsender   broker   peak memory\n",
    );
    for round in &rounds {
        table.push_str(&format!(
            "  {:<8}   {:>12.0}   {:>14.0}   {:>5.2}   {:>11.0}   {:>5.1}   {:>9.1}   {:>6.1}   {:>7.1} MiB\n",
            round.build,
            round.relay_rows_per_second,
            round.pg_recvlogical_rows_per_second,
            round.relay_to_pg_recvlogical,
            round.decode_only_rows_per_second,
            round.relay_cpu_microseconds_per_event,
            round.walsender_cpu_microseconds_per_event,
            round.broker_cpu_microseconds_per_event,
            round.relay_peak_rss_mib
        ));
    }
    let rates = rounds.iter().map(|round| (round.build, round.relay_rows_per_second));
    table.push_str(&options.baseline.ratio("rows/s", rates));
    report("drain", &table, &rounds)
}

/// One backlog, read by all. Who goes first alternates, because the first finds the WAL cold.
async fn round(
    options: &Options,
    servers: &Servers,
    build: &Build,
    relay_first: bool,
) -> Result<Round, Failure> {
    let programs = build.programs.as_path();
    let site = Site::new(servers, programs, options.partitions).await?;
    for copy in ["received", "decoded"] {
        site.database
            .execute(&format!(
                "SELECT pg_copy_logical_replication_slot('{}', '{}_{copy}')",
                site.slot, site.slot
            ))
            .await?;
    }
    let backlog = Backlog {
        rows: options.rows,
        filler_bytes: options.filler,
        aggregatetype: site.aggregate.clone(),
        ..Backlog::default()
    };
    write_backlog(site.database.url(), &backlog).await?;
    let rows = options.rows as f64;
    let (relay, received) = if relay_first {
        let relay = drain(&site, servers, programs, rows).await?;
        (relay, receive(&site, rows).await?)
    } else {
        let received = receive(&site, rows).await?;
        (drain(&site, servers, programs, rows).await?, received)
    };
    Ok(Round {
        build: build.name,
        rows: options.rows,
        relay_rows_per_second: relay.rows_per_second,
        relay_cpu_microseconds_per_event: relay.relay_microseconds,
        walsender_cpu_microseconds_per_event: relay.walsender_microseconds,
        broker_cpu_microseconds_per_event: relay.broker_microseconds,
        relay_peak_rss_mib: relay.peak_mib,
        pg_recvlogical_rows_per_second: received,
        decode_only_rows_per_second: decode(&site, rows).await?,
        relay_to_pg_recvlogical: relay.rows_per_second / received,
    })
}

struct Drained {
    rows_per_second: f64,
    relay_microseconds: f64,
    walsender_microseconds: f64,
    broker_microseconds: f64,
    peak_mib: f64,
}

/// The relay, from the start of its process to the last acknowledgement; CPU time per event, also of the servers.
async fn drain(site: &Site, servers: &Servers, programs: &Path, rows: f64) -> Result<Drained, Failure> {
    let brokers = || servers.kafka.pids().into_iter().map(cpu_seconds).sum::<f64>();
    let (started, brokers_before) = (Instant::now(), brokers());
    let mut relay = site.relay(programs)?;
    relay.until_metric("outbox_relay_events_total", rows).await?;
    let took = started.elapsed().as_secs_f64();
    let relay_cpu = relay.program.cpu_seconds();
    let walsender =
        format!("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    let walsender_cpu = cpu_seconds(one(site, &walsender).await?.parse()?);
    let microseconds = |seconds: f64| seconds * 1e6 / rows;
    let (_, peak) = relay.program.memory().ok_or("the relay is gone")?;
    relay.program.kill().await?;
    Ok(Drained {
        rows_per_second: rows / took,
        relay_microseconds: microseconds(relay_cpu),
        walsender_microseconds: microseconds(walsender_cpu),
        broker_microseconds: microseconds(brokers() - brokers_before),
        peak_mib: peak as f64 / 1048576.0,
    })
}

/// pg_recvlogical over TCP into nothing, in binary as the relay reads.
async fn receive(site: &Site, rows: f64) -> Result<f64, Failure> {
    let end: String = one(site, "SELECT pg_current_wal_lsn()::text").await?;
    let mut reader = Command::new("pg_recvlogical");
    reader
        .args([
            "--start",
            "--no-loop",
            "-f",
            "/dev/null",
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=outbox",
        ])
        .args(["-o", "binary=true", "--endpos", &end, "--slot", &format!("{}_received", site.slot)])
        .args(["--dbname", site.database.url()])
        .stderr(Stdio::null());
    let started = Instant::now();
    let status = tokio::task::spawn_blocking(move || reader.status()).await?;
    let status = status
        .map_err(|error| format!("pg_recvlogical cannot be run ({error}): install postgresql-client"))?;
    if status.success() {
        Ok(rows / started.elapsed().as_secs_f64())
    } else {
        Err("pg_recvlogical failed".into())
    }
}

/// Decoding alone, inside the server: what no reader can exceed.
async fn decode(site: &Site, rows: f64) -> Result<f64, Failure> {
    let peek = format!(
        "SELECT count(*)::text FROM pg_logical_slot_peek_binary_changes('{}_decoded', NULL, NULL,
         'proto_version', '1', 'publication_names', 'outbox', 'binary', 'true')",
        site.slot
    );
    let started = Instant::now();
    one(site, &peek).await?;
    Ok(rows / started.elapsed().as_secs_f64())
}

async fn one(site: &Site, sql: &str) -> Result<String, Failure> {
    let mut connection = site.database.connect().await?;
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await?)
}
