//! The basket API, in both of its units of work, against `pgbench` doing the same reads and writes on the same database in
//! its best known form: what HTTP, JSON, the domain and the round trips cost on top of what PostgreSQL costs.

mod client;
mod script;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use testbed::postgres::{Postgres, PostgresOptions};
use testbed::process::{Launch, Program};
use testbed::{Database, net, wait};

use self::client::{Connection, Request};
use super::report;
use crate::Failure;
use crate::stack::TOKEN;

/// Baskets that exist before the measurement: commands seldom conflict on one.
pub const BASKETS: u64 = 1000;
/// Longest latency that is told apart: a minute.
const MOST_MICROS: u64 = 60_000_000;
const SOON: Duration = Duration::from_secs(60);

/// Options of `api`.
#[derive(Args, Debug)]
pub struct Options {
    /// Connections of the clients, of pgbench, and of the service to its database.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// How the service writes: `--unit-of-work`.
const MODES: [&str; 2] = ["transaction", "single-statement"];

#[derive(Serialize)]
struct Round {
    commands: Vec<Commands>,
    pgbench_per_second: f64,
    queries_per_second: f64,
    query_p50_ms: f64,
    query_p99_ms: f64,
}

#[derive(Serialize)]
struct Commands {
    unit_of_work: &'static str,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// To pgbench of the same round.
    ratio: f64,
}

/// Measures.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let settings = vec![("max_wal_size".to_owned(), "8GB".to_owned())];
    let postgres =
        Postgres::start(PostgresOptions { fsync: true, settings, ..PostgresOptions::default() }).await?;
    let database = Database::on(&postgres.url("postgres"), "bench").await?;
    database.execute(&script::baskets()).await?;
    let mut services = Vec::new();
    for mode in MODES {
        services.push((mode, service(options, programs, &database, mode).await?));
    }
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        rounds.push(round(options, &database, &services, number % 2 == 0).await?);
    }
    drop(services);
    report("api", &table(&rounds), &rounds)
}

fn table(rounds: &[Round]) -> String {
    let mut table = String::from("  unit of work       commands/s      p50      p99   pgbench/s   ratio\n");
    for round in rounds {
        for commands in &round.commands {
            table.push_str(&format!(
                "  {:<17} {:>11.0} {:>5.2} ms {:>5.2} ms {:>11.0} {:>7.2}\n",
                commands.unit_of_work,
                commands.per_second,
                commands.p50_ms,
                commands.p99_ms,
                round.pgbench_per_second,
                commands.ratio,
            ));
        }
        table.push_str(&format!(
            "  queries/s {:.0}, p50 {:.2} ms, p99 {:.2} ms\n",
            round.queries_per_second, round.query_p50_ms, round.query_p99_ms
        ));
    }
    table
}

/// The order alternates from round to round.
async fn round(
    options: &Options,
    database: &Database,
    services: &[(&'static str, (Program, String))],
    pgbench_last: bool,
) -> Result<Round, Failure> {
    let pgbench = async || script::pgbench(database, options.connections, options.seconds).await;
    let before = if pgbench_last { None } else { Some(pgbench().await?) };
    let mut measured = Vec::new();
    for (mode, (_, address)) in services {
        measured.push((*mode, load(options, address, Request::Command).await?));
    }
    let pgbench_per_second = match before {
        Some(rate) => rate,
        None => pgbench().await?,
    };
    let Some((_, (_, address))) = services.first() else { return Err("there is no service".into()) };
    let queries = load(options, address, Request::Query).await?;
    let commands = measured.into_iter().map(|(unit_of_work, measured)| Commands {
        unit_of_work,
        per_second: measured.per_second,
        p50_ms: measured.at(50.0),
        p99_ms: measured.at(99.0),
        ratio: measured.per_second / pgbench_per_second,
    });
    Ok(Round {
        commands: commands.collect(),
        pgbench_per_second,
        queries_per_second: queries.per_second,
        query_p50_ms: queries.at(50.0),
        query_p99_ms: queries.at(99.0),
    })
}

struct Measured {
    per_second: f64,
    micros: Histogram<u64>,
}

impl Measured {
    fn at(&self, percentile: f64) -> f64 {
        self.micros.value_at_percentile(percentile) as f64 / 1000.0
    }
}

/// As many requests as are answered, one at a time on each connection.
async fn load(options: &Options, address: &str, request: Request) -> Result<Measured, Failure> {
    let started = Instant::now();
    let until = started + Duration::from_secs(options.seconds);
    let mut clients = Vec::new();
    for _ in 0..options.connections {
        let mut connection = Connection::open(address).await?;
        clients.push(tokio::spawn(async move {
            let mut micros = Histogram::<u64>::new_with_bounds(1, MOST_MICROS, 3)?;
            while Instant::now() < until {
                let sent = Instant::now();
                connection.exchange(request).await?;
                micros.saturating_record(u64::try_from(sent.elapsed().as_micros())?);
            }
            Ok::<_, Failure>(micros)
        }));
    }
    let mut micros = Histogram::<u64>::new_with_bounds(1, MOST_MICROS, 3)?;
    for client in clients {
        micros.add(client.await??)?;
    }
    let per_second = micros.len() as f64 / started.elapsed().as_secs_f64();
    Ok(Measured { per_second, micros })
}

/// The service as it is shipped, but for its limit of requests a second.
async fn service(
    options: &Options,
    programs: &Path,
    database: &Database,
    unit_of_work: &str,
) -> Result<(Program, String), Failure> {
    let (port, admin) = (net::free_port()?, net::free_port()?);
    let program = Launch::new("basket-api", programs.join("basket-api"))
        .arg("serve")
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg(format!("--admin-listen=127.0.0.1:{admin}"))
        .arg("--auth=static-token")
        .arg("--rate-limit=0")
        .arg("--max-requests-per-principal=0")
        .arg(format!("--unit-of-work={unit_of_work}"))
        // A quarter of them is for lists.
        .arg(format!("--database-connections={}", options.connections * 4 / 3))
        .env("BASKET_DATABASE_URL", database.url())
        .env("BASKET_STATIC_TOKEN", TOKEN)
        // A line per request, as in production with a collector that samples, is not what is measured.
        .env("RUST_LOG", "warn")
        .start()?;
    let ready = format!("http://127.0.0.1:{admin}/readyz");
    wait::until("the service to be ready", SOON, async || match reqwest::get(&ready).await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(answer.status().to_string()),
        Err(error) => Err(error.to_string()),
    })
    .await?;
    Ok((program, format!("127.0.0.1:{port}")))
}
