//! `cargo xtask bench pictures`: the kept figures as pictures for the documents.

use std::fs;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::backlog::{self, FIRST, RATE};
use super::comparison::{Cell, Measured};
use super::statistics::Spread;
use super::{cases, drain, limits, live, results, svg};
use crate::Failure;
use crate::build::repository;

/// What `report` writes.
#[derive(Deserialize)]
struct Kept<F> {
    figures: F,
}

/// Draws what has been measured.
pub fn run() -> Result<(), Failure> {
    let drawn = drains()? + lives()? + cases("scale", RATE, "events/s")? + cases("startup", FIRST.0, "ms")?;
    if drawn == 0 {
        return Err(
            "nothing has been measured: run 'cargo xtask bench drain', 'live', 'scale' or 'startup'".into()
        );
    }
    Ok(())
}

fn drains() -> Result<usize, Failure> {
    let Some(figures) = kept::<drain::Figures<Value>>("drain")? else { return Ok(0) };
    let mut rates = bars(&figures.comparison, &[RATE]);
    rates.extend(limits::MEASURES.iter().take(2).filter_map(|(name, figure)| {
        Some(((*name).to_owned(), vec![Spread::of(figures.limits.iter().filter_map(figure))?.median]))
    }));
    draw("bench-drain", &svg::bars("Draining a backlog, first to last record", "events/s", &[], &rates))?;
    let cpu = bars(&figures.comparison, &backlog::CPU);
    let parts = ["reader", "walsender", "broker"];
    draw("bench-cpu", &svg::bars("CPU time per event in a drain", "us", &parts, &cpu))?;
    let peaks = bars(&figures.comparison, &[backlog::PEAK]);
    draw("bench-peak-memory", &svg::bars("Peak memory in a drain", "MiB", &[], &peaks))?;
    let last_round = |name: &String| figures.drains.iter().rfind(|drained| drained.reader == *name);
    let over_time: Vec<(String, Vec<(f64, f64)>)> = peaks
        .iter()
        .filter_map(|(name, _)| last_round(name))
        .map(|drained| (drained.reader.clone(), drained.memory_mib.clone()))
        .collect();
    draw("bench-memory", &svg::lines("Resident memory in a drain", "s", "MiB", &over_time))?;
    Ok(1)
}

fn lives() -> Result<usize, Failure> {
    let Some(figures) = kept::<live::Figures<Value>>("live")? else { return Ok(0) };
    for (name, measure) in ["bench-latency-p50", "bench-latency-p99"].iter().zip(live::LATENCIES) {
        let mut all = Vec::new();
        for (rate, rows) in &figures.comparisons {
            let named = bars(rows, &[measure]).into_iter();
            all.extend(named.map(|(reader, figures)| (format!("{rate}/s, {reader}"), figures)));
        }
        draw(name, &svg::bars(&format!("From COMMIT to the consumer, {measure}"), "ms", &[], &all))?;
    }
    for (rate, rows) in &figures.comparisons {
        let readers = bars(rows, &[live::LATENCIES[0]]).into_iter().map(|(reader, _)| reader);
        let last_round = |reader: String| {
            figures.followed.iter().rfind(|followed| followed.reader == reader && followed.rate == *rate)
        };
        let series: Vec<(String, Vec<(f64, f64)>)> = readers
            .filter_map(last_round)
            .map(|followed| (followed.reader.clone(), followed.distribution.clone()))
            .collect();
        let title = format!("From COMMIT to the consumer at {rate} events/s, by share of events");
        draw(&format!("bench-latency-{rate}"), &svg::lines(&title, "%", "ms", &series))?;
    }
    Ok(1)
}

/// One figure of a scenario of several cases.
fn cases(scenario: &str, figure: &str, unit: &str) -> Result<usize, Failure> {
    let Some(figures) = kept::<cases::Figures<Value>>(scenario)? else { return Ok(0) };
    let rows = figures.comparisons.iter().filter(|(name, _)| name == figure).flat_map(|(_, rows)| rows);
    let bars = rows.flat_map(|row| {
        let name = |cell: &Cell| match row.cells.len() {
            1 => row.measure.clone(),
            _ => format!("{}, {}", row.measure, cell.reader),
        };
        row.cells.iter().map(move |cell| (name(cell), vec![cell.spread.median]))
    });
    let picture = svg::bars(&format!("{scenario}: {figure}"), unit, &[], &bars.collect::<Vec<_>>());
    draw(&format!("bench-{scenario}"), &picture)?;
    Ok(1)
}

/// The medians of some measures, reader by reader.
fn bars(rows: &[Measured], measures: &[&str]) -> Vec<(String, Vec<f64>)> {
    let mut bars: Vec<(String, Vec<f64>)> = Vec::new();
    for row in rows.iter().filter(|row| measures.contains(&row.measure.as_str())) {
        for cell in &row.cells {
            match bars.iter_mut().find(|(reader, _)| *reader == cell.reader) {
                Some((_, figures)) => figures.push(cell.spread.median),
                None => bars.push((cell.reader.clone(), vec![cell.spread.median])),
            }
        }
    }
    bars
}

fn kept<F: DeserializeOwned>(scenario: &str) -> Result<Option<F>, Failure> {
    let path = results(scenario);
    if !path.exists() {
        return Ok(None);
    }
    let kept: Kept<F> = serde_json::from_str(&fs::read_to_string(&path)?)
        .map_err(|error| format!("{} is of another version, measure again: {error}", path.display()))?;
    Ok(Some(kept.figures))
}

fn draw(name: &str, picture: &str) -> Result<(), Failure> {
    let path = repository().join("docs/images").join(format!("{name}.svg"));
    fs::write(&path, picture)?;
    println!("drawn: {}; a document has to show it", path.display());
    Ok(())
}
