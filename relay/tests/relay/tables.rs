//! Kinds of outbox tables: each property with which a SELECT shows a row that the stream does not have is rejected at
//! the start, reported by `doctor`, and stops a streaming relay. With all other properties every row arrives once. Each
//! case is one entry of a list; docs/OUTBOX.md, "What the table may be", describes them for users.

use std::collections::BTreeSet;

use crate::fixture::{Relay, Site, TIMEOUT};
use crate::misconfiguration::{fresh, shows};
use futures::{StreamExt, stream};
use testbed::{unique, wait};

/// The number of cases that run at the same time.
const AT_ONCE: usize = 4;

/// Five columns, without partitions.
const PLAIN: &str = "DROP TABLE outbox CASCADE;
    CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb);";
/// Foreign tables need no reachable server.
const WRAPPER: &str =
    "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;";
const RANGE: &str = "FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')";
const VIA_ROOT: &str = "WITH (publish = 'insert', publish_via_partition_root = true)";

/// A table or publication that is rejected.
struct Refused {
    sql: String,
    reason: &'static str,
    said: &'static str,
    /// What makes it good again.
    cure: String,
    /// The first major version that has it.
    since: u32,
}

impl Refused {
    fn since(self, since: u32) -> Refused {
        Refused { since, ..self }
    }
}

fn refused(
    sql: impl Into<String>,
    reason: &'static str,
    said: &'static str,
    cure: impl Into<String>,
) -> Refused {
    Refused { sql: sql.into(), reason, said, cure: cure.into(), since: 15 }
}

async fn major_of_shared() -> u32 {
    Site::shared().await.major().await
}

fn now(text: String) -> String {
    text.replace("source: {", "source: {start: Now, ")
}

/// Kinds of tables, of partitions, and columns.
fn tables() -> Vec<Refused> {
    const UNSUITABLE: &str = "TableUnsuitable";
    let renamed = "ALTER TABLE outbox RENAME TO behind;";
    let back = "ALTER TABLE behind RENAME TO outbox";
    vec![
        refused(
            format!("{renamed} CREATE VIEW outbox AS SELECT * FROM behind"),
            UNSUITABLE,
            "is a view, and PostgreSQL publishes only tables",
            format!("DROP VIEW outbox; {back}"),
        ),
        refused(
            format!("{renamed} CREATE MATERIALIZED VIEW outbox AS SELECT * FROM behind"),
            UNSUITABLE,
            "is a materialized view",
            format!("DROP MATERIALIZED VIEW outbox; {back}"),
        ),
        refused(
            format!("{renamed} {WRAPPER} CREATE FOREIGN TABLE outbox (id uuid) SERVER nowhere"),
            UNSUITABLE,
            "is a foreign table, and PostgreSQL publishes only tables",
            format!("DROP FOREIGN TABLE outbox; {back}"),
        ),
        refused(
            format!("{PLAIN} ALTER TABLE outbox SET UNLOGGED"),
            UNSUITABLE,
            "ALTER TABLE public.outbox SET LOGGED",
            "ALTER TABLE outbox SET LOGGED",
        ),
        refused(
            format!("CREATE UNLOGGED TABLE old PARTITION OF outbox {RANGE}"),
            UNSUITABLE,
            "partition public.old is unlogged",
            "ALTER TABLE old SET LOGGED",
        ),
        refused(
            format!(
                "CREATE SCHEMA parts; CREATE TABLE parts.old PARTITION OF outbox {RANGE} PARTITION BY LIST (type);
                 CREATE UNLOGGED TABLE parts.\"A leaf\" PARTITION OF parts.old DEFAULT"
            ),
            UNSUITABLE,
            "ALTER TABLE parts.\"A leaf\" SET LOGGED",
            "ALTER TABLE parts.\"A leaf\" SET LOGGED",
        ),
        refused(
            format!("{WRAPPER} CREATE FOREIGN TABLE far PARTITION OF outbox {RANGE} SERVER nowhere"),
            UNSUITABLE,
            "ALTER TABLE public.outbox DETACH PARTITION public.far",
            "ALTER TABLE public.outbox DETACH PARTITION public.far",
        ),
        refused(
            format!("{PLAIN} CREATE TABLE child () INHERITS (outbox); CREATE TABLE grandchild () INHERITS (child)"),
            UNSUITABLE,
            "public.child inherits from table public.outbox",
            "ALTER TABLE child NO INHERIT outbox",
        ),
        refused(
            format!(
                "{PLAIN} ALTER TABLE outbox DROP payload, ADD raw text,
                 ADD payload text GENERATED ALWAYS AS (raw || '!') STORED;
                 CREATE PUBLICATION outbox FOR TABLE outbox {VIA_ROOT}"
            ),
            UNSUITABLE,
            "payload of table public.outbox is a generated column",
            "ALTER PUBLICATION outbox SET (publish_generated_columns = stored)",
        )
        .since(18),
        refused(
            "ALTER TABLE outbox DROP headers, ADD headers text GENERATED ALWAYS AS (NULL) VIRTUAL",
            UNSUITABLE,
            "headers of table public.outbox is a virtual generated column",
            "ALTER TABLE outbox DROP headers, ADD headers text",
        )
        .since(18),
    ]
}

