//! Creates the publication if allowed, and checks that it is still the one that was checked at the start.
//!
//! PostgreSQL decodes with the catalog as it was when a row was written: rows committed while the publication did not
//! publish the table are never in the stream, without any error, and the end of the stream moves past them. So the
//! statement that writes a checkpoint also compares the publication with that of the previous checkpoint: nothing
//! beyond a change is ever confirmed, and the change is reported as a gap.

use pg_replication::Host;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::config::{Config, CreationPolicy, Source, quote};
use crate::error::{ErrorKind, RelayError};
use crate::postgres::checkpoint;
use crate::postgres::connection;
use crate::postgres::table::{self, GENERATED_SINCE};

/// An SQL expression that identifies what the rows of the stream depend on: the publication, the table (both named by
/// parameters, the table as in SQL), and the entry by which one publishes the other. It includes `xmin`, because an
/// entry that was altered and altered back is equal but a new row version. NULL if either does not exist, also under
/// its name. Other tables of the publication may be added or removed.
pub fn fingerprint(publication: &str, table: &str) -> String {
    format!(
        "(SELECT concat_ws(' ', p.oid, p.xmin, c.oid,
                 (SELECT concat(r.oid, ':', r.xmin) FROM pg_catalog.pg_publication_rel r
                  WHERE r.prpubid = p.oid AND r.prrelid = c.oid),
                 (SELECT concat(n.oid, ':', n.xmin) FROM pg_catalog.pg_publication_namespace n
                  WHERE n.pnpubid = p.oid AND n.pnnspid = c.relnamespace))
          FROM pg_catalog.pg_publication p, pg_catalog.pg_class c
          WHERE p.pubname = {publication} AND c.oid = to_regclass({table}))"
    )
}

/// Makes sure that the publication exists, is suitable, and is the one of the checkpoint. One that was dropped is not
/// recreated over a gap. Returns the OID of the table, if it is the one of the checkpoint.
pub async fn ensure(sql: &mut PgConnection, config: &Config) -> Result<Option<u32>, RelayError> {
    let table = verify_fingerprint(sql, config).await?;
    create_if_missing(sql, &config.source).await?;
    Ok(table)
}

/// PostgreSQL 15 to 17 end the stream with the same SQLSTATE for a missing publication as for a missing slot.
pub async fn refine_slot_error(error: RelayError, config: &Config, server: Option<&Host>) -> RelayError {
    if error.kind != ErrorKind::SlotLost {
        return error;
    }
    let connected = connection::connect_first(&config.source, "session", server).await;
    let Ok((mut sql, _)) = connected else { return error };
    verify_fingerprint(&mut sql, config).await.err().unwrap_or(error)
}

/// Compares the publication with the checkpoint's fingerprint, and returns the OID of the table if both are the same. A
/// checkpoint without a fingerprint accepts the present state.
pub async fn verify_fingerprint(sql: &mut PgConnection, config: &Config) -> Result<Option<u32>, RelayError> {
    let Source { publication, table: outbox, .. } = &config.source;
    let compare = format!(
        "SELECT publication_fingerprint = live AS same, live IS NOT NULL AS found
         FROM {} CROSS JOIN (SELECT {} AS live) AS now
         WHERE relay = $3 AND publication_fingerprint IS NOT NULL",
        outbox.sibling(checkpoint::TABLE),
        fingerprint("$1", "$2")
    );
    let compared = sqlx::query(AssertSqlSafe(compare))
        .bind(&publication.name)
        .bind(outbox.quoted())
        .bind(&config.name)
        .fetch_optional(&mut *sql)
        .await?;
    let Some(row) = compared else { return Ok(None) };
    if row.try_get::<Option<bool>, _>("same")? == Some(true) {
        return table::oid(sql, config).await;
    }
    let name = &publication.name;
    Err(RelayError::new(
        ErrorKind::PublicationChanged,
        if row.try_get("found")? {
            format!(
                "publication {name} or its entry for table {outbox} was changed since the last checkpoint"
            )
        } else {
            format!("publication {name} or table {outbox} is gone since the last checkpoint")
        },
    ))
}

