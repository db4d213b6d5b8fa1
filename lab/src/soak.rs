//! `cargo xtask soak`: weighted random faults under load, each followed by a recovery, and the checker's verdict.

mod arena;
mod schedule;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde_json::{Value, json};
use testbed::checker::{self, Verdict};
use testbed::records::Tail;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::arena::Arena;
use self::schedule::{Fault, Schedule, Step};
use crate::Failure;
use crate::build::{self, Profile};
use crate::paint::{bad, faint, good, heading};

/// After the last fault: what is late has arrived.
const SETTLE: Duration = Duration::from_secs(1);

/// Options of `soak`.
#[derive(Args, Debug)]
pub struct Options {
    /// For how long faults are injected.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Same seed, same schedule and same choices of the writers; drawn from the clock when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Rows per second.
    #[arg(long, default_value_t = 300.0)]
    rate: f64,
    /// Also resume relays that were paused and succeeded. They may leave duplicates: such are right when the relay
    /// has counted them.
    #[arg(long)]
    zombies: bool,
    /// Write the result there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was injected of one class, and what was seen from the fault until the next.
#[derive(Clone, Debug, Default)]
struct Row {
    injected: usize,
    slowest: Duration,
    duplicates: usize,
    counted: f64,
}

type Table = BTreeMap<Fault, Row>;

/// Runs it. An error when the verdict is not right, or something did not heal.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let seed = options.seed.unwrap_or_else(seed_of_the_clock);
    println!("{}", heading(&format!("Soak: {} minutes, seed {seed}", options.minutes)));
    println!("{}", faint("building the programs"));
    let programs = build::programs(Profile::Dev)?;
    let mut arena = Arena::start(programs).await?;
    let mut table = Table::new();
    let result = soak(options, seed, &mut arena, &mut table).await;
    show(&table);
    let verdict = result.map_err(|error| Failure::from(format!("{error}\n{}", repeat(options, seed))))?;
    let right = is_right(&verdict, &table);
    println!("{}", heading("Verdict"));
    // Its sentence is about duplicates too, which are ours to judge.
    let text = verdict.to_string();
    println!("{}", text.rsplit_once('\n').map_or(&*text, |(findings, _)| findings));
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", result_json(options, seed, &table, &verdict, right)))?;
    }
    if right {
        let counted =
            if verdict.duplicate.count > 0 { "; what resumed relays left twice was counted" } else { "" };
        println!("{}", good(&format!("  as promised: nothing lost, nothing twice, in order{counted}")));
        return Ok(());
    }
    Err(format!("not as promised: see above\n{}", repeat(options, seed)).into())
}

fn seed_of_the_clock() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(1, |elapsed| elapsed.as_secs())
}

fn repeat(options: &Options, seed: u64) -> String {
    let zombies = if options.zombies { " --zombies" } else { "" };
    format!(
        "to repeat: cargo xtask soak --minutes {} --rate {} --seed {seed}{zombies}",
        options.minutes, options.rate
    )
}

async fn soak(
    options: &Options,
    seed: u64,
    arena: &mut Arena,
    table: &mut Table,
) -> Result<Verdict, Failure> {
    let load = arena.load(options.rate, seed).await?;
    let duplicates = Duplicates::watch(arena.tail().await?);
    let started = Instant::now();
    let ends = Duration::from_secs_f64(options.minutes.max(0.0) * 60.0);
    for step in Schedule::new(seed, options.zombies) {
        if started.elapsed() + step.pause >= ends {
            break;
        }
        sleep(step.pause).await;
        print!("  {:>7.1} s  {:<34}", started.elapsed().as_secs_f64(), step.fault.to_string());
        one(step, arena, &duplicates, table).await?;
    }
    let mut log = load.stop().await?;
    arena.settle(&mut log).await?;
    let records = arena.delivered().await?;
    Ok(checker::check(&log, &records))
}