/// Publications.
fn publications() -> Vec<Refused> {
    const UNSUITABLE: &str = "PublicationUnsuitable";
    let published = |objects: &str, with: &str| format!("CREATE PUBLICATION outbox {objects} {with}");
    let good = "ALTER PUBLICATION outbox SET TABLE outbox";
    let grand = format!(
        "{PLAIN} CREATE TABLE grand (LIKE outbox) PARTITION BY LIST (type);
         ALTER TABLE grand ATTACH PARTITION outbox DEFAULT;"
    );
    let under = "under the name of public.grand";
    vec![
        refused(published("FOR TABLE outbox WHERE (type = 'x')", VIA_ROOT), UNSUITABLE, "row filter", good),
        refused(
            published("FOR TABLE outbox (id, aggregatetype, aggregateid, type, payload)", VIA_ROOT),
            UNSUITABLE,
            "column list",
            good,
        ),
        refused(
            published("FOR ALL TABLES", "WITH (publish = 'update, delete', publish_via_partition_root)"),
            UNSUITABLE,
            "does not publish inserts",
            "ALTER PUBLICATION outbox SET (publish = 'insert')",
        ),
        refused(
            published("FOR ALL TABLES", "WITH (publish = 'insert')"),
            UNSUITABLE,
            "partitions instead of their root",
            "ALTER PUBLICATION outbox SET (publish_via_partition_root)",
        ),
        refused(published("FOR TABLE outbox_default", VIA_ROOT), UNSUITABLE, "does not publish table", good),
        refused(
            format!("CREATE SCHEMA another; {}", published("FOR TABLES IN SCHEMA another", VIA_ROOT)),
            UNSUITABLE,
            "does not publish table",
            "ALTER PUBLICATION outbox SET TABLES IN SCHEMA public",
        ),
        refused(
            format!("{grand} {}", published("FOR ALL TABLES", VIA_ROOT)),
            UNSUITABLE,
            under,
            "ALTER TABLE grand DETACH PARTITION outbox",
        ),
        refused(
            format!("{grand} {}", published("FOR TABLE outbox, grand", VIA_ROOT)),
            UNSUITABLE,
            under,
            "ALTER PUBLICATION outbox DROP TABLE grand",
        ),
        refused(
            format!("{grand} {}", published("FOR TABLES IN SCHEMA public", VIA_ROOT)),
            UNSUITABLE,
            under,
            "ALTER PUBLICATION outbox SET (publish_via_partition_root = false)",
        ),
    ]
}

#[tokio::test]
async fn a_table_that_hides_rows_is_rejected_at_the_start_and_by_doctor() {
    let major = major_of_shared().await;
    let cases = tables().into_iter().chain(publications()).filter(|case| case.since <= major);
    stream::iter(cases).for_each_concurrent(AT_ONCE, is_refused).await;
}

