//! Whether the stream carries every row that a SELECT on the outbox table shows, with the same values.
//!
//! PostgreSQL decodes the WAL of permanent tables, and names the table that is published. A SELECT shows more: rows of
//! unlogged and foreign partitions and of child tables, generated columns. One query finds the differences. The start
//! and `doctor` report them, and no checkpoint is written while there are any, so that a later one is noticed within
//! one interval. The possible differences: docs/OUTBOX.md, "What the table may be".

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use sqlx::postgres::types::Oid;

use crate::config::Config;
use crate::error::{ErrorKind, RelayError};
use crate::event::row::columns_read;

/// How many names a sentence lists before it only counts.
const NAMES: usize = 3;

/// A relation or column whose rows or values are missing from the stream, or appear under another name.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
struct Hidden {
    /// Its relation to the outbox table: `table` (itself), `partition`, `child`, `ancestor`, `column`.
    place: String,
    /// Its name in SQL.
    name: String,
    /// The relation it is a partition or child of.
    parent: Option<String>,
    /// `relkind`; of a column `attgenerated`.
    kind: String,
    /// `relpersistence`.
    persistence: String,
}

/// An SQL query for everything hidden. Its two parameters are the publication and the table, as in SQL; `by_field` is
/// the column that selects the topic. It takes no lock on any table.
///
/// A partitioned table has no storage, so its own properties count only where PostgreSQL rejects it in a publication.
pub fn hidden(publication: &str, table: &str, by_field: &str) -> String {
    let columns: Vec<String> = columns_read().chain([by_field]).map(literal).collect();
    let columns = columns.join(", ");
    format!(
        "WITH RECURSIVE {}, found AS (
             SELECT place, c.oid, parent, c.relkind, c.relpersistence
             FROM tree JOIN pg_catalog.pg_class c USING (oid)
             WHERE place = 'child' OR c.relkind NOT IN ('r', 'p')
                OR c.relpersistence <> 'p' AND (c.relkind = 'r' OR place = 'table')
             UNION ALL
             SELECT 'ancestor', a.oid, NULL, a.relkind, a.relpersistence
             FROM pg_catalog.pg_publication p, pg_catalog.pg_partition_ancestors(to_regclass({table})) up
                  JOIN pg_catalog.pg_class a ON a.oid = up.relid
             WHERE p.pubname = {publication} AND p.pubviaroot AND a.oid <> to_regclass({table})
               AND (p.puballtables
                    OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                               WHERE r.prpubid = p.oid AND r.prrelid = a.oid)
                    OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                               WHERE s.pnpubid = p.oid AND s.pnnspid = a.relnamespace))
         )
         SELECT place, format('%s.%I', c.relnamespace::regnamespace, c.relname) AS name,
                (SELECT format('%s.%I', relnamespace::regnamespace, relname)
                 FROM pg_catalog.pg_class WHERE oid = found.parent) AS parent,
                found.relkind::text AS kind, found.relpersistence::text AS persistence
         FROM found JOIN pg_catalog.pg_class c USING (oid)
         UNION ALL
         SELECT 'column', a.attname::text, NULL, a.attgenerated::text, ''
         FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_publication p ON p.pubname = {publication}
         WHERE a.attrelid = to_regclass({table}) AND a.attgenerated <> '' AND NOT a.attisdropped
           AND a.attname IN ({columns})
           AND (a.attgenerated <> 's' OR current_setting('server_version_num')::int < {GENERATED_SINCE}
                OR to_jsonb(p) ->> 'pubgencols' = 'n')",
        tree(table)
    )
}

/// The table, its partitions at any depth, and its inheritance children.
fn tree(table: &str) -> String {
    format!(
        "tree AS (
             SELECT c.oid, NULL::oid AS parent, 'table' AS place
             FROM pg_catalog.pg_class c WHERE c.oid = to_regclass({table})
             UNION ALL
             SELECT c.oid, tree.oid, CASE WHEN c.relispartition THEN 'partition' ELSE 'child' END
             FROM tree JOIN pg_catalog.pg_inherits i
                       ON i.inhparent = tree.oid AND NOT i.inhdetachpending AND place <> 'child'
                  JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
         )"
    )
}

