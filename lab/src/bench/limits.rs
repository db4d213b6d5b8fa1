//! What other readers of a slot reach that deliver nothing: pg_recvlogical, and decoding inside the server.

use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::comparison::Figure;
use super::site::Site;
use crate::Failure;

/// Rows per second, each on a copy of the relay's slot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Limits {
    /// pg_recvlogical over TCP into nothing, values as text.
    pub pg_recvlogical_text: f64,
    /// The same in binary, as the relay reads.
    pub pg_recvlogical_binary: f64,
    /// Decoding alone, inside the server: what no reader can exceed.
    pub decode_only: f64,
}

/// What they are called.
pub const MEASURES: [(&str, Figure<Limits>); 3] = [
    ("pg_recvlogical, text", |limits| Some(limits.pg_recvlogical_text)),
    ("pg_recvlogical, binary", |limits| Some(limits.pg_recvlogical_binary)),
    ("decode only", |limits| Some(limits.decode_only)),
];

const COPIES: [&str; 3] = ["text", "binary", "decoded"];

impl Limits {
    /// Copies the slot of `site` before the backlog is written.
    pub async fn prepare(site: &Site) -> Result<(), Failure> {
        for copy in COPIES {
            let sql = format!("SELECT pg_copy_logical_replication_slot('{0}', '{0}_{copy}')", site.slot);
            site.database.execute(&sql).await?;
        }
        Ok(())
    }

    /// Measures with a backlog of `rows`.
    pub async fn measure(site: &Site, rows: f64) -> Result<Limits, Failure> {
        let [text, binary, decoded] = COPIES.map(|copy| format!("{}_{copy}", site.slot));
        Ok(Limits {
            pg_recvlogical_text: receive(site, text, false, rows).await?,
            pg_recvlogical_binary: receive(site, binary, true, rows).await?,
            decode_only: decode(site, &decoded, rows).await?,
        })
    }
}

async fn receive(site: &Site, slot: String, binary: bool, rows: f64) -> Result<f64, Failure> {
    let end =
        site.text("SELECT pg_current_wal_lsn()::text").await?.ok_or("PostgreSQL has no WAL position")?;
    let mut reader = Command::new("pg_recvlogical");
    reader
        .args([
            "--start",
            "--no-loop",
            "-f",
            "/dev/null",
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=outbox",
        ])
        .args(["-o", &format!("binary={binary}"), "--endpos", &end, "--slot", &slot])
        .args(["--dbname", site.database.url()])
        .stderr(Stdio::null());
    let started = Instant::now();
    let status = tokio::task::spawn_blocking(move || reader.status()).await?;
    let status = status
        .map_err(|error| format!("pg_recvlogical cannot be run ({error}): install postgresql-client"))?;
    if status.success() {
        Ok(rows / started.elapsed().as_secs_f64())
    } else {
        Err("pg_recvlogical failed".into())
    }
}

async fn decode(site: &Site, slot: &str, rows: f64) -> Result<f64, Failure> {
    let peek = format!(
        "SELECT count(*)::text FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL,
         'proto_version', '1', 'publication_names', 'outbox', 'binary', 'true')"
    );
    let started = Instant::now();
    site.text(&peek).await?;
    Ok(rows / started.elapsed().as_secs_f64())
}
