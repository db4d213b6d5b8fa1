//! `cargo xtask demo`: one shopping session, told as it happens, with the relay killed in the middle.

mod reader;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use testbed::{checker, load::Log, records};

use self::reader::Reader;
use crate::build::{self, Profile};
use crate::paint::{bad, faint, good, heading, notable};
use crate::shop::{Shop, text};
use crate::stack::{Stack, StackOptions, TOPIC};
use crate::{Failure, recording, up};

/// Buyers of the rush, who shop while the relay is dead.
const RUSH: u32 = 40;
/// Items each of them buys.
const ITEMS: u32 = 3;
/// Events of a visit: created, items, checked out.
const EVENTS_OF_A_VISIT: usize = 2 + ITEMS as usize;
/// Nothing takes this long unless something is wrong.
const ARRIVAL_WITHIN: Duration = Duration::from_secs(60);

/// Options of the demo.
#[derive(Args, Debug)]
pub struct Options {
    /// Stay up after the verdict and print the addresses.
    #[arg(long)]
    keep: bool,
    /// Write a recording of the run as an animated SVG, if it ends well.
    #[arg(long, value_name = "FILE", conflicts_with = "keep")]
    record: Option<PathBuf>,
}

/// Runs it. An error when the verdict is not right.
pub async fn run(options: &Options) -> Result<(), Failure> {
    if let Some(file) = &options.record {
        return recording::demo(file).await;
    }
    println!("{}", heading("Outbox Platform: from an HTTP request to a Kafka record"));
    println!("{}", faint("building the programs"));
    let programs = build::programs(Profile::Dev)?;
    let started = Instant::now();
    let progress = |what: &str| println!("  {:>6.1} s  {what}", started.elapsed().as_secs_f64());
    println!("{}", heading("Servers (real ones, on free ports of this machine)"));
    let mut stack = Stack::servers(StackOptions::default(), programs, progress).await?;
    stack.programs(progress).await?;
    let mut reader = Reader::start(&stack).await?;

    the_basket(&stack, &mut reader).await?;
    the_crash(&mut stack, &mut reader).await?;
    let right = verdict(&stack, &reader).await?;
    println!("{}", faint(&format!("\n{:.1} s in all", started.elapsed().as_secs_f64())));
    if options.keep {
        println!("{}", heading("Staying up; Ctrl-C ends it"));
        println!("{:#}", up::addresses(&stack));
        std::future::pending::<()>().await;
    }
    if right { Ok(()) } else { Err("the verdict is not right: see above".into()) }
}

/// One basket's story: what is sent, what is answered, and what arrives in Kafka.
async fn the_basket(stack: &Stack, reader: &mut Reader) -> Result<(), Failure> {
    let shop = Shop::of(stack);
    println!("{}", heading("A basket"));
    let created =
        say(&shop, "Ann takes a basket", "/v1/baskets", "ann-1", &json!({"buyer_id": "ann"})).await?;
    let id = text(&created, "id").to_owned();
    reader.show(1).await?;
    let (items, checkout) = (format!("/v1/baskets/{id}/items"), format!("/v1/baskets/{id}/checkout"));
    let payment = json!({"payment_method": "card"});
    say(&shop, "checks out too early: refused, and no event", &checkout, "ann-2", &payment).await?;
    let tea = json!({"sku": "tea", "name": "Darjeeling, 100 g", "quantity": 2, "unit_price": {"amount": 890, "currency": "EUR"}});
    say(&shop, "puts tea in", &items, "ann-3", &tea).await?;
    reader.show(1).await?;
    say(&shop, "the answer got lost, so it is sent again: once is enough", &items, "ann-3", &tea).await?;
    let pot = json!({"sku": "pot", "name": "A pot", "quantity": 1, "unit_price": {"amount": 3900, "currency": "EUR"}});
    say(&shop, "and a pot", &items, "ann-4", &pot).await?;
    reader.show(1).await?;
    say(&shop, "checks out", &checkout, "ann-5", &payment).await?;
    reader.show(1).await
}