/// The first version that can publish stored generated columns; it also has virtual ones, which it cannot publish.
pub const GENERATED_SINCE: i32 = 180_000;

/// Rejects a table with rows or values that the stream does not carry.
pub async fn check(sql: &mut PgConnection, config: &Config) -> Result<(), RelayError> {
    let source = &config.source;
    let select = format!(
        "SELECT place, name, parent, kind, persistence FROM ({}) AS hidden ORDER BY place, name",
        hidden("$1", "$2", &config.routing.by_field)
    );
    let found: Vec<Hidden> = sqlx::query_as(AssertSqlSafe(select))
        .bind(&source.publication.name)
        .bind(source.table.quoted())
        .fetch_all(sql)
        .await?;
    judge(&found, &source.table.to_string(), &source.publication.name).map_or(Ok(()), Err)
}

/// The table's OID, which stays the same when the table is renamed or moved to another schema.
pub async fn oid(sql: &mut PgConnection, config: &Config) -> Result<Option<u32>, RelayError> {
    let oid: Option<Oid> = sqlx::query_scalar("SELECT to_regclass($1)::oid")
        .bind(config.source.table.quoted())
        .fetch_one(sql)
        .await?;
    Ok(oid.map(|oid| oid.0))
}

/// What may hide rows and cannot be determined by a query: sentences that name it and say how to find out.
pub async fn doubts(sql: &mut PgConnection, config: &Config) -> Result<Vec<String>, RelayError> {
    let select = format!(
        "WITH RECURSIVE {}
         SELECT format('%s.%I is stored by access method %I', c.relnamespace::regnamespace, c.relname, m.amname)
         FROM tree JOIN pg_class c USING (oid) JOIN pg_am m ON m.oid = c.relam
         WHERE c.relkind = 'r' AND m.amhandler <> 'heap_tableam_handler'::regproc ORDER BY c.oid LIMIT {NAMES}",
        tree("$1")
    );
    let names: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(select)).bind(config.source.table.quoted()).fetch_all(sql).await?;
    let doubt = |name| {
        format!("{name}, not by heap: its rows reach the relay only if that method supports logical decoding")
    };
    Ok(names.into_iter().map(doubt).collect())
}

/// One sentence with a remedy for each kind of hidden relation or column.
fn judge(found: &[Hidden], table: &str, publication: &str) -> Option<RelayError> {
    let mut kinds: BTreeMap<(&str, &str, &str), Vec<&Hidden>> = BTreeMap::new();
    for hidden in found {
        let key = (hidden.place.as_str(), hidden.kind.as_str(), hidden.persistence.as_str());
        kinds.entry(key).or_default().push(hidden);
    }
    let reason = match found.iter().all(|hidden| hidden.place == "ancestor") {
        true => ErrorKind::PublicationUnsuitable,
        false => ErrorKind::TableUnsuitable,
    };
    let sentences = kinds.values().filter_map(|alike| sentence(alike, table, publication));
    let sentences: Vec<String> = sentences.collect();
    (!sentences.is_empty()).then(|| RelayError::new(reason, sentences.join("; ")))
}

fn sentence(alike: &[&Hidden], table: &str, publication: &str) -> Option<String> {
    let Hidden { place, name, parent, kind, persistence } = alike.first()?;
    let parent = parent.as_deref().unwrap_or(table);
    let names = names(alike);
    Some(match (place.as_str(), kind.as_str(), persistence.as_str()) {
        ("column", "s", _) => format!(
            "{names} of table {table} is a generated column, which publication {publication} does not publish: \
             set publish_generated_columns = stored there (PostgreSQL 18), or ALTER TABLE {table} ALTER COLUMN {name} \
             DROP EXPRESSION and write its value"
        ),
        ("column", ..) => format!(
            "{names} of table {table} is a virtual generated column, which PostgreSQL does not publish: make it an \
             ordinary column"
        ),
        ("ancestor", ..) => format!(
            "publication {publication} publishes the rows of table {table} under the name of {names}, whose partition it \
             is: leave {name} out of the publication, or DETACH {table} from it"
        ),
        ("child", ..) => format!(
            "{names} inherits from table {parent}: a SELECT there shows its rows, but the stream does not have them as \
             rows of {table}: ALTER TABLE {name} NO INHERIT {parent}"
        ),
        (_, "r" | "p", "t") => format!("table {names} is temporary, and its rows are not in the WAL"),
        ("table", "p", _) => format!(
            "table {table} is unlogged, and PostgreSQL does not publish it: create it without UNLOGGED"
        ),
        (place, "r", _) => format!(
            "{place} {names} is unlogged, so its rows are not in the WAL and cannot be delivered: ALTER TABLE {name} SET \
             LOGGED, and insert again the rows that were inserted while it was unlogged"
        ),
        ("partition", ..) => format!(
            "partition {names} is a foreign table, so its rows are not in the WAL and cannot be delivered: ALTER TABLE \
             {parent} DETACH PARTITION {name}"
        ),
        (_, kind, _) => format!(
            "{table} is {}, and PostgreSQL publishes only tables: set source.table to the table that services insert into",
            kind_of_relation(kind)
        ),
    })
}

