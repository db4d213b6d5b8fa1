//! Checks of the source.

use std::time::Instant;

use chrono::{DateTime, Utc};
use pg_replication::Host;
use process::Finding;
use sqlx::postgres::PgConnection;

use super::{Topics, found, problem, walsender};
use crate::config::{Config, CreationPolicy, StartAt, quote};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint::{self, TABLE};
use crate::postgres::preconditions;
use crate::postgres::publication::PublicationState;
use crate::postgres::slot_holder::{self, Holder};
use crate::postgres::{
    blocking_transactions, columns, connection, grants, publication, slot as slot_query, table,
};
use crate::session::{self, slot_wait};

/// A larger difference between the clocks makes lag and event times misleading.
const CLOCK_TOLERANCE_SECONDS: f64 = 1.0;
/// With fewer free, a base backup or another relay would take the last one.
const FEW_PLACES: i64 = 2;

/// The result of the checks of the source.
pub struct Examined {
    pub findings: Vec<Finding>,
    /// Topics in the checkpoint, with their numbers of partitions.
    pub topics: Topics,
}

/// Runs the checks of the source.
pub async fn examine(config: &Config) -> Examined {
    let mut topics = Topics::new();
    let (mut sql, server_address) = match connection::connect_first(&config.source, "doctor", None).await {
        Ok(connected) => connected,
        Err(error) => return Examined { findings: vec![problem("database", &error)], topics },
    };
    let sql = &mut sql;
    let mut findings = vec![
        found("database", server(sql, config).await),
        found("server and tables", preconditions(sql, config).await),
        found("encoding", encoding(sql).await),
        found("rows", rows(sql, config).await),
        found("columns", columns(sql, config).await),
        found("replication role", role(sql, config).await),
        found("clock", clock(sql).await),
        found("checkpoint grants", checkpoint_grants(sql, config).await),
        found("outbox_maintain", maintain(sql, config).await),
        found("outbox grants", outbox_grants(sql, config).await),
        found("publication", published(sql, config).await),
        found("slot", slot(sql, config).await),
        found("delivery", verdict(sql, config, &server_address).await),
        found("standbys", walsender::standbys(sql, config).await),
        found("failover", walsender::failover(sql, config, &server_address).await),
        found("WAL limit", wal_limit(sql).await),
        found("walsender timeout", walsender::timeout(sql).await),
        found("places", places(sql, config).await),
    ];
    match checkpoint::load(sql, config).await {
        Ok(checkpoint) => {
            let mappings = checkpoint.and_then(|checkpoint| checkpoint.mappings);
            topics.extend(mappings.iter().flat_map(|m| m.topics()).map(|(name, n)| (name.to_owned(), n)));
        }
        Err(error) => findings.push(problem("checkpoint", &error)),
    }
    Examined { findings, topics }
}

async fn server(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    let (version, has_tls): (String, bool) = sqlx::query_as(
        "SELECT current_setting('server_version'),
                coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)",
    )
    .fetch_one(sql)
    .await?;
    let how = if has_tls { "with TLS" } else { "without TLS" };
    let from = &config.source;
    let place = format!("PostgreSQL {version} at {}, database {}", from.host, from.database);
    Ok(Finding::ok("database", format!("connected to {place} as role {}, {how}", from.user)))
}

async fn preconditions(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    preconditions::check_preconditions(sql, &config.source).await?;
    let table = &config.source.table;
    Ok(Finding::ok("server and tables", format!("wal_level is logical, {table} and {TABLE} exist")))
}

/// Whether text arrives as it is stored.
async fn encoding(sql: &mut PgConnection) -> Result<Finding, RelayError> {
    const CHECK: &str = "encoding";
    let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(sql).await?;
    Ok(match encoding.as_str() {
        "UTF8" => Finding::ok(CHECK, "the database is in UTF-8"),
        "SQL_ASCII" => Finding::warn(
            CHECK,
            "the database is in SQL_ASCII: PostgreSQL checks no text",
            "have writers store UTF-8: a row is poison if a text for a header is something else",
        ),
        _ => Finding::warn(
            CHECK,
            format!(
                "PostgreSQL converts from {encoding}: text that it cannot convert to UTF-8 stops delivery"
            ),
            "have writers store what UTF-8 has; see docs/OPERATIONS.md, 'Text that is not UTF-8'",
        ),
    })
}

/// Whether the stream carries every row that the table shows.
async fn rows(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "rows";
    let name = &config.source.table;
    table::check(sql, config).await?;
    let doubts = table::doubts(sql, config).await?;
    Ok(if doubts.is_empty() {
        Finding::ok(CHECK, format!("no table kind or column hides rows of {name} from the stream"))
    } else {
        Finding::warn(CHECK, doubts.join("; "), "insert a row there, and check that it arrives in Kafka")
    })
}

async fn columns(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    let columns = columns::of(sql, &config.source).await?;
    let layout = columns::layout(&columns, &config.routing.by_field)?;
    let form = if layout.needs_text() { "text" } else { "binary" };
    Ok(Finding::ok("columns", format!("rows can be read; the stream has their values in {form} format")))
}