/// One fault, and what was seen meanwhile.
async fn one(step: Step, arena: &mut Arena, seen: &Duplicates, table: &mut Table) -> Result<(), Failure> {
    let (before, began) = (seen.count(), Instant::now());
    // The process may be another one afterwards, whose count begins at nothing.
    let zombie = step.fault == Fault::RelayZombie;
    let injected = arena.inject(step).await;
    let row = table.entry(step.fault).or_default();
    row.injected += 1;
    if let Err(error) = injected {
        println!("{}", bad(&format!("for {:.1} s, did not heal", step.hold.as_secs_f64())));
        return Err(error);
    }
    let healed = began.elapsed().saturating_sub(step.hold);
    row.slowest = row.slowest.max(healed);
    if zombie {
        sleep(SETTLE).await;
        row.counted += arena.detected().await;
    }
    let duplicates = seen.count() - before;
    row.duplicates += duplicates;
    let found = if duplicates == 0 { String::new() } else { bad(&format!(", {duplicates} duplicates")) };
    println!("for {:>4.1} s, well after {:>4.1} s{found}", step.hold.as_secs_f64(), healed.as_secs_f64());
    Ok(())
}

/// Counts records that Kafka has already, as they arrive: which fault they belong to is known only then.
struct Duplicates {
    count: Arc<AtomicUsize>,
    reading: JoinHandle<()>,
}

impl Duplicates {
    fn watch(tail: Tail) -> Duplicates {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let reading = tokio::spawn(async move {
            let mut seen = HashSet::new();
            // The checker reads everything again at the end; here an error only ends the attribution.
            while let Ok(record) = tail.next().await {
                if record.event_id().is_some_and(|id| !seen.insert(id)) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Duplicates { count, reading }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Duplicates {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Right, but for duplicates of resumed relays that were counted.
fn is_right(verdict: &Verdict, table: &Table) -> bool {
    let allowed = table.get(&Fault::RelayZombie).map_or(0, |row| row.duplicates.min(row.counted as usize));
    let others =
        verdict.findings().iter().filter(|(kind, _)| *kind != "duplicate").all(|(_, f)| f.count == 0);
    verdict.committed > 0 && others && verdict.duplicate.count <= allowed
}

fn show(table: &Table) {
    println!("{}", heading("Injected"));
    println!("  {:<34}{:>8}{:>14}{:>12}", "fault", "times", "slowest, s", "duplicates");
    for (fault, row) in table {
        let counted = if row.counted > 0.0 { format!(" ({} counted)", row.counted) } else { String::new() };
        println!(
            "  {:<34}{:>8}{:>14.1}{:>12}{counted}",
            fault.to_string(),
            row.injected,
            row.slowest.as_secs_f64(),
            row.duplicates
        );
    }
}

fn result_json(options: &Options, seed: u64, table: &Table, verdict: &Verdict, right: bool) -> Value {
    let faults: serde_json::Map<String, Value> = table
        .iter()
        .map(|(fault, row)| {
            let row = json!({
                "injected": row.injected,
                "slowest_seconds": row.slowest.as_secs_f64(),
                "duplicates": row.duplicates,
                "duplicates_counted_by_the_relay": row.counted,
            });
            (fault.to_string(), row)
        })
        .collect();
    let found: serde_json::Map<String, Value> =
        verdict.findings().iter().map(|(kind, found)| ((*kind).to_owned(), found.count.into())).collect();
    json!({
        "seed": seed,
        "minutes": options.minutes,
        "rate": options.rate,
        "zombies": options.zombies,
        "faults": faults,
        "committed": verdict.committed,
        "records": verdict.records,
        "found": found,
        "right": right,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_right_only_where_a_resumed_relay_left_them_and_another_counted_them() {
        let mut verdict = Verdict { committed: 10, ..Verdict::default() };
        let zombie = |duplicates, counted| {
            Table::from([(Fault::RelayZombie, Row { injected: 1, duplicates, counted, ..Row::default() })])
        };
        assert!(is_right(&verdict, &Table::new()));
        verdict.duplicate.count = 2;
        assert!(!is_right(&verdict, &Table::new()));
        assert!(is_right(&verdict, &zombie(2, 2.0)));
        assert!(!is_right(&verdict, &zombie(2, 1.0)), "one of them was not counted");
        assert!(!is_right(&verdict, &zombie(1, 5.0)), "one of them came from elsewhere");
        verdict = Verdict { committed: 10, ..Verdict::default() };
        verdict.lost.count = 1;
        assert!(!is_right(&verdict, &zombie(0, 0.0)));
    }
}
