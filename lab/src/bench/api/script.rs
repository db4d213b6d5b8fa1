//! A command as a script of pgbench: all reads and writes of the service, in the fewest statements that are known.

use std::process::{Command, Stdio};

use testbed::Database;
use testbed::guard::Folder;

use super::BASKETS;
use crate::Failure;

const LINES: &str =
    r#"[{"sku":"tea","name":"Green tea","quantity":7,"unit_price":{"amount":350,"currency":"EUR"}}]"#;
const VIEW: &str = r#"{"id":"00000000-0000-0000-0000-000000000001","buyer_id":"ann","status":"open","lines":[{"sku":"tea","name":"Green tea","quantity":7,"unit_price":{"amount":350,"currency":"EUR"},"total":{"amount":2450,"currency":"EUR"}}],"total":{"amount":2450,"currency":"EUR"},"payment_method": null,"version":1,"created_at":"2026-01-31T12:00:00Z","updated_at":"2026-01-31T12:00:00Z"}"#;
const EVENT: &str = r#"{"basket_id":"00000000-0000-0000-0000-000000000001","version":2,"occurred_at":"2026-01-31T12:00:00Z","previous_quantity":3,"line":{"sku":"tea","name":"Green tea","quantity":7,"unit_price":{"amount":350,"currency":"EUR"}},"basket_total":{"amount":2450,"currency":"EUR"}}"#;
const HEADERS: &str = r#"{"correlation-id": "01a20e59-80ea-7177-a1d5-4662657ca6a5", "causation-id": "01a20e59-80ea-7177-a1d5-4662657ca6a5"}"#;
const PAYLOAD: &str = r#"{"sku": "tea", "quantity": 7, "basket_id": "00000000-0000-0000-0000-000000000001", "expected_version": null}"#;

/// SQL that creates the baskets both sides work on.
pub fn baskets() -> String {
    let id = "lpad(to_hex(n), 32, '0')::uuid";
    format!(
        "INSERT INTO basket SELECT {id}, 'developer', 'ann', 'open', '{LINES}', NULL, 1, now(), now()
             FROM generate_series(1, {BASKETS}) n;
         INSERT INTO basket_view SELECT {id}, 'developer', 'ann', 'open', '{VIEW}'
             FROM generate_series(1, {BASKETS}) n;
         ANALYZE basket; ANALYZE basket_view"
    )
}

/// Commands a second of pgbench: those that wrote everything a command writes.
pub async fn pgbench(database: &Database, connections: usize, seconds: u64) -> Result<f64, Failure> {
    let before = commands(database).await?;
    let rate = run(database.url(), connections, seconds).await?;
    let written = commands(database).await? - before;
    // Some find that another one changed the basket meanwhile, as in the service; most must not.
    let transactions = rate * seconds as f64;
    if (written as f64) < 0.9 * transactions {
        return Err(format!("pgbench wrote {written} commands in about {transactions} transactions").into());
    }
    Ok(written as f64 / seconds as f64)
}

async fn commands(database: &Database) -> Result<i64, Failure> {
    let mut connection = database.connect().await?;
    let whole = "SELECT count(*) FROM outbox o JOIN command_log c ON o.id = c.event_ids[1]";
    Ok(sqlx::query_scalar(whole).fetch_one(&mut connection).await?)
}

async fn run(url: &str, connections: usize, seconds: u64) -> Result<f64, Failure> {
    let folder = Folder::new("pgbench")?;
    let path = folder.path().join("command.sql");
    std::fs::write(&path, script())?;
    let mut pgbench = Command::new("pgbench");
    pgbench
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .args([format!("--client={connections}"), format!("--time={seconds}")])
        .arg("--file")
        .arg(&path)
        .arg(url)
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || pgbench.output()).await?;
    let output =
        output.map_err(|error| format!("pgbench cannot be run ({error}): install postgresql-contrib"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let rate = printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let failed = || format!("pgbench failed: {printed}{}", String::from_utf8_lossy(&output.stderr));
    rate.filter(|_| output.status.success() && !printed.contains("aborted")).ok_or_else(|| failed().into())
}

/// The script with its documents in place.
fn script() -> String {
    let documents = [
        ("{baskets}", BASKETS.to_string()),
        ("{lines}", LINES.to_owned()),
        ("{event}", EVENT.to_owned()),
        ("{headers}", HEADERS.to_owned()),
        ("{payload}", PAYLOAD.to_owned()),
        ("{view}", VIEW.to_owned()),
    ];
    let filled = |script: String, (name, document): &(&str, String)| script.replace(name, document);
    documents.iter().fold(include_str!("command.sql").to_owned(), filled)
}
