//! How soon a reader that is started again delivers, with few and with many topics that it knows.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::backlog::{Drained, FIRST, PEAK, Shape};
use super::cases::{self, Case, CaseOptions};
use super::comparison::Figure;
use super::site::ServerOptions;
use crate::Failure;

/// Options of `startup`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Topics that the reader has delivered to before it is started again; several numbers are measured one after the other.
    #[arg(long, value_name = "TOPICS", value_delimiter = ',', default_value = "1,100,1000")]
    topics: Vec<usize>,
    /// Rows that wait for it.
    #[arg(long, default_value_t = 2_000)]
    rows: u64,
    #[command(flatten)]
    #[serde(flatten)]
    cases: CaseOptions,
}

const FIGURES: [(&str, Figure<Drained>); 4] = [
    FIRST,
    ("last record after the start, ms", |drained| Some(drained.last_record_ms)),
    ("CPU until the last record, ms", |drained| Some(drained.cpu.reader * drained.rows as f64 / 1e3)),
    (PEAK, |drained| Some(drained.peak_mib)),
];

/// Measures and reports.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    cases::run("startup", &options.cases, programs, all(options), &FIGURES).await
}

fn all(options: &Options) -> Vec<Case> {
    let case = |topics: usize| Case {
        name: format!("{topics} topics"),
        shape: Shape { partitions: 1, topics, restart: true, ..Shape::of(options.rows) },
        servers: ServerOptions { tls: false, brokers: 1 },
    };
    options.topics.iter().copied().map(case).collect()
}