fn names(alike: &[&Hidden]) -> String {
    let names: Vec<&str> = alike.iter().take(NAMES).map(|hidden| hidden.name.as_str()).collect();
    let names = names.join(", ");
    match alike.len().saturating_sub(NAMES) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

fn kind_of_relation(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        _ => "no table",
    }
}

pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(place: &str, name: &str, kind: &str, persistence: &str) -> Hidden {
        let text = str::to_owned;
        Hidden {
            place: text(place),
            name: text(name),
            parent: matches!(place, "partition" | "child").then(|| "public.root".to_owned()),
            kind: text(kind),
            persistence: text(persistence),
        }
    }

    fn said(found: &[Hidden]) -> (ErrorKind, String) {
        let error = judge(found, "public.outbox", "pub").unwrap();
        (error.kind, error.detail)
    }

    #[test]
    fn nothing_hidden_is_no_error() {
        assert!(judge(&[], "public.outbox", "pub").is_none());
    }

    #[test]
    fn each_kind_is_named_with_its_remedy() {
        for (found, words) in [
            (hidden("table", "public.outbox", "v", "p"), "is a view"),
            (hidden("table", "public.outbox", "f", "p"), "is a foreign table, and PostgreSQL publishes only"),
            (hidden("table", "public.outbox", "r", "u"), "ALTER TABLE public.outbox SET LOGGED"),
            (hidden("table", "public.outbox", "p", "u"), "create it without UNLOGGED"),
            (hidden("table", "pg_temp_1.outbox", "r", "t"), "is temporary"),
            (hidden("partition", "s.p1", "r", "u"), "partition s.p1 is unlogged"),
            (hidden("partition", "s.p1", "f", "p"), "ALTER TABLE public.root DETACH PARTITION s.p1"),
            (hidden("child", "s.c", "r", "p"), "ALTER TABLE s.c NO INHERIT public.root"),
            (hidden("child", "s.c", "f", "p"), "s.c inherits"),
            (hidden("column", "payload", "s", ""), "DROP EXPRESSION"),
            (hidden("column", "payload", "v", ""), "virtual generated column"),
        ] {
            let (reason, what) = said(std::slice::from_ref(&found));
            assert_eq!(reason, ErrorKind::TableUnsuitable, "{found:?}");
            assert!(what.contains(words), "{what}");
        }
        let (reason, what) = said(&[hidden("ancestor", "public.grand", "p", "p")]);
        assert_eq!(reason, ErrorKind::PublicationUnsuitable);
        assert!(what.contains("under the name of public.grand"), "{what}");
    }

    #[test]
    fn many_of_a_kind_are_one_sentence() {
        let many: Vec<Hidden> = (1..=5).map(|n| hidden("partition", &format!("s.p{n}"), "r", "u")).collect();
        let (_, what) = said(&many);
        assert!(what.contains("partition s.p1, s.p2, s.p3 and 2 more is unlogged"), "{what}");
        let (_, what) = said(&[many[0].clone(), hidden("partition", "s.f", "f", "p")]);
        assert!(what.contains("s.f is a foreign table") && what.contains("; partition s.p1 is"), "{what}");
    }
}
