//! The checkpoint: the relay's row in the source database that says what is known to be in Kafka.
//!
//! It lives there and nowhere else, so that it is as old or as new as the rows it speaks of. Confirmations to
//! Postgres never run ahead of it: if they did, a crash between the two would look like a slot that somebody
//! advanced, which is a gap.

use pg_replication::EndLsn;
use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::sync::watch;

use crate::config::Config;
use crate::mapping::Mappings;
use crate::partitions::Offsets;
use crate::trouble::{Reason, Trouble};

/// Name of the table, in the schema of the outbox table.
pub const TABLE: &str = "outbox_checkpoint";

/// The cluster and timeline LSNs belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// System identifier of the cluster.
    pub system_identifier: u64,
    /// Timeline.
    pub timeline: u32,
}

/// A relay's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Slot the row speaks of.
    pub slot: String,
    /// What `confirmed` belongs to.
    pub history: History,
    /// Every commit before it is in Kafka; `None` until the slot exists.
    pub confirmed: Option<EndLsn>,
    /// Where rows go; `None` before the first start.
    pub mappings: Option<Mappings>,
    /// What is known of the partitions.
    pub offsets: Offsets,
}

/// Reads the row of this relay.
pub async fn load(sql: &mut PgConnection, config: &Config) -> Result<Option<Checkpoint>, Trouble> {
    let table = config.source.table.sibling(TABLE);
    let select = format!(
        "SELECT slot::text, system_identifier, timeline, confirmed_lsn::text AS confirmed,
                nullif(mapping, '{{}}') AS mapping, mapping_version, kafka_offsets
         FROM {table} WHERE relay = $1"
    );
    let row = sqlx::query(AssertSqlSafe(select)).bind(&config.name).fetch_optional(&mut *sql).await?;
    let Some(row) = row else { return Ok(None) };
    let confirmed: Option<String> = row.try_get("confirmed")?;
    let version = row.try_get("mapping_version")?;
    let mappings: Option<Json<Mappings>> = row.try_get("mapping")?;
    Ok(Some(Checkpoint {
        slot: row.try_get("slot")?,
        history: History {
            system_identifier: row.try_get::<i64, _>("system_identifier")?.cast_unsigned(),
            timeline: row.try_get::<i32, _>("timeline")?.cast_unsigned(),
        },
        confirmed: confirmed.and_then(|text| text.parse().ok()).map(EndLsn::new),
        mappings: mappings.map(|Json(mappings)| Mappings { version, ..mappings }),
        offsets: row.try_get::<Json<_>, _>("kafka_offsets")?.0,
    }))
}

/// Writes the row of a relay that has none, before its slot is created: from then on nobody may drop rows this
/// relay has not confirmed.
pub async fn register(sql: &mut PgConnection, config: &Config, history: History) -> Result<(), Trouble> {
    let table = config.source.table.sibling(TABLE);
    let insert = format!(
        "INSERT INTO {table} (relay, slot, system_identifier, timeline) VALUES ($1, $2::name, $3, $4)
         ON CONFLICT (relay) DO NOTHING"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(&config.name)
        .bind(&config.source.slot.name)
        .bind(history.system_identifier.cast_signed())
        .bind(history.timeline.cast_signed())
        .execute(&mut *sql)
        .await?;
    Ok(())
}

/// What to write next.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Every commit before it is in Kafka.
    pub confirmed: EndLsn,
    /// Where rows go.
    pub mappings: Mappings,
    /// Which revision of the mapper `mappings` is.
    pub revision: u64,
    /// What is known of the partitions.
    pub offsets: Offsets,
}

/// What the last committed row says.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Its LSN: what may be confirmed to Postgres.
    pub confirmed: EndLsn,
    /// The revision of the mapper it has: no record goes out under a mapping before it is written down here.
    pub revision: u64,
}

