//! Unusual tables, publications and ways to write rows, with which every row arrives once.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use testbed::unique;

use super::{AT_ONCE, PLAIN, RANGE, VIA_ROOT, now, row};
use crate::fixture::{Relay, Site};
use crate::misconfiguration::shows;

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