async fn role(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "replication role";
    let name = &config.source.user;
    Ok(match grants::replication(sql, name).await? {
        None => Finding::ok(CHECK, format!("role {name} has REPLICATION")),
        Some(remedy) => Finding::problem(CHECK, format!("role {name} lacks REPLICATION"), remedy),
    })
}

async fn clock(sql: &mut PgConnection) -> Result<Finding, RelayError> {
    const CHECK: &str = "clock";
    let (asked, before) = (Instant::now(), Utc::now());
    let there: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(sql).await?;
    let round_trip = asked.elapsed().as_secs_f64();
    let ahead = there.signed_duration_since(before).as_seconds_f64() - round_trip / 2.0;
    if ahead.abs() <= CLOCK_TOLERANCE_SECONDS + round_trip {
        return Ok(Finding::ok(
            CHECK,
            "this machine's clock and the database's differ by less than a second",
        ));
    }
    let which = if ahead > 0.0 { "ahead of" } else { "behind" };
    let message = format!("the database's clock is {:.1} s {which} this machine's", ahead.abs());
    Ok(Finding::warn(
        CHECK,
        message,
        "synchronise both clocks; until then lag and latency are wrong by that much",
    ))
}

async fn checkpoint_grants(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "checkpoint grants";
    Ok(match grants::on_checkpoint(sql, &config.source, &config.source.user).await? {
        None => Finding::ok(CHECK, format!("SELECT, INSERT and UPDATE on {TABLE}")),
        Some(remedy) => {
            let message = format!("the relay cannot store its position in {TABLE}");
            Finding::problem(CHECK, message, remedy)
        }
    })
}

async fn outbox_grants(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "outbox grants";
    let table = &config.source.table;
    let Some(remedy) = grants::on_outbox(sql, &config.source, &config.source.user).await? else {
        return Ok(Finding::ok(CHECK, format!("SELECT on {table}")));
    };
    let message = format!("the role cannot read all rows of {table}, only the stream can");
    Ok(match config.source.start {
        StartAt::Table => Finding::problem(CHECK, message, remedy),
        StartAt::Now => Finding::warn(CHECK, message, remedy),
    })
}

/// Without these functions delivery works, but the table grows.
async fn maintain(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "outbox_maintain";
    for function in ["outbox_maintain(interval, interval)", "outbox_partition_state()"] {
        let schema = quote(&config.source.table.schema);
        let may: Option<bool> =
            sqlx::query_scalar("SELECT has_function_privilege(to_regprocedure($1), 'EXECUTE')")
                .bind(format!("{schema}.{function}"))
                .fetch_one(&mut *sql)
                .await?;
        if may == Some(true) {
            continue;
        }
        let (problem, remedy) = match may {
            Some(_) => {
                let role = quote(&config.source.user);
                let grant = format!("GRANT EXECUTE ON FUNCTION {schema}.{function} TO {role}");
                ("is not executable for the role", grant)
            }
            None => {
                let unless =
                    "apply migrations/outbox/0001_outbox.sql, unless the table is not partitioned on purpose";
                ("does not exist", unless.to_owned())
            }
        };
        let message =
            format!("{function} {problem}: partitions are not created ahead or dropped, or not observed");
        return Ok(Finding::warn(CHECK, message, remedy));
    }
    Ok(Finding::ok(CHECK, "the role can execute it and outbox_partition_state"))
}

async fn published(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "publication";
    let name = &config.source.publication.name;
    match publication::state(sql, &config.source).await? {
        PublicationState::Suitable if taken_late(sql, config).await => Ok(Finding::warn(
            CHECK,
            format!(
                "{name} may be newer than slot {}: rows of {} from before it was created are not in the stream",
                config.source.slot.name, config.source.table
            ),
            "drop the slot and let the relay create it, or compare the table with Kafka after the start",
        )),
        PublicationState::Suitable => {
            Ok(Finding::ok(CHECK, format!("{name} publishes the inserts of {}", config.source.table)))
        }
        PublicationState::Missing => creatable_publication(sql, config).await,
    }
}

/// Whether the existing slot would be used as it is, which may start before the publication was created.
async fn taken_late(sql: &mut PgConnection, config: &Config) -> bool {
    // Another finding reports that the checkpoint cannot be read.
    matches!(checkpoint::load(sql, config).await, Ok(None))
        && matches!(publication::may_be_newer_than_slot(sql, config).await, Ok(true))
}

/// The relay may create it, if its role owns the table.
async fn creatable_publication(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "publication";
    let name = &config.source.publication.name;
    let owns: bool = sqlx::query_scalar(
        "SELECT coalesce(pg_has_role(c.relowner, 'USAGE') AND has_database_privilege(current_database(), 'CREATE'), false)
         FROM (SELECT to_regclass($1) AS oid) t LEFT JOIN pg_class c ON c.oid = t.oid",
    )
    .bind(config.source.table.quoted())
    .fetch_one(sql)
    .await?;
    if owns {
        return Ok(Finding::ok(CHECK, format!("{name} does not exist; the relay will create it")));
    }
    let message = format!("{name} does not exist, and role {} may not create it", config.source.user);
    Ok(Finding::problem(CHECK, message, "create it as the table's owner, as docs/OUTBOX.md shows"))
}

