//! Settings of the server, the database and the role: the relay overrides those that would disturb it for its
//! connections, and names one that makes delivery impossible.

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use testbed::postgres::PgVersion;
use testbed::records::Record;
use testbed::unique;

use crate::fixture::{OwnServers, Site, heavy_permit};
use crate::grants::grants;
use crate::misconfiguration::shows;

/// Each of these would break something, or change a value, if it applied to a connection of the relay.
const NASTY: [(&str, &str); 43] = [
    ("search_path", "evil, pg_catalog"),
    ("role", "'{other}'"),
    ("client_encoding", "LATIN1"),
    ("datestyle", "'SQL, DMY'"),
    ("intervalstyle", "iso_8601"),
    ("timezone", "'Asia/Kathmandu'"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("xmlbinary", "hex"),
    ("xmloption", "document"),
    ("lc_monetary", "'C'"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("quote_all_identifiers", "on"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("row_security", "off"),
    ("session_replication_role", "replica"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "1"),
    ("lock_timeout", "1"),
    ("idle_in_transaction_session_timeout", "1"),
    ("idle_session_timeout", "1"),
    ("transaction_timeout", "20"),
    ("client_min_messages", "error"),
    ("exit_on_error", "on"),
    ("synchronous_commit", "remote_apply"),
    ("wal_sender_timeout", "1"),
    ("client_connection_check_interval", "1"),
    ("work_mem", "64"),
    ("logical_decoding_work_mem", "64"),
    ("debug_logical_replication_streaming", "immediate"),
    ("debug_parallel_query", "on"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("enable_sort", "off"),
    ("enable_partition_pruning", "off"),
    ("jit_above_cost", "0"),
    ("geqo", "off"),
    ("plpgsql.extra_errors", "'all'"),
    ("check_function_bodies", "off"),
];

/// A schema with other objects under the names in the relay's statements, in case they were resolved there.
const EVIL: &str = "CREATE SCHEMA evil;
    CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 0';
    CREATE FUNCTION evil.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true';
    CREATE FUNCTION evil.pg_current_wal_flush_lsn() RETURNS pg_lsn LANGUAGE sql AS $$SELECT '0/0'::pg_lsn$$;
    CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT NULL::regclass';
    CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT $2';
    CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT '-infinity'::timestamptz$$;
    GRANT USAGE ON SCHEMA evil TO PUBLIC";

/// The parts that records of equal rows have in common, from the snapshot or from the stream.
type Content = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

fn content(record: &Record) -> Content {
    let of_one_row = ["ce_id", "ce_sequence", "ce_time"];
    let headers = record.headers.iter().filter(|(name, _)| !of_one_row.contains(&name.as_str()));
    (record.key.clone(), record.value.clone(), headers.cloned().collect())
}

/// One row is delivered by the initial snapshot and one by the stream, with all settings on the database, then on the
/// role.
#[tokio::test]
async fn settings_of_a_database_or_role_change_nothing() {
    for level in ["DATABASE", "ROLE"] {
        let site = Site::shared().await;
        let (role, other) = (unique("relay_role"), unique("other_role"));
        let mut sql = site.sql().await;
        let prepare = format!(
            "CREATE ROLE {other}; CREATE ROLE {role} LOGIN REPLICATION; GRANT {other} TO {role}; {EVIL};
             CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true);
             {}",
            grants(&role)
        );
        execute(&mut sql, &prepare).await;
        let insert = format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers)
             VALUES (gen_random_uuid(), '{}', 'kÄ\\x', 't.v1', '{{\"n\": 1.5, \"at\": \"2026-11-29\"}}', '{{\"h\": \"ü\"}}')",
            site.aggregate
        );
        execute(&mut sql, &insert).await;
        let whom = if level == "ROLE" { role.clone() } else { site.database.name().to_owned() };
        let mut applied = 0;
        for (name, value) in NASTY {
            // Every user that connects must be a member of a role that is set on the database.
            if level == "DATABASE" && name == "role" {
                continue;
            }
            let value = value.replace("'{other}'", &other);
            execute(&mut sql, &format!("ALTER {level} {whom} SET {name} = {value}")).await;
            applied += 1;
        }
        assert!(applied >= NASTY.len() - 1);

        let relay = site.launch(|text| {
            let text = text.replace("user: postgres", &format!("user: {role}, start: Table"));
            text.replace("{name: outbox}", "{name: outbox, creationPolicy: Never}")
        });
        relay.until_ready().await;
        site.until_records(1).await;
        execute(&mut sql, &insert).await;
        let records = site.until_records(2).await;
        assert_eq!(records.len(), 2, "{level}");
        assert_eq!(content(&records[0]), content(&records[1]), "{level}: copied and streamed");
        assert_eq!(records[0].key.as_deref(), Some("kÄ\\x".as_bytes()), "{level}");
        let value: serde_json::Value = serde_json::from_slice(records[0].value.as_ref().unwrap()).unwrap();
        assert_eq!(value, serde_json::json!({"n": 1.5, "at": "2026-11-29"}), "{level}");
        relay.until("/metrics", 200, "outbox_relay_default_partition_rows 0").await;
        relay.until("/status", 200, "\"observerError\":null").await;
        let (code, log) = relay.stop().await;
        assert_eq!(code, Some(0), "{level}: {log}");
        let mut lines = log.lines().filter(|line| !line.contains("min.insync.replicas"));
        assert!(!lines.any(|line| line.contains(" WARN ") || line.contains("ERROR")), "{level}: {log}");
    }
}

/// The slot and a row are older than the publication. The only sign that the row is omitted is a warning, which
/// settings of the role may suppress.
#[tokio::test]
async fn omitted_rows_are_reported_even_if_the_role_suppresses_warnings() {
    let site = Site::shared().await;
    let role = unique("relay_role");
    site.execute(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET client_min_messages = error"
    ))
    .await;
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot)).await;
    site.insert([("k", 1)]).await;
    let relay = site.launch(|text| text.replace("user: postgres", &format!("user: {role}, start: Now")));
    let text = relay.until("/readyz", 503, "PublicationMissing").await;
    assert!(text.contains("skipped loading publication"), "{text}");
}