async fn is_refused(Refused { sql, reason, said, cure, .. }: Refused) {
    println!("{sql}");
    let site = fresh().await;
    site.execute(&sql).await;
    let relay = site.launch(now);
    shows(&relay, reason, said).await;
    let doctor = site.command(relay.admin, now, &["doctor"]).await;
    assert!(doctor.code == Some(69) && doctor.out.contains(said), "{sql}\n{doctor:?}");
    site.execute(&cure).await;
    relay.until_ready().await;
}

/// The same change while the relay streams. Nothing written after it is confirmed, and delivery continues once it is
/// undone.
#[tokio::test]
async fn a_change_that_hides_rows_is_detected_while_the_relay_streams() {
    let all = format!("CREATE PUBLICATION outbox FOR ALL TABLES {VIA_ROOT};");
    let grand = "CREATE TABLE grand (LIKE outbox) PARTITION BY LIST (type);";
    let cases = [
        (
            String::new(),
            "ALTER TABLE outbox_default SET UNLOGGED".to_owned(),
            "partition public.outbox_default is unlogged",
            "ALTER TABLE outbox_default SET LOGGED",
        ),
        (
            String::new(),
            format!("{WRAPPER} CREATE FOREIGN TABLE far PARTITION OF outbox {RANGE} SERVER nowhere"),
            "partition public.far is a foreign table",
            "DROP FOREIGN TABLE far",
        ),
        (
            PLAIN.to_owned(),
            "CREATE TABLE child () INHERITS (outbox)".to_owned(),
            "public.child inherits",
            "DROP TABLE child",
        ),
        (
            format!("{PLAIN} {all}"),
            "ALTER TABLE outbox SET UNLOGGED".to_owned(),
            "table public.outbox is unlogged",
            "ALTER TABLE outbox SET LOGGED",
        ),
        (
            format!("{PLAIN} {all} {grand}"),
            "ALTER TABLE grand ATTACH PARTITION outbox DEFAULT".to_owned(),
            "under the name of public.grand",
            "ALTER TABLE grand DETACH PARTITION outbox",
        ),
    ];
    let cases = stream::iter(cases);
    cases
        .for_each_concurrent(AT_ONCE, async |(setup, change, said, undo)| {
            println!("{change}");
            let site = Site::shared().await;
            site.execute(&setup).await;
            let relay = site.launch(now);
            relay.until_ready().await;
            site.insert([("before", 1)]).await;
            site.until_records(1).await;
            site.execute(&change).await;
            let text = relay.until("/readyz", 503, said).await;
            assert!(text.contains("Unsuitable"), "{text}");
            site.execute(undo).await;
            relay.until_ready().await;
            site.insert([("after", 2)]).await;
            let keys = site.until_records(2).await;
            assert!(keys.iter().any(|record| record.key.as_deref() == Some(b"after")));
        })
        .await;
}

/// A slot that sends transactions before they are committed.
#[tokio::test]
async fn a_slot_with_two_phase_is_refused() {
    let site = fresh().await;
    let slot = &site.slot;
    site.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)"))
        .await;
    shows(&site.launch(now), "SlotUnsuitable", "two_phase").await;
    site.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
}

/// An unusual way in which rows are written to a table, and all arrive.
struct Arrives {
    what: &'static str,
    /// Before the start.
    setup: String,
    /// While the relay streams.
    rows: String,
    /// The first major version that has it.
    since: u32,
}

impl Arrives {
    fn since(self, since: u32) -> Arrives {
        Arrives { since, ..self }
    }
}

fn arrives(what: &'static str, setup: impl Into<String>, rows: impl Into<String>) -> Arrives {
    Arrives { what, setup: setup.into(), rows: rows.into(), since: 15 }
}

/// A row in `table`.
fn row(site: &Site, table: &str, key: &str) -> String {
    format!(
        "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload)
         VALUES (gen_random_uuid(), '{}', '{key}', 't.v1', '1');",
        site.aggregate
    )
}

