//! Backlogs of different shapes, all readers on each: one table for each figure, a line for each shape.

use std::path::Path;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::backlog::{Drained, Shape, drain};
use super::comparison::{Figure, Measured, compare, table};
use super::debezium::Settings;
use super::readers::{Others, Reader, in_turn};
use super::reads::CountReads;
use super::report;
use super::site::{ServerOptions, Servers};
use crate::Failure;
use crate::paint::faint;

/// What all scenarios of several shapes have in common.
#[derive(Args, Debug, Serialize)]
pub struct CaseOptions {
    /// Rounds; each measures all readers on all shapes. The first drain is not counted.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measures only shapes with this in their names.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    others: Others,
}

/// A backlog of one shape.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the table calls it.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// The servers it needs.
    pub servers: ServerOptions,
}

/// All that is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures<O> {
    /// What was asked for.
    pub options: O,
    /// Each figure of each shape.
    pub comparisons: Vec<(String, Vec<Measured>)>,
    /// Every drain, in its order.
    pub drains: Vec<(String, Drained)>,
}

/// Measures and reports `figures` of all cases.
pub async fn run(
    scenario: &str,
    options: &CaseOptions,
    programs: &Path,
    cases: Vec<Case>,
    figures: &[(&str, Figure<Drained>)],
) -> Result<(), Failure> {
    let cases = chosen(cases, options.only.as_deref())?;
    let readers = options.others.readers(programs, Settings::Throughput)?;
    let mut drains = Vec::new();
    for (servers, cases) in by_servers(&cases) {
        drains.extend(measure(options.rounds, servers, &cases, &readers).await?);
    }
    let readers: Vec<String> = readers.iter().map(Reader::name).collect();
    let comparisons = by_figure(&cases, &readers, &drains, figures);
    let tables = comparisons.iter().map(|(figure, rows)| format!("  {figure}\n{}\n", table(&readers, rows)));
    report(scenario, &tables.collect::<String>(), &Figures { options, comparisons, drains })
}

/// Cases that need the same servers are measured on the same.
fn by_servers(cases: &[Case]) -> Vec<(ServerOptions, Vec<&Case>)> {
    let mut groups: Vec<(ServerOptions, Vec<&Case>)> = Vec::new();
    for case in cases {
        match groups.iter_mut().find(|(servers, _)| *servers == case.servers) {
            Some((_, group)) => group.push(case),
            None => groups.push((case.servers, vec![case])),
        }
    }
    groups
}

async fn measure(
    rounds: usize,
    servers: ServerOptions,
    cases: &[&Case],
    readers: &[Reader],
) -> Result<Vec<(String, Drained)>, Failure> {
    let servers = Servers::start(servers).await?;
    let mut drains = Vec::new();
    if let (Some(case), Some(relay)) = (cases.first(), readers.first()) {
        println!("{}", faint("a drain that is not counted, for Kafka to get warm"));
        drain(&case.shape, &servers, relay, CountReads::No).await?;
    }
    for number in 1..=rounds {
        for case in cases {
            for reader in in_turn(readers, number) {
                let name = reader.name();
                println!("{}", faint(&format!("round {number} of {rounds}: {}, {name}", case.name)));
                let drained = drain(&case.shape, &servers, reader, CountReads::No).await?;
                drains.push((case.name.clone(), drained));
            }
        }
    }
    Ok(drains)
}

/// The cases with `only` in their names.
fn chosen(mut cases: Vec<Case>, only: Option<&str>) -> Result<Vec<Case>, Failure> {
    let Some(only) = only else { return Ok(cases) };
    let names: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    cases.retain(|case| case.name.contains(only));
    if cases.is_empty() {
        return Err(format!("no shape has '{only}' in its name; there are: {}", names.join("; ")).into());
    }
    Ok(cases)
}

/// Figure by figure, a row for each case.
fn by_figure(
    cases: &[Case],
    readers: &[String],
    drains: &[(String, Drained)],
    figures: &[(&str, Figure<Drained>)],
) -> Vec<(String, Vec<Measured>)> {
    let row = |case: &Case, figure: &(&str, Figure<Drained>)| {
        let its: Vec<&Drained> =
            drains.iter().filter(|(name, _)| *name == case.name).map(|(_, drained)| drained).collect();
        compare(readers, &its, |drained| &drained.reader, &[(case.name.as_str(), figure.1)])
    };
    let rows = |figure: &(&str, Figure<Drained>)| -> Vec<Measured> {
        cases.iter().flat_map(|case| row(case, figure)).collect()
    };
    figures.iter().map(|figure| (figure.0.to_owned(), rows(figure))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, brokers: usize) -> Case {
        Case {
            name: name.to_owned(),
            shape: Shape::of(1_000),
            servers: ServerOptions { tls: false, brokers },
        }
    }

    #[test]
    fn cases_are_chosen_by_a_part_of_their_names() {
        let cases = || vec![case("1 partition", 1), case("64 partitions", 1), case("1,000 topics", 1)];
        let names = |only| -> Vec<String> {
            chosen(cases(), only).unwrap().into_iter().map(|case| case.name).collect()
        };
        assert_eq!(names(Some("partition")), ["1 partition", "64 partitions"]);
        assert_eq!(names(None).len(), 3);
        let refused = chosen(cases(), Some("rows")).unwrap_err().to_string();
        assert!(refused.contains("64 partitions") && refused.contains("'rows'"), "{refused}");
    }

    #[test]
    fn cases_that_need_the_same_servers_are_measured_together() {
        let cases = [case("a", 1), case("b", 3), case("c", 1)];
        let groups: Vec<(usize, Vec<&str>)> = by_servers(&cases)
            .into_iter()
            .map(|(servers, group)| (servers.brokers, group.iter().map(|case| case.name.as_str()).collect()))
            .collect();
        assert_eq!(groups, [(1, vec!["a", "c"]), (3, vec!["b"])]);
    }

    #[test]
    fn each_figure_has_a_line_for_each_case() {
        let cases = [case("small", 1), case("large", 1)];
        let drains = [
            ("small".to_owned(), Drained::example("ours", 100.0)),
            ("large".to_owned(), Drained::example("ours", 10.0)),
            ("large".to_owned(), Drained::example("theirs", 5.0)),
        ];
        let figures: [(&str, Figure<Drained>); 2] = [
            ("rate", |drained| Some(drained.events_per_second)),
            ("rows", |drained| Some(drained.rows as f64)),
        ];
        let found = by_figure(&cases, &["ours".to_owned(), "theirs".to_owned()], &drains, &figures);
        let medians = |rows: &[Measured]| -> Vec<(String, Vec<f64>)> {
            let cells = |row: &Measured| row.cells.iter().map(|cell| cell.spread.median).collect();
            rows.iter().map(|row| (row.measure.clone(), cells(row))).collect()
        };
        let names: Vec<&str> = found.iter().map(|(figure, _)| figure.as_str()).collect();
        assert_eq!(names, ["rate", "rows"]);
        let rates = [("small".to_owned(), vec![100.0]), ("large".to_owned(), vec![10.0, 5.0])];
        assert_eq!(medians(&found[0].1), rates);
    }
}