/// The server becomes read-only while the relay streams.
#[tokio::test]
async fn a_server_that_becomes_read_only_is_named_and_retried() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[]).await;
    let site = servers.site().await;
    let relay = site.relay().await;
    let mut sql = site.sql().await;
    let set = async |sql: &mut PgConnection, value: &str| {
        execute(sql, &format!("ALTER SYSTEM SET default_transaction_read_only = {value}")).await;
        execute(sql, "SELECT pg_reload_conf()").await;
    };
    execute(&mut sql, "SET default_transaction_read_only = off").await;
    set(&mut sql, "on").await;
    shows(&relay, "NoWritableHost", "default_transaction_read_only").await;
    set(&mut sql, "off").await;
    relay.until_ready().await;
    site.insert([("k", 1)]).await;
    site.judge_table(&relay).await;
}

/// A managed server may grant replication in another way than with the role attribute.
#[tokio::test]
async fn a_role_that_may_not_replicate_gets_a_remedy_for_each_kind_of_server() {
    let site = Site::shared().await;
    let role = unique("relay_role");
    site.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let relay = site.launch(|text| text.replace("user: postgres", &format!("user: {role}")));
    let text = relay.until("/readyz", 503, "PermissionDenied").await;
    for way in ["ALTER ROLE", "REPLICATION", "GRANT rds_replication TO", "docs/OUTBOX.md"] {
        assert!(text.contains(way), "{way}: {text}");
    }
    site.execute(&format!("ALTER ROLE {role} REPLICATION")).await;
    relay.until("/readyz", 503, "permission denied").await;
}

/// The relay has to write, but does not override a setting that forbids writes: it names the setting.
#[tokio::test]
async fn a_role_that_is_set_read_only_is_named() {
    let site = Site::shared().await;
    let role = unique("relay_role");
    site.execute(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET default_transaction_read_only = on"
    ))
    .await;
    let relay = site.launch(|text| text.replace("user: postgres", &format!("user: {role}")));
    shows(&relay, "NoWritableHost", "default_transaction_read_only").await;
    site.execute(&format!("ALTER ROLE {role} RESET default_transaction_read_only")).await;
    relay.until_ready().await;
}

async fn execute(sql: &mut PgConnection, statements: &str) {
    sql.execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))).await.unwrap();
}