/// A row of January 2020 in `table`.
fn old_row(site: &Site, table: &str) -> String {
    format!(
        "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload, occurred_at)
         VALUES (gen_random_uuid(), '{}', 'old', 't.v1', '1', '2020-01-15');",
        site.aggregate
    )
}

fn kinds_of_publications(site: &Site) -> Vec<Arrives> {
    let create = |objects: &str| format!("CREATE PUBLICATION outbox FOR {objects} {VIA_ROOT};");
    let (one, old) = (row(site, "outbox", "k"), old_row(site, "outbox"));
    let grand = format!(
        "{PLAIN} CREATE TABLE grand (LIKE outbox) PARTITION BY LIST (type);
         ALTER TABLE grand ATTACH PARTITION outbox DEFAULT;"
    );
    vec![
        arrives("all tables", create("ALL TABLES"), one.clone()),
        arrives(
            "a schema, whose table has partitions in another",
            format!(
                "CREATE SCHEMA parts; CREATE TABLE parts.old PARTITION OF outbox {RANGE}; {}",
                create("TABLES IN SCHEMA public")
            ),
            format!("{one}{old}"),
        ),
        arrives(
            "a partition with its own filter",
            create("TABLE outbox, outbox_default WHERE (type = 'x')"),
            one.clone(),
        ),
        arrives(
            "two publications",
            format!(
                "CREATE PUBLICATION another FOR TABLE outbox WHERE (type = 'x') {VIA_ROOT}; {}",
                create("TABLE outbox")
            ),
            one.clone(),
        ),
        arrives(
            "a partition of a table that is not published",
            format!("{grand}{}", create("TABLE outbox")),
            row(site, "grand", "k") + &one,
        ),
        arrives(
            "a child of a table that is not published",
            format!("{PLAIN} CREATE TABLE parent (LIKE outbox); ALTER TABLE outbox INHERIT parent"),
            one.clone(),
        ),
        arrives(
            "stored generated columns, which the relay's own publication publishes",
            format!(
                "{PLAIN} ALTER TABLE outbox DROP aggregatetype,
             ADD aggregatetype text GENERATED ALWAYS AS ('{}') STORED",
                site.aggregate
            ),
            "INSERT INTO outbox (id, aggregateid, type, payload) VALUES (gen_random_uuid(), 'k', 't.v1', '1')",
        )
        .since(18),
    ]
}

