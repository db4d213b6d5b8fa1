//! `lag`: how far behind delivery is. The database knows what is *confirmed*; only the running relay knows what is
//! *read*, *published* and *acknowledged*. The first column names the source of each value.

use std::fmt::Write;
use std::net::SocketAddr;

use pg_replication::EndLsn;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::types::Text;
use sqlx::{AssertSqlSafe, Row};

use super::admin_client::request;
use super::{Format, print};
use crate::config::Config;
use crate::error::{RelayError, chain};
use crate::postgres::checkpoint::TABLE;
use crate::postgres::connection;
use crate::postgres::slot;
use crate::status::SlotState;

/// Finding the oldest row may scan the table.
const QUERY_TIMEOUT: &str = "10s";

/// Values from the database.
struct InDatabase {
    slot: Option<SlotState>,
    checkpoint: Option<EndLsn>,
    oldest: Oldest,
}

/// Age of the oldest row that is not confirmed.
enum Oldest {
    /// No row is newer than the checkpoint's snapshot.
    None,
    /// At most this, in seconds: rows confirmed since that snapshot count, too.
    AtMost(f64),
    /// Why it is unknown.
    Unknown(String),
}

/// Prints how far behind delivery is.
pub async fn lag(config: &Config, format: Format) -> Result<(), RelayError> {
    let mut sql = connection::connect(&config.source, "lag").await?;
    let database = InDatabase {
        slot: slot::state(&mut sql, &config.source.slot.name).await?,
        checkpoint: checkpoint(&mut sql, config).await?,
        oldest: oldest(&mut sql, config).await,
    };
    let relay = relay_status(config.admin.listen).await;
    let json = || json!({"database": database.json(), "relay": relay.as_ref().ok(), "relayError": relay.as_ref().err()});
    print(format, || format!("{}{}", database.text(), text_of_relay(&relay)), json);
    Ok(())
}

async fn checkpoint(sql: &mut PgConnection, config: &Config) -> Result<Option<EndLsn>, RelayError> {
    let table = config.source.table.sibling(TABLE);
    let select = format!("SELECT confirmed_lsn::text FROM {table} WHERE relay = $1");
    let found: Option<Option<Text<EndLsn>>> =
        sqlx::query_scalar(AssertSqlSafe(select)).bind(&config.name).fetch_optional(sql).await?;
    Ok(found.flatten().map(|Text(lsn)| lsn))
}

async fn oldest(sql: &mut PgConnection, config: &Config) -> Oldest {
    let (table, checkpoint) = (config.source.table.quoted(), config.source.table.sibling(TABLE));
    let select = format!(
        "SELECT c.delivered_snapshot IS NULL AS unknown,
                (SELECT extract(epoch FROM clock_timestamp() - min(o.occurred_at))::float8 FROM {table} o
                 WHERE o.xid >= pg_snapshot_xmin(c.delivered_snapshot)
                   AND NOT pg_visible_in_snapshot(o.xid, c.delivered_snapshot)) AS age
         FROM {checkpoint} c WHERE c.relay = $1"
    );
    let reading = async {
        connection::require_all_rows(sql, QUERY_TIMEOUT).await?;
        let row = sqlx::query(AssertSqlSafe(select)).bind(&config.name).fetch_optional(&mut *sql).await?;
        let Some(row) = row else { return Ok(Oldest::Unknown("this relay has no checkpoint yet".into())) };
        if row.try_get("unknown")? {
            return Ok(Oldest::Unknown("the checkpoint has no snapshot yet".into()));
        }
        Ok::<_, sqlx::Error>(match row.try_get::<Option<f64>, _>("age")? {
            Some(seconds) => Oldest::AtMost(seconds.max(0.0)),
            None => Oldest::None,
        })
    };
    reading.await.unwrap_or_else(|error| Oldest::Unknown(chain(&error)))
}

/// What the running relay says under `/status`, or why it says nothing.
pub(super) async fn relay_status(listen: SocketAddr) -> Result<Value, String> {
    let status = tokio::task::spawn_blocking(move || status(listen)).await;
    status.unwrap_or_else(|_| Err("the request to the relay failed".to_owned()))
}

fn status(listen: SocketAddr) -> Result<Value, String> {
    let lines = request(listen, "GET", "/status", "").map_err(|error| error.to_string())?;
    let body: Result<String, _> = lines.collect();
    let body = body.map_err(|error| error.to_string())?;
    serde_json::from_str(&body).map_err(|_| format!("{listen} (admin.listen) did not answer as a relay does"))
}

impl InDatabase {
    fn json(&self) -> Value {
        let lsn = |lsn: Option<EndLsn>| lsn.map(|lsn| lsn.to_string());
        let (seconds, unknown) = match &self.oldest {
            Oldest::None => (Some(0.0), None),
            Oldest::AtMost(seconds) => (Some(*seconds), None),
            Oldest::Unknown(why) => (None, Some(why)),
        };
        let slot = self.slot.as_ref();
        json!({
            "serverLsn": lsn(slot.and_then(|slot| slot.current)),
            "slotConfirmedLsn": lsn(slot.and_then(|slot| slot.confirmed)),
            "checkpointConfirmedLsn": lsn(self.checkpoint),
            "unconfirmedWalBytes": slot.and_then(|slot| slot.behind(slot.confirmed)),
            "retainedWalBytes": slot.and_then(|slot| slot.behind(slot.restart)),
            "safeWalBytes": slot.and_then(|slot| slot.safe_wal_bytes),
            "walStatus": slot.and_then(|slot| slot.wal_status.as_ref()),
            "heldByPid": slot.and_then(|slot| slot.active_pid),
            "oldestUnconfirmedSecondsAtMost": seconds,
            "oldestUnconfirmedUnknown": unknown,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let lsn = |lsn: Option<EndLsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
        let bytes =
            |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), |n| format!("{n} bytes of WAL"));
        let mut line = |what: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "database  {what:<13} {value}");
        };
        match &self.slot {
            None => line("slot", "does not exist".into()),
            Some(slot) => {
                line("server at", lsn(slot.current));
                line(
                    "confirmed",
                    format!(
                        "{} by the slot, {} by the checkpoint",
                        lsn(slot.confirmed),
                        lsn(self.checkpoint)
                    ),
                );
                line("unconfirmed", bytes(slot.behind(slot.confirmed)));
                line("retained", bytes(slot.behind(slot.restart)));
                line(
                    "held by",
                    slot.active_pid.map_or_else(|| "no connection".into(), |pid| format!("pid {pid}")),
                );
            }
        }
        line(
            "oldest row",
            match &self.oldest {
                Oldest::None => "no unconfirmed row".into(),
                Oldest::AtMost(seconds) => format!("at most {seconds:.1} s old, among those not confirmed"),
                Oldest::Unknown(why) => format!("unknown: {why}"),
            },
        );
        text
    }
}

fn text_of_relay(relay: &Result<Value, String>) -> String {
    let status = match relay {
        Ok(status) => status,
        Err(error) => return format!("relay     no answer     {error}"),
    };
    let member = |name: &str| status.get(name).map_or_else(|| "-".to_owned(), plain);
    [
        format!("relay     phase         {}", member("phase")),
        format!("relay     read          up to {}", member("receivedLsn")),
        format!("relay     published     {} events not acknowledged yet", member("inFlightEvents")),
        format!("relay     acknowledged  up to {}, by Kafka", member("acknowledgedLsn")),
        format!("relay     confirmed     up to {}, to PostgreSQL", member("confirmedLsn")),
        format!("relay     lag           {} s, of the oldest row not acknowledged", member("lagSeconds")),
    ]
    .join("\n")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