async fn slot(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "slot";
    let name = &config.source.slot.name;
    let Some(slot) = slot_query::state(sql, name).await? else {
        return Ok(match config.source.slot.creation_policy {
            CreationPolicy::IfMissing => Finding::ok(CHECK, format!("{name} does not exist yet")),
            CreationPolicy::Never => {
                let error = RelayError::new(ErrorKind::SlotMissing, format!("slot {name} does not exist"));
                problem(CHECK, &error)
            }
        });
    };
    session::decision::check_suitable(&config.source, &slot)?;
    let wal = slot.wal_status.as_deref().unwrap_or("unknown");
    if wal == "unreserved" {
        let message = format!("{name} will be lost at the next checkpoint: its WAL status is unreserved");
        return Ok(Finding::warn(
            CHECK,
            message,
            "let the relay catch up, or raise max_slot_wal_keep_size now",
        ));
    }
    match slot_holder::of(sql, name).await? {
        Some(holder) => held(sql, config, &holder).await,
        None => Ok(Finding::ok(CHECK, format!("{name} is free, WAL status {wal}"))),
    }
}

async fn held(sql: &mut PgConnection, config: &Config, holder: &Holder) -> Result<Finding, RelayError> {
    const CHECK: &str = "slot";
    let held = slot_wait::slot_held(config, holder);
    Ok(match held.kind {
        ErrorKind::SlotActive if holder.creating => {
            let open = blocking_transactions::blocking(sql, holder.backend.pid).await?;
            if open.is_empty() {
                return Ok(Finding::ok(CHECK, held.detail));
            }
            let source = &config.source;
            let what = blocking_transactions::sentence(&source.slot.name, &open, &source.user, Utc::now());
            problem(CHECK, &RelayError::new(ErrorKind::SlotCreationWaits, what))
        }
        ErrorKind::SlotActive => Finding::ok(CHECK, held.detail),
        ErrorKind::SlotOrphaned => Finding::warn(CHECK, held.detail, held.kind.remedy()),
        _ => problem(CHECK, &held),
    })
}

/// The decision a relay would take now, from checkpoint, slot and server. This needs a replication connection, so it
/// also shows whether the server accepts one.
async fn verdict(sql: &mut PgConnection, config: &Config, server: &Host) -> Result<Finding, RelayError> {
    const CHECK: &str = "delivery";
    Ok(match session::plan::first_step(sql, config, server).await {
        Ok(step) => Finding::ok(CHECK, step),
        Err(held) if held.kind == ErrorKind::SlotActive => {
            Finding::ok(CHECK, "the slot is being created; a relay that starts now would stand by")
        }
        Err(error) => return Err(error),
    })
}

async fn wal_limit(sql: &mut PgConnection) -> Result<Finding, RelayError> {
    const CHECK: &str = "WAL limit";
    let (size, is_unlimited): (String, bool) = sqlx::query_as(
        "SELECT current_setting('max_slot_wal_keep_size'), setting::bigint < 0
         FROM pg_settings WHERE name = 'max_slot_wal_keep_size'",
    )
    .fetch_one(sql)
    .await?;
    if is_unlimited {
        let message =
            "max_slot_wal_keep_size is not set: a slot that no client reads fills the disk of the primary";
        return Ok(Finding::warn(
            CHECK,
            message,
            "set it to what the disk can spare, and alert on retained_wal_bytes",
        ));
    }
    Ok(Finding::ok(CHECK, format!("a slot keeps at most {size} of WAL")))
}

async fn places(sql: &mut PgConnection, config: &Config) -> Result<Finding, RelayError> {
    const CHECK: &str = "places";
    let (slots, senders, is_active, has_slot): (i64, i64, bool, bool) = sqlx::query_as(
        "SELECT current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_replication_slots),
                current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_stat_get_wal_senders()),
                EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active),
                EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
    )
    .bind(&config.source.slot.name)
    .fetch_one(sql)
    .await?;
    if slots < 1 && !has_slot {
        return Ok(Finding::problem(
            CHECK,
            "every replication slot is in use",
            "raise max_replication_slots",
        ));
    }
    if senders < 1 && !is_active {
        return Ok(Finding::problem(CHECK, "every walsender is in use", "raise max_wal_senders"));
    }
    if senders < FEW_PLACES {
        let message = format!("{senders} walsenders are free");
        return Ok(Finding::warn(CHECK, message, "raise max_wal_senders: a standby relay needs one, too"));
    }
    Ok(Finding::ok(CHECK, format!("{slots} replication slots and {senders} walsenders are free")))
}