fn kinds_of_rows(site: &Site) -> Vec<Arrives> {
    let (one, old) = (row(site, "outbox", "k"), old_row(site, "outbox"));
    let trigger = |body: &str| {
        format!(
            "CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
             CREATE TRIGGER changed BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION changed();"
        )
    };
    vec![
        arrives(
            "partitions of partitions with other columns, directly and through the root",
            format!(
                "CREATE TABLE old PARTITION OF outbox {RANGE} PARTITION BY LIST (type);
                 CREATE TABLE leaf (gone text, LIKE outbox_default INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
                 ALTER TABLE leaf DROP gone; ALTER TABLE old ATTACH PARTITION leaf DEFAULT"
            ),
            old + &old_row(site, "leaf"),
        )
        // Before version 17 a partition does not inherit the identity column `seq`.
        .since(17),
        arrives("triggers that change rows, and leave some out",
            trigger("IF NEW.aggregateid = 'none' THEN RETURN NULL; END IF; NEW.aggregateid := 'changed'; RETURN NEW;"),
            one.clone() + &row(site, "outbox", "none")),
        arrives("rules", "CREATE TABLE copy (id uuid); CREATE RULE also AS ON INSERT TO outbox DO ALSO
             INSERT INTO copy VALUES (NEW.id)", one.clone()),
        arrives("replicas, subscriptions and dumps", "", format!(
            "SET session_replication_role = replica; {one} RESET session_replication_role;
             SELECT pg_replication_origin_create('{slot}'); SELECT pg_replication_origin_session_setup('{slot}');
             {one} SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{slot}');", slot = site.slot
        )),
        arrives("tables that are rewritten", format!("{PLAIN} ALTER TABLE outbox REPLICA IDENTITY NOTHING,
             ADD n int"), format!(
            "{one} CREATE INDEX by_id ON outbox (id); CLUSTER outbox USING by_id; {one} ALTER TABLE outbox ALTER n TYPE bigint; {one}"
        )),
        arrives("row-level security", "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", one.clone()),
        arrives("another access method with heap's code",
            format!("{PLAIN} CREATE ACCESS METHOD like_heap TYPE TABLE HANDLER heap_tableam_handler;
             ALTER TABLE outbox SET ACCESS METHOD like_heap"), one.clone()),
        arrives("a table that has another name for a while", PLAIN, format!(
            "BEGIN; {one} COMMIT; BEGIN; ALTER TABLE outbox RENAME TO elsewhere; COMMIT;
                 BEGIN; {} COMMIT; BEGIN; ALTER TABLE elsewhere RENAME TO outbox; COMMIT; {one}",
            row(site, "elsewhere", "k")
        )),
    ]
}

async fn ids_in_table(site: &Site) -> BTreeSet<String> {
    let ids = site.value("SELECT coalesce(string_agg(id::text, ' '), '') FROM outbox").await.unwrap();
    ids.split_whitespace().map(str::to_owned).collect()
}

/// Asserts that exactly the rows that a SELECT shows arrive, each once.
async fn all_arrive(site: &Site, relay: &Relay, what: &str) {
    let shown = ids_in_table(site).await;
    assert!(!shown.is_empty(), "{what}");
    let records = site.until_records(shown.len()).await;
    site.until_confirmed(relay).await;
    let arrived: Vec<String> =
        site.records().await.iter().map(|record| record.header("ce_id").unwrap().to_owned()).collect();
    assert_eq!(arrived.len(), records.len(), "{what}");
    assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>(), shown, "{what}\n{}", relay.program.log_tail());
}

#[tokio::test]
async fn with_all_other_properties_of_the_table_its_rows_arrive() {
    let site = Site::shared().await;
    let count = kinds_of_publications(&site).len() + kinds_of_rows(&site).len();
    stream::iter(0..count).for_each_concurrent(AT_ONCE, its_rows_arrive).await;
}

async fn its_rows_arrive(case: usize) {
    let site = Site::shared().await;
    let cases = kinds_of_publications(&site).into_iter().chain(kinds_of_rows(&site));
    let Arrives { what, setup, rows, since } = cases.into_iter().nth(case).unwrap();
    if since > site.major().await {
        return;
    }
    println!("{what}");
    site.execute(&setup).await;
    let relay = site.launch(now);
    relay.until_ready().await;
    site.execute(&rows).await;
    all_arrive(&site, &relay, what).await;
}

/// Unconfirmed rows that were read before the table was renamed are still rows of the table.
#[tokio::test]
async fn a_table_that_is_renamed_with_rows_in_flight_loses_none() {
    let site = Site::shared().await;
    site.execute(PLAIN).await;
    let relay = site.launch(now);
    relay.until_ready().await;
    site.insert([("first", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    relay.kill().await;
    site.insert([("under the old name", 2)]).await;
    site.execute("ALTER TABLE outbox RENAME TO events").await;
    let relay = site.launch(|text| {
        let source = format!("/{}/public.outbox", site.database.name());
        now(text).replace("source: {", &format!("source: {{table: public.events, eventSource: '{source}', "))
    });
    relay.until_ready().await;
    wait::until("the row that was written under the old name", TIMEOUT, async || {
        let records = site.records().await;
        match records.len() {
            2 => Ok(()),
            _ => Err(format!("{} records\n{}", records.len(), relay.program.log_tail())),
        }
    })
    .await
    .unwrap();
}

/// Changes of a row after its insert affect a SELECT, but not the event.
#[tokio::test]
async fn a_row_that_is_deleted_or_updated_by_its_own_transaction_arrives_as_it_was_inserted() {
    let site = Site::shared().await;
    let relay = site.relay().await;
    let row = |key: &str| row(&site, "outbox", key);
    site.execute(&format!("BEGIN; {} DELETE FROM outbox; COMMIT", row("deleted"))).await;
    site.execute(&format!("BEGIN; {} UPDATE outbox SET payload = '2'; COMMIT", row("updated"))).await;
    site.execute(&format!("BEGIN; {} SAVEPOINT s; {} ROLLBACK TO s; COMMIT", row("kept"), row("undone")))
        .await;
    site.execute(&format!(
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN DELETE FROM outbox WHERE id = NEW.id; RETURN NULL; END $$;
         CREATE TRIGGER gone AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION gone(); {}",
        row("deleted by a trigger")
    ))
    .await;
    site.until_records(4).await;
    site.until_confirmed(&relay).await;
    let mut arrived: Vec<(String, Option<Vec<u8>>)> = Vec::new();
    for record in site.records().await {
        let key = String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap();
        arrived.push((key, record.value.as_ref().map(|value| value.to_vec())));
    }
    arrived.sort();
    let expected = ["deleted", "deleted by a trigger", "kept", "updated"];
    assert_eq!(arrived, expected.map(|key| (key.to_owned(), Some(b"1".to_vec()))));
}

/// The stream has every row, but a SELECT by a role that is subject to row-level security does not.
#[tokio::test]
async fn row_level_security_is_reported_by_doctor_and_hides_no_row_from_the_snapshot() {
    let site = Site::shared().await;
    let role = unique("relay_role");
    site.execute(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON outbox TO {role};
         GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO {role};
         CREATE PUBLICATION outbox FOR TABLE outbox {VIA_ROOT};
         ALTER TABLE outbox ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON outbox USING (aggregateid = 'shown')"
    ))
    .await;
    site.insert([("shown", 1), ("hidden", 2)]).await;
    let as_role = |text: String| text.replace("user: postgres", &format!("user: {role}"));
    let relay = site.launch(as_role);
    shows(&relay, "PermissionDenied", "BYPASSRLS").await;
    let doctor = site.command(relay.admin, as_role, &["doctor"]).await;
    let remedy = format!("ALTER ROLE \"{role}\" BYPASSRLS");
    assert!(doctor.code == Some(69) && doctor.out.contains(&remedy), "{doctor:?}");
    site.execute(&remedy).await;
    relay.until_ready().await;
    site.until_records(2).await;
    site.execute(&format!("ALTER ROLE {role} NOBYPASSRLS")).await;
    let lag = site.command(relay.admin, as_role, &["lag"]).await;
    assert!(lag.out.contains("row-level security"), "{lag:?}");
    site.insert([("hidden", 3)]).await;
    all_arrive(&site, &relay, "with a policy").await;
}

/// The stream does not contain rows from before the table was published, even if the slot has retained their WAL.
#[tokio::test]
async fn doctor_reports_that_a_slot_may_be_older_than_the_publication() {
    let site = fresh().await;
    let slot = &site.slot;
    let said = format!("outbox may be newer than slot {slot}");
    let create_slot = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    site.execute(&format!("CREATE PUBLICATION outbox {VIA_ROOT}")).await;
    site.execute(&create_slot).await;
    site.execute("ALTER PUBLICATION outbox ADD TABLE outbox").await;
    let admin = testbed::net::free_port().unwrap();
    let doctor = site.command(admin, now, &["doctor"]).await;
    assert!(doctor.out.contains(&said), "{doctor:?}");
    let relay = site.launch(now);
    relay.until_ready().await;
    assert!(relay.program.log().contains("may be older than the publication"), "{}", relay.program.log());
    let doctor = site.command(admin, now, &["doctor"]).await;
    assert!(!doctor.out.contains(&said), "there is a checkpoint: {doctor:?}");
}
