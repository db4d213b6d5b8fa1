//! Tables and publications that hide rows from the stream.

use futures::{StreamExt, stream};

use super::{AT_ONCE, PLAIN, RANGE, VIA_ROOT, now};
use crate::fixture::Site;
use crate::misconfiguration::{fresh, shows};

/// Foreign tables need no reachable server.
const WRAPPER: &str =
    "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;";

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
