//! How the rate depends on the shape of a backlog: transactions, partitions, topics, payloads, replicas.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::backlog::{CPU, FIRST, MEASURES, PEAK, RATE, Shape};
use super::cases::{self, Case, CaseOptions};
use super::site::ServerOptions;
use crate::Failure;

/// Payloads of a backlog together: more take longer and say no more.
const MOST_BYTES: usize = 400 << 20;

/// Bytes of a payload besides its filler.
const BESIDE_FILLER: usize = 55;

/// Options of `scale`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Rows of each backlog; fewer where payloads are large.
    #[arg(long, default_value_t = 200_000)]
    rows: u64,
    #[command(flatten)]
    #[serde(flatten)]
    cases: CaseOptions,
}

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let shown = [RATE, "MiB/s", FIRST.0, CPU[0], CPU[1], CPU[2], PEAK, "records of a batch"];
    let figures: Vec<_> = MEASURES.into_iter().filter(|(name, _)| shown.contains(name)).collect();
    cases::run("scale", &options.cases, programs, all(options.rows), &figures).await
}

fn all(rows: u64) -> Vec<Case> {
    let plain = Shape::of(rows);
    let one_broker = ServerOptions { tls: false, brokers: 1 };
    let case = |name: &str, shape: Shape| Case { name: name.to_owned(), shape, servers: one_broker };
    let mut cases = vec![
        case("transactions of 1 row", plain.clone()),
        case("transactions of 100 rows", Shape { transaction_rows: vec![100], ..plain.clone() }),
        case(
            "transactions of 1, 1 and 100 rows",
            Shape { transaction_rows: vec![1, 1, 100], ..plain.clone() },
        ),
        case("1 partition", Shape { partitions: 1, ..plain.clone() }),
        case("64 partitions", Shape { partitions: 64, ..plain.clone() }),
        case("1,000 topics", Shape { topics: 1_000, partitions: 1, ..plain.clone() }),
    ];
    for (name, size) in [
        ("payload of 100 B", 100),
        ("payload of 1 kB", 1_000),
        ("payload of 10 kB", 10_000),
        ("payload of 100 kB", 100_000),
    ] {
        let rows = rows.min((MOST_BYTES / size) as u64);
        cases.push(case(name, Shape { rows, filler: size - BESIDE_FILLER, ..plain.clone() }));
    }
    let replicated = ServerOptions { brokers: 3, ..one_broker };
    cases.push(Case { servers: replicated, ..case("3 brokers, 3 replicas", plain) });
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_come_in_fewer_rows() {
        let cases = all(200_000);
        let rows = |name: &str| cases.iter().find(|case| case.name == name).unwrap().shape.rows;
        assert_eq!(rows("payload of 1 kB"), 200_000);
        assert_eq!(rows("payload of 100 kB"), 4_194);
        assert!(cases.iter().all(|case| case.shape.rows as usize * case.shape.filler <= MOST_BYTES));
    }
}