/// Writes checkpoints in the background, one at a time, always the newest.
pub struct Writer {
    progress: watch::Sender<Option<Progress>>,
    committed: watch::Receiver<Committed>,
    task: tokio::task::JoinHandle<Result<(), Trouble>>,
}

impl Writer {
    /// Takes over `sql` for writing. `committed` is what the row says now.
    pub async fn start(
        mut sql: PgConnection,
        config: &Config,
        history: History,
        committed: Committed,
    ) -> Result<Writer, Trouble> {
        // `local`: a synchronous standby that is away must not hold up deliveries that have happened.
        sqlx::query("SET synchronous_commit = local").execute(&mut sql).await?;
        let (progress, wanted) = watch::channel(None);
        let (done, committed) = watch::channel(committed);
        let statement = Statement::new(config, history);
        let task = tokio::spawn(write_newest(sql, statement, wanted, done));
        Ok(Writer { progress, committed, task })
    }

    /// Asks for `progress` to be written, in place of anything asked for and not begun.
    pub fn write(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    /// What the last committed row says.
    pub fn committed(&self) -> Committed {
        *self.committed.borrow()
    }

    /// Waits until another row was committed, or for the reason why none can be.
    pub async fn changed(&mut self) -> Result<(), Trouble> {
        if self.committed.changed().await.is_ok() {
            return Ok(());
        }
        match (&mut self.task).await {
            Ok(Err(trouble)) => Err(trouble),
            _ => Err(Trouble::new(Reason::CheckpointLost, "the checkpoint writer ended")),
        }
    }
}

async fn write_newest(
    mut sql: PgConnection,
    statement: Statement,
    mut wanted: watch::Receiver<Option<Progress>>,
    done: watch::Sender<Committed>,
) -> Result<(), Trouble> {
    while wanted.changed().await.is_ok() {
        let Some(progress) = wanted.borrow_and_update().clone() else { continue };
        statement.execute(&mut sql, &progress).await?;
        done.send_replace(Committed { confirmed: progress.confirmed, revision: progress.revision });
    }
    drop(sql.close().await);
    Ok(())
}

struct Statement {
    sql: String,
    relay: String,
    history: History,
}

impl Statement {
    /// The WHERE clause is a guard: the row must still be of this history, in the cluster the stream comes from,
    /// and must not go back.
    fn new(config: &Config, history: History) -> Statement {
        let table = config.source.table.sibling(TABLE);
        let sql = format!(
            "UPDATE {table} SET confirmed_lsn = $4::pg_lsn, mapping = $5::jsonb, mapping_version = $7,
                    kafka_offsets = $6::jsonb, updated_at = clock_timestamp()
             WHERE relay = $1 AND system_identifier = $2 AND timeline = $3
               AND $2 = (SELECT system_identifier FROM pg_control_system())
               AND (confirmed_lsn IS NULL OR confirmed_lsn <= $4::pg_lsn)"
        );
        Statement { sql, relay: config.name.clone(), history }
    }

    async fn execute(&self, sql: &mut PgConnection, progress: &Progress) -> Result<(), Trouble> {
        let updated = sqlx::query(AssertSqlSafe(self.sql.as_str()))
            .bind(&self.relay)
            .bind(self.history.system_identifier.cast_signed())
            .bind(self.history.timeline.cast_signed())
            .bind(progress.confirmed.to_string())
            .bind(Json(&progress.mappings))
            .bind(Json(&progress.offsets))
            .bind(progress.mappings.version)
            .execute(sql)
            .await?;
        if updated.rows_affected() == 1 {
            return Ok(());
        }
        let what =
            format!("the checkpoint row of relay '{}' is gone, of another history, or ahead", self.relay);
        Err(Trouble::new(Reason::CheckpointLost, what))
    }
}

/// Writes one checkpoint and waits for it: used while no writer runs.
pub async fn write_now(
    sql: &mut PgConnection,
    config: &Config,
    history: History,
    progress: &Progress,
) -> Result<(), Trouble> {
    Statement::new(config, history).execute(sql, progress).await
}