async fn say(shop: &Shop, what: &str, path: &str, key: &str, body: &Value) -> Result<Value, Failure> {
    let answer = shop.send(path, key, body).await?;
    let status = answer.status.as_u16().to_string();
    let status = if answer.status.is_success() { good(&status) } else { notable(&status) };
    let replayed = if answer.replayed { notable(" replayed") } else { String::new() };
    let title = text(&answer.body, "title");
    println!("  {what}");
    println!("    {} {status}{replayed} {title}", faint(&format!("POST {}", shortened(path))));
    Ok(answer.body)
}

/// Ids are long and say nothing.
fn shortened(path: &str) -> String {
    let segments: Vec<&str> =
        path.split('/').map(|part| if part.len() == 36 { reader::short(part) } else { part }).collect();
    segments.join("/")
}

/// kill -9 in the middle of a rush; the shop never notices, and Kafka gets every event once.
async fn the_crash(stack: &mut Stack, reader: &mut Reader) -> Result<(), Failure> {
    println!("{}", heading("A rush, and the relay is killed in the middle of it"));
    let shop = Shop::of(stack);
    let mut buyers = tokio::task::JoinSet::new();
    for buyer in 0..RUSH {
        let shop = shop.clone();
        buyers.spawn(async move { shop.visit(&format!("buyer-{buyer}"), ITEMS).await });
    }
    println!("  {RUSH} buyers shop at once: {} events to come", RUSH as usize * EVENTS_OF_A_VISIT);
    // In the middle: some of the rush has arrived, the rest has not.
    reader.skip(RUSH as usize).await?;
    let relay = stack.relay.as_mut().ok_or("there is no relay")?;
    let pid = relay.pid();
    relay.kill().await?;
    println!("  {} after {} records", bad(&format!("kill -9 {pid} (outbox-relay)")), reader.seen());
    while let Some(visited) = buyers.join_next().await {
        visited??;
    }
    println!(
        "  the shop keeps selling: every buyer has checked out, {} committed without a relay",
        good("all")
    );
    let restarted = Instant::now();
    stack.start_relay().await?;
    println!("  a new relay streams after {} ms", restarted.elapsed().as_millis());
    let expected = log(stack).await?.rows().len();
    reader.until(expected).await?;
    println!("  the backlog has arrived {} ms after the restart", restarted.elapsed().as_millis());
    let suppressed = metric(stack, "outbox_relay_duplicates_suppressed_total").await?;
    println!("  {suppressed} rows were read again, found in Kafka, and not sent twice");
    println!("{}", heading("One more, through the new relay"));
    let body = json!({"buyer_id": "zoe"});
    say(&shop, "Zoe takes a basket", "/v1/baskets", "zoe-1", &body).await?;
    reader.show(1).await
}

async fn metric(stack: &Stack, name: &str) -> Result<String, Failure> {
    let text = reqwest::get(format!("{}/metrics", stack.relay_admin_url())).await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("the metric is missing")?;
    Ok(value.trim().to_owned())
}

async fn log(stack: &Stack) -> Result<Log, Failure> {
    Ok(Log::of_table(&stack.database_url(), "outbox", |aggregate| format!("outbox.event.{aggregate}"))
        .await?)
}

/// What was committed against what is in Kafka, read again from the first offset.
async fn verdict(stack: &Stack, reader: &Reader) -> Result<bool, Failure> {
    println!("{}", heading("Verdict"));
    let records = records::read_all(&stack.kafka.bootstrap(), &[TOPIC]).await?;
    let verdict = checker::check(&log(stack).await?, &records);
    let text = verdict.to_string();
    let (table, sentence) = text.rsplit_once('\n').unwrap_or(("", &text));
    println!("{table}");
    println!("{}", if verdict.is_right() { good(sentence) } else { bad(sentence) });
    let (median, slowest) = reader.latencies();
    println!(
        "{}",
        faint(&format!(
            "  commit to consumer, while the relay lived: median {median} ms, slowest {slowest} ms"
        ))
    );
    Ok(verdict.is_right())
}

/// A deadline for what should arrive.
async fn in_time<T>(what: &str, arriving: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Failure::from(format!("{what} did not arrive within {ARRIVAL_WITHIN:?}"));
    tokio::time::timeout(ARRIVAL_WITHIN, arriving).await.map_err(late)?
}
