//! What the programs use in the cluster, by their own metrics: idle, and under load through the API. Requests and limits of the charts
//! come from here.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Site;
use super::prometheus::Prometheus;
use crate::Failure;
use crate::paint::{faint, heading};

/// Longer than rates look back.
const PHASE: Duration = Duration::from_secs(75);
/// So many that each has a second for a visit.
const BUYERS: u32 = 96;
const EVENTS_A_SECOND: f64 = 1_000.0;
/// Of a visit: created, items, checked out.
const ITEMS: u32 = 8;

/// The programs, and how their pods are found.
const PROGRAMS: [(&str, &str); 3] = [
    ("basket-api", r#"container="basket-api""#),
    ("outbox-relay", r#"container="relay""#),
    ("outbox-operator", r#"container="operator""#),
];

/// Prints a table.
pub async fn run(site: &Site, prometheus: &Prometheus) -> Result<(), Failure> {
    println!("{}", heading("What they use, a pod (CPU over a minute; resident memory)"));
    prometheus.until_known(r#"rate(process_cpu_seconds_total{container="relay"}[1m])"#).await?;
    tokio::time::sleep(PHASE).await;
    show("idle", prometheus).await?;
    let events = load(site).await?;
    show(&format!("{:.0} events/s", events / PHASE.as_secs_f64()), prometheus).await
}

async fn show(phase: &str, prometheus: &Prometheus) -> Result<(), Failure> {
    println!("  {phase}");
    for (program, pods) in PROGRAMS {
        let cpu = prometheus.value(&format!("max(rate(process_cpu_seconds_total{{{pods}}}[1m]))")).await?;
        let memory = prometheus.value(&format!("max(process_resident_memory_bytes{{{pods}}})")).await?;
        match (cpu, memory) {
            (Some(cpu), Some(memory)) => {
                println!("    {program:<16} {:>6.0} m {:>6.1} MiB", cpu * 1000.0, memory / 1_048_576.0);
            }
            _ => println!("    {program:<16} {}", faint("not scraped")),
        }
    }
    Ok(())
}

/// Buyers that keep to the rate, all together; answers how many events they caused.
async fn load(site: &Site) -> Result<f64, Failure> {
    let (shop, began) = (site.shop().await?, Instant::now());
    let of_a_visit = f64::from(ITEMS + 2);
    let pause = Duration::from_secs_f64(of_a_visit * f64::from(BUYERS) / EVENTS_A_SECOND);
    let mut buyers = JoinSet::new();
    for buyer in 0..BUYERS {
        let shop = shop.clone();
        buyers.spawn(async move {
            let mut visits = 0;
            let mut beat = tokio::time::interval(pause);
            while began.elapsed() < PHASE {
                beat.tick().await;
                shop.visit(&format!("buyer-{buyer}-{visits}"), ITEMS).await?;
                visits += 1;
            }
            Ok::<u32, Failure>(visits)
        });
    }
    let mut visits = 0;
    while let Some(made) = buyers.join_next().await {
        visits += made??;
    }
    Ok(f64::from(visits) * of_a_visit)
}
