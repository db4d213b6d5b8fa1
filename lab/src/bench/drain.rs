//! How fast a backlog drains, and what that costs.

use std::path::Path;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::backlog::{Drained, LimitsOrder, MEASURES, Shape, drain, drain_and_limits};
use super::comparison::{Measured, compare, table};
use super::debezium::Settings;
use super::limits::{self, Limits};
use super::readers::{Others, Reader, THIS, in_turn};
use super::reads::CountReads;
use super::report;
use super::site::{ServerOptions, Servers};
use super::statistics::{Spread, ratio};
use crate::Failure;
use crate::paint::faint;

/// Options of `drain`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    shape: Shape,
    /// Rounds; each measures all readers, each on its own copy of the same backlog. The first drain is not counted.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
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
    let servers = Servers::start(options.servers).await?;
    let (shape, counted) = (&options.shape, CountReads::from(options.reads));
    // The first drain finds a broker whose JVM has compiled nothing yet: it took a third longer than the same again.
    println!("{}", faint("a drain that is not counted, for Kafka to get warm"));
    drain(shape, &servers, readers.first().ok_or("nothing to measure")?, CountReads::No).await?;
    let mut figures = Figures { options, comparison: Vec::new(), drains: Vec::new(), limits: Vec::new() };
    for number in 1..=options.rounds {
        for reader in in_turn(&readers, number) {
            println!("{}", faint(&format!("round {number} of {}: {}", options.rounds, reader.name())));
            if reader.name() == THIS {
                let order = LimitsOrder::of_round(number);
                let (drained, limits) = drain_and_limits(shape, &servers, reader, counted, order).await?;
                figures.drains.push(drained);
                figures.limits.push(limits);
            } else {
                figures.drains.push(drain(shape, &servers, reader, counted).await?);
            }
        }
    }
    let names: Vec<String> = readers.iter().map(Reader::name).collect();
    let drains: Vec<&Drained> = figures.drains.iter().collect();
    figures.comparison = compare(&names, &drains, |drained| &drained.reader, &MEASURES);
    let table = table(&names, &figures.comparison) + &limit_lines(&figures) + &surplus_line(&figures);
    report("drain", &table, &figures)
}

/// Lines for what delivers nothing.
fn limit_lines<O>(figures: &Figures<O>) -> String {
    let ours = figures.drains.iter().filter(|drained| drained.reader == THIS);
    let relay = Spread::of(ours.map(|drained| drained.events_per_second));
    let mut lines = String::new();
    for (name, figure) in limits::MEASURES {
        let reached = Spread::of(figures.limits.iter().filter_map(figure));
        if let (Some(Spread { min, median, max }), Some(times)) = (reached, ratio(relay, reached)) {
            lines += &format!(
                "  {name}: {median:.0} ({min:.0} to {max:.0}) rows/s; the relay's rate is {times:.2} of it\n"
            );
        }
    }
    lines
}

/// A line if something was delivered too often.
fn surplus_line<O>(figures: &Figures<O>) -> String {
    match figures.drains.iter().map(|drained| drained.surplus).sum::<u64>() {
        0 => String::new(),
        surplus => format!("  {surplus} records were delivered more than once\n"),
    }
}