/// For a slot that is used as it is, without a checkpoint: whether it may be older than the publication or its entry
/// for the table. The stream does not carry what was committed before the table was published.
pub async fn may_be_newer_than_slot(sql: &mut PgConnection, config: &Config) -> Result<bool, RelayError> {
    let Source { publication, table: outbox, slot, .. } = &config.source;
    let newer: Option<Option<bool>> = sqlx::query_scalar(
        "SELECT age(s.catalog_xmin) >= least(
                    age(p.xmin),
                    (SELECT min(age(r.xmin)) FROM pg_publication_rel r
                     WHERE r.prpubid = p.oid AND r.prrelid = to_regclass($2)),
                    (SELECT min(age(n.xmin)) FROM pg_publication_namespace n JOIN pg_class c ON c.relnamespace = n.pnnspid
                     WHERE n.pnpubid = p.oid AND c.oid = to_regclass($2)))
         FROM pg_replication_slots s, pg_publication p WHERE s.slot_name = $3 AND p.pubname = $1",
    )
    .bind(&publication.name)
    .bind(outbox.quoted())
    .bind(&slot.name)
    .fetch_optional(sql)
    .await?;
    Ok(newer.flatten().unwrap_or_default())
}

/// A publication the relay can start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicationState {
    /// It publishes the inserts of the outbox table through its root.
    Suitable,
    /// It does not exist, and may be created.
    Missing,
}

/// Makes sure that the publication exists and publishes the inserts of the outbox table via its root. It must be
/// committed before the slot is created, and checked before every start: from PostgreSQL 18 on a missing publication is
/// only a warning in the stream, and its rows are skipped silently.
pub async fn create_if_missing(sql: &mut PgConnection, source: &Source) -> Result<(), RelayError> {
    if state(sql, source).await? == PublicationState::Suitable {
        return Ok(());
    }
    let name = &source.publication.name;
    let version: i32 =
        sqlx::query_scalar("SELECT current_setting('server_version_num')::int").fetch_one(&mut *sql).await?;
    let generated = match version {
        GENERATED_SINCE.. => ", publish_generated_columns = stored",
        _ => "",
    };
    let create = format!(
        "CREATE PUBLICATION {} FOR TABLE {}
         WITH (publish = 'insert', publish_via_partition_root = true{generated})",
        quote(name),
        source.table.quoted()
    );
    sqlx::query(AssertSqlSafe(create)).execute(&mut *sql).await?;
    tracing::info!(publication = %name, table = %source.table, "created the publication");
    Ok(())
}

/// Checks whether the relay can start with the publication.
pub async fn state(sql: &mut PgConnection, source: &Source) -> Result<PublicationState, RelayError> {
    let name = &source.publication.name;
    let Some(publication) = find(sql, source).await? else {
        if source.publication.creation_policy == CreationPolicy::Never {
            return Err(RelayError::new(
                ErrorKind::PublicationMissing,
                format!("publication {name} does not exist"),
            ));
        }
        return Ok(PublicationState::Missing);
    };
    let unsuitable = |problem: &str| {
        Err(RelayError::new(ErrorKind::PublicationUnsuitable, format!("publication {name} {problem}")))
    };
    if !publication.inserts {
        return unsuitable("does not publish inserts");
    }
    if !publication.has_table {
        return unsuitable(&format!("does not publish table {}", source.table));
    }
    if publication.partitioned && !publication.via_root {
        return unsuitable("publishes partitions instead of their root");
    }
    if publication.filtered {
        return unsuitable("has a row filter or column list on the table: rows or columns would be missing");
    }
    Ok(PublicationState::Suitable)
}

#[derive(sqlx::FromRow)]
struct FoundPublication {
    inserts: bool,
    via_root: bool,
    has_table: bool,
    partitioned: bool,
    filtered: bool,
}

async fn find(sql: &mut PgConnection, source: &Source) -> Result<Option<FoundPublication>, RelayError> {
    let found: Option<FoundPublication> = sqlx::query_as(
        "SELECT p.pubinsert AS inserts, p.pubviaroot AS via_root, c.relkind = 'p' AS partitioned,
                t.tablename IS NOT NULL AS has_table,
                coalesce(t.rowfilter IS NOT NULL
                         OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid
                                    AND r.prattrs IS NOT NULL), false) AS filtered
         FROM pg_publication p
         CROSS JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_publication_tables t
                ON t.pubname = p.pubname AND t.schemaname = n.nspname AND t.tablename = c.relname
         WHERE p.pubname = $1 AND n.nspname = $2 AND c.relname = $3",
    )
    .bind(&source.publication.name)
    .bind(&source.table.schema)
    .bind(&source.table.table)
    .fetch_optional(&mut *sql)
    .await?;
    Ok(found.map(|found| FoundPublication {
        // Without publish_via_partition_root the view lists the partitions instead of the root.
        has_table: found.has_table || (found.partitioned && !found.via_root),
        ..found
    }))
}
