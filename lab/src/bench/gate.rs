//! Fails when the relay has become much slower, larger or more expensive: a short drain against limits with wide margins. What is compared was
//! measured in the same run, or does not depend on the machine.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::backlog::{Drained, LimitsOrder, Shape, drain_and_limits};
use super::limits::Limits;
use super::readers::Reader;
use super::reads::CountReads;
use super::report;
use super::site::{ServerOptions, Servers};
use super::statistics::Spread;
use crate::Failure;
use crate::paint::{bad, faint, good};

/// The least rate of the relay, as a multiple of the best of `pg_recvlogical`. On a busy machine the relay, which needs Kafka too, gets less of
/// it: with other builds and tests beside it, it reached half of what it reaches alone.
const LEAST_RATE: f64 = 0.6;
/// The most CPU time of the relay, as a multiple of the walsender's.
const MOST_CPU: f64 = 1.5;
/// The most resident memory.
const MOST_MIB: f64 = 64.0;

/// Options of `gate`.
#[derive(Args, Debug, Serialize)]
pub struct Options {
    /// Rows of the backlog.
    #[arg(long, default_value_t = 150_000)]
    rows: u64,
    /// Rounds, of which the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// One figure and its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    what: String,
    found: f64,
    least: f64,
    most: f64,
}

impl Check {
    fn at_least(what: &str, found: f64, least: f64) -> Check {
        Check { what: what.to_owned(), found, least, most: f64::INFINITY }
    }

    fn at_most(what: &str, found: f64, most: f64) -> Check {
        Check { what: what.to_owned(), found, least: 0.0, most }
    }

    fn passes(&self) -> bool {
        (self.least..=self.most).contains(&self.found)
    }

    fn line(&self) -> String {
        let word = if self.passes() { good("ok") } else { bad("BEYOND ITS LIMIT") };
        let most = if self.most.is_finite() { format!("{:.2}", self.most) } else { "any".to_owned() };
        format!("  {}: {:.2} ({:.2} to {most}) {word}\n", self.what, self.found, self.least)
    }
}

/// Measures, and fails if a figure is beyond its limit.
pub async fn run(options: &Options, programs: &Path) -> Result<(), Failure> {
    let checks = drained(options, programs).await?;
    let table: String = checks.iter().map(Check::line).collect();
    report("gate", &table, &checks)?;
    let failed = checks.iter().filter(|check| !check.passes()).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} figures are beyond their limits").into()) }
}

/// The figures of a drain.
async fn drained(options: &Options, programs: &Path) -> Result<Vec<Check>, Failure> {
    let shape = Shape::of(options.rows);
    let servers = Servers::start(ServerOptions { tls: false, brokers: 1 }).await?;
    let relay = Reader::this(programs);
    let mut rounds = Vec::new();
    for number in 0..=options.rounds {
        let order = LimitsOrder::of_round(number);
        println!("{}", faint(&format!("round {number} of {}; the first is not counted", options.rounds)));
        rounds.push(drain_and_limits(&shape, &servers, &relay, CountReads::No, order).await?);
    }
    rounds.remove(0);
    Ok(checks(&rounds))
}

fn checks(rounds: &[(Drained, Limits)]) -> Vec<Check> {
    let median = |figure: fn(&(Drained, Limits)) -> f64| {
        Spread::of(rounds.iter().map(figure)).map_or(f64::NAN, |spread| spread.median)
    };
    let rate = median(|(drained, limits)| {
        drained.events_per_second / limits.pg_recvlogical_text.max(limits.pg_recvlogical_binary)
    });
    let cpu = median(|(drained, _)| drained.cpu.reader / drained.cpu.walsender);
    let peak = median(|(drained, _)| drained.peak_mib);
    let surplus: u64 = rounds.iter().map(|(drained, _)| drained.surplus).sum();
    vec![
        Check::at_least("rate of a drain to the best of pg_recvlogical", rate, LEAST_RATE),
        Check::at_most("CPU time of the relay to that of the walsender", cpu, MOST_CPU),
        Check::at_most("peak memory of a drain, MiB", peak, MOST_MIB),
        Check::at_most("records that were delivered more than once", surplus as f64, 0.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::usage::Cpu;
    use super::*;

    #[test]
    fn a_drain_that_is_slow_large_or_expensive_does_not_pass() {
        let limits = || Limits {
            pg_recvlogical_text: 40_000.0,
            pg_recvlogical_binary: 50_000.0,
            decode_only: 300_000.0,
        };
        let passes =
            |drained: Drained| checks(&[(drained, limits())]).iter().map(Check::passes).collect::<Vec<_>>();
        let fine = || Drained::example("relay", 90_000.0);
        assert_eq!(passes(fine()), [true; 4]);
        assert_eq!(passes(Drained::example("relay", 29_000.0)), [false, true, true, true]);
        let cpu = Cpu { reader: 13.0, ..fine().cpu };
        assert_eq!(passes(Drained { cpu, ..fine() }), [true, false, true, true]);
        assert_eq!(passes(Drained { peak_mib: 65.0, ..fine() }), [true, true, false, true]);
        assert_eq!(passes(Drained { surplus: 1, ..fine() }), [true, true, true, false]);
    }

    #[test]
    fn a_figure_that_was_not_measured_does_not_pass() {
        assert!(checks(&[]).iter().filter(|check| check.found.is_nan()).all(|check| !check.passes()));
        assert!(
            !Check::at_least("rate", 0.9, 1.0).passes() && !Check::at_most("memory", 65.0, 64.0).passes()
        );
        assert!(Check::at_least("rate", 1.0, 1.0).passes() && Check::at_most("memory", 64.0, 64.0).passes());
    }
}
