//! The statements of a command as a script of pgbench: the service's own text, with values in place of its parameters.

use std::process::{Command, Stdio};

use basket_api::postgres::statements::{COMMIT_UPDATE, LOOK_UP};
use testbed::Database;
use testbed::guard::Folder;

use super::BASKETS;
use crate::Failure;

const LINES: &str =
    r#"[{"sku":"tea","name":"Green tea","quantity":7,"unit_price":{"amount":350,"currency":"EUR"}}]"#;
const VIEW: &str = r#"{"id":"00000000-0000-0000-0000-000000000001","buyer_id":"ann","status":"open","lines":[{"sku":"tea","name":"Green tea","quantity":7,"unit_price":{"amount":350,"currency":"EUR"},"total":{"amount":2450,"currency":"EUR"}}],"total":{"amount":2450,"currency":"EUR"},"payment_method": null,"version":1,"created_at":"2026-01-31T12:00:00Z","updated_at":"2026-01-31T12:00:00Z"}"#;
const EVENT: &str = r#"{"basket_id":"00000000-0000-0000-0000-000000000001","version":2,"occurred_at":"2026-01-31T12:00:00Z","previous_quantity":3,"line":{"sku":"tea","name":"Green tea","quantity":7,"unit_price":{"amount":350,"currency":"EUR"}},"basket_total":{"amount":2450,"currency":"EUR"}}"#;

/// SQL that makes the baskets both sides work on.
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

fn script() -> String {
    let basket = "lpad(to_hex(:n::bigint), 32, '0')::uuid";
    let command = "md5(:r::text)::uuid";
    let look_up = with_values(LOOK_UP, &["'developer'", "'change_quantity'", ":r::text", basket]);
    let headers = r#"'{"correlation-id": "01a20e59-80ea-7177-a1d5-4662657ca6a5", "causation-id": "01a20e59-80ea-7177-a1d5-4662657ca6a5"}'"#;
    let payload = r#"'{"sku": "tea", "quantity": 7, "basket_id": "00000000-0000-0000-0000-000000000001", "expected_version": null}'::jsonb"#;
    let result = format!("'{{\"accepted\": {VIEW}}}'::jsonb");
    let fingerprint = format!("'{}'", "0".repeat(64));
    let array = |value: &str, of: &str| format!("ARRAY[{value}]::{of}[]");
    let commit = with_values(
        &COMMIT_UPDATE,
        &[
            command,
            "now()",
            "'change_quantity'",
            "'developer'",
            ":r::text",
            "NULL::text",
            payload,
            &fingerprint,
            ":r::text",
            "'accepted'",
            &result,
            basket,
            "(:version::bigint + 1)",
            &array(command, "uuid"),
            "'open'",
            &format!("'{LINES}'::jsonb"),
            "NULL::text",
            "now()",
            ":version::bigint",
            &format!("'{VIEW}'::jsonb"),
            &array(command, "uuid"),
            &array("'basket'", "text"),
            &array(&format!("{basket}::text"), "text"),
            &array("'basket.item_quantity_changed.v1'", "text"),
            &array(&format!("'{EVENT}'"), "jsonb"),
            &array(headers, "jsonb"),
            &array("NULL", "text"),
            &array("NULL", "text"),
        ],
    );
    format!(
        "\\set n random(1, {BASKETS})\n\\set r random(1, 9000000000000000)\n{look_up} \\gset\n{commit};\n"
    )
}

/// The last parameter first: $1 is the beginning of $10. On one line, as pgbench wants it before \gset.
fn with_values(statement: &str, values: &[&str]) -> String {
    let mut text = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    for (index, value) in values.iter().enumerate().rev() {
        text = text.replace(&format!("${}", index + 1), value);
    }
    text
}
