//! `outbox_maintain` creates future partitions and drops old ones (R16, R17), but never one with a row that a relay has
//! not delivered. Tested in SQL.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::postgres::{PgVersion, Postgres, PostgresOptions};
use testbed::{Database, unique, wait};

use crate::fixture::TIMEOUT;

/// The result of a call: partitions created and dropped, rows deleted, and what is kept and why.
type Done = (i32, i32, i32, Option<String>);

/// A day long past, whose partition has been due for years.
const DAY: &str = "2020-01-01";

struct Table(Database);

impl Table {
    async fn fresh() -> Table {
        Table(Database::fresh("retention").await.unwrap())
    }

    async fn execute(&self, sql: &str) {
        self.0.execute(sql).await.unwrap();
    }

    async fn maintain(&self) -> Done {
        let sql = "SELECT * FROM outbox_maintain('72 hours', '3 days')";
        sqlx::query_as(sql).fetch_one(&mut self.0.connect().await.unwrap()).await.unwrap()
    }

    /// Asserts that nothing was done, and returns why.
    async fn held(&self) -> String {
        let (made, dropped, deleted, held) = self.maintain().await;
        assert_eq!((made, dropped, deleted), (0, 0, 0), "{held:?}");
        held.expect("nothing was done, and nothing said")
    }

    async fn dropped(&self) {
        let done = self.maintain().await;
        assert_eq!(done, (0, 1, 0, None));
    }

    async fn value(&self, sql: &str) -> String {
        let sql = format!("SELECT ({sql})::text");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.0.connect().await.unwrap()).await.unwrap()
    }

    async fn count(&self) -> String {
        self.value("SELECT count(*) FROM outbox").await
    }

    /// A partition of a day, with rows.
    async fn past(&self, day: &str, rows: usize) {
        let name = day.replace('-', "");
        self.execute(&format!(
            "CREATE TABLE outbox_p{name} PARTITION OF outbox
             FOR VALUES FROM ('{day} 00:00Z') TO (timestamptz '{day} 00:00Z' + interval '1 day')"
        ))
        .await;
        self.execute(&insert(&format!("{day} 12:00Z"), rows)).await;
    }

    async fn register(&self, relay: &str) {
        self.execute(&format!(
            "INSERT INTO outbox_checkpoint (relay, slot, system_identifier, timeline)
             VALUES ('{relay}', 'slot_of_{relay}', 1, 1)"
        ))
        .await;
    }

    /// Stores the checkpoint of a relay that has delivered everything.
    async fn delivered(&self, relay: &str) {
        self.execute(&format!(
            "UPDATE outbox_checkpoint SET delivered_snapshot = pg_current_snapshot() WHERE relay = '{relay}'"
        ))
        .await;
    }

    /// A connection in a transaction that has inserted a row.
    async fn open(&self, time: &str) -> PgConnection {
        let mut connection = self.0.connect().await.unwrap();
        let begin = format!("BEGIN; {}", insert(time, 1));
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut connection).await.unwrap();
        connection
    }
}

async fn commit(mut connection: PgConnection) {
    sqlx::raw_sql("COMMIT").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn insert(time: &str, rows: usize) -> String {
    format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, occurred_at)
         SELECT gen_random_uuid(), 'test', 'k', 'n.v1', '{time}' FROM generate_series(1, {rows})"
    )
}

async fn only_partitions_that_all_have_delivered_are_dropped(table: &Table) {
    table.past(DAY, 3).await;
    table.past("2020-01-02", 3).await;
    assert!(table.held().await.contains("no relay is registered"));
    table.register("one").await;
    table.register("two").await;
    assert!(table.held().await.contains("outbox_p20200101 stays, because relay"));
    table.delivered("one").await;
    assert!(table.held().await.contains("relay two has not delivered"));
    assert_eq!(table.count().await, "6");
    table.delivered("two").await;
    table.dropped().await;
    assert_eq!(table.count().await, "3", "one partition a call, and the oldest first");
    table.execute(&insert("2020-01-02 13:00Z", 1)).await;
    assert!(table.held().await.contains("outbox_p20200102"), "the new row is not delivered");
    table.delivered("one").await;
    assert!(table.held().await.contains("relay two"));
    // A deregistered relay does not count any more.
    table.execute("DELETE FROM outbox_checkpoint WHERE relay = 'two'").await;
    table.dropped().await;
    assert_eq!(table.maintain().await, (0, 0, 0, None));
    assert_eq!(table.value("SELECT count(*) FROM outbox_partitions WHERE ends IS NOT NULL").await, "4");
}

#[tokio::test]
async fn r16_only_partitions_that_all_relays_have_delivered_are_dropped() {
    only_partitions_that_all_have_delivered_are_dropped(&Table::fresh().await).await;
}

#[tokio::test]
async fn r16_on_postgres_15() {
    let options = PostgresOptions { version: PgVersion::V15, ..PostgresOptions::default() };
    let server = Postgres::start(options).await.unwrap();
    let table = Table(Database::on(&server.url("postgres"), "retention").await.unwrap());
    only_partitions_that_all_have_delivered_are_dropped(&table).await;
}

/// A relay that was just registered has delivered nothing, for any transaction ids.
#[tokio::test]
async fn a_new_row_of_the_checkpoint_claims_everything() {
    let table = Table::fresh().await;
    table.register("new").await;
    let visible = "SELECT bool_or(pg_visible_in_snapshot(xid, delivered_snapshot))
                   FROM outbox_checkpoint, (VALUES (xid8 '3'), ('4294967296'), (pg_current_xact_id())) ids (xid)";
    assert_eq!(table.value(visible).await, "false");
}

/// A transaction gets its id early and commits late. Its row does not count as delivered while the transaction is open,
/// nor if a snapshot from that time is stored.
#[tokio::test]
async fn r16_a_late_commit_into_an_old_partition_is_not_dropped() {
    let table = Table::fresh().await;
    table.past(DAY, 1).await;
    table.register("relay").await;
    let open = table.open("2020-01-01 01:00Z").await;
    table.delivered("relay").await;
    assert!(table.held().await.contains("held a lock"), "its transaction is open");
    commit(open).await;
    assert!(table.held().await.contains("has not delivered"), "the snapshot shows it as open");
    table.delivered("relay").await;
    table.dropped().await;
}

/// A writer of today's rows holds a lock on the parent table. The call gives up, because its place in the lock queue
/// would block other writers.
#[tokio::test]
async fn r16_a_lock_of_a_writer_is_not_waited_for() {
    let table = Table::fresh().await;
    table.past(DAY, 1).await;
    table.register("relay").await;
    table.delivered("relay").await;
    let open = table.open("now").await;
    assert!(table.held().await.contains("outbox_p20200101 stays, because another session held a lock"));
    table.execute(&insert("now", 1)).await;
    commit(open).await;
    table.dropped().await;
}

/// A relay counts that registers after the rows were checked and before the lock is acquired.
#[tokio::test]
async fn r16_a_relay_that_registers_in_the_last_moment_keeps_everything() {
    let table = Table::fresh().await;
    table.past(DAY, 1).await;
    table.register("relay").await;
    table.delivered("relay").await;
    // Prolong that moment.
    table.execute("ALTER FUNCTION outbox_maintain(interval, interval) SET lock_timeout = '60s'").await;
    let open = table.open("now").await;
    let waits = "SELECT count(*) FROM pg_locks
                 WHERE relation = 'outbox'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted";
    let last_moment = async {
        wait::until("a call that waits for the lock", TIMEOUT, async || {
            if table.value(waits).await == "1" { Ok(()) } else { Err("none does") }
        })
        .await
        .unwrap();
        table.register("new").await;
        commit(open).await;
    };
    let (held, ()) = tokio::join!(table.held(), last_moment);
    assert!(held.contains("registered or deregistered just now"), "{held}");
    assert_eq!(table.count().await, "2");
}

#[tokio::test]
async fn r16_a_slot_that_no_relay_owns_keeps_everything() {
    let table = Table::fresh().await;
    let slot = unique("debezium");
    table.past(DAY, 1).await;
    table.register("relay").await;
    table.delivered("relay").await;
    table.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    assert!(table.held().await.contains(&format!("slot {slot} (plugin pgoutput) belongs to no relay")));
    // The documented way to say that a slot does not read this table.
    table
        .execute(&format!(
            "INSERT INTO outbox_checkpoint (relay, slot, system_identifier, timeline, delivered_snapshot)
             VALUES ('not a reader of this table: {slot}', '{slot}', 0, 0,
                     '9223372036854775807:9223372036854775807:')"
        ))
        .await;
    table.dropped().await;
}

#[tokio::test]
async fn without_the_checkpoint_table_partitions_are_created_and_none_is_dropped() {
    let table = Table::fresh().await;
    table.past(DAY, 1).await;
    table.execute("DROP TABLE outbox_checkpoint; DROP TABLE outbox_default").await;
    table.execute("CREATE TABLE outbox_default PARTITION OF outbox DEFAULT").await;
    let tomorrow =
        table.value("'outbox_p' || to_char(now() AT TIME ZONE 'UTC' + interval '1 day', 'YYYYMMDD')").await;
    table.execute(&format!("DROP TABLE {tomorrow}")).await;
    assert_eq!(table.maintain().await, (1, 0, 0, None));
    assert!(table.held().await.contains("no table outbox_checkpoint"));
    assert_eq!(table.count().await, "1");
}

/// R17: rows are never moved. Delivered ones are deleted, the others stay.
#[tokio::test]
async fn r17_rows_of_the_default_partition_are_deleted_once_they_are_delivered() {
    let table = Table::fresh().await;
    table.register("relay").await;
    table.execute(&insert(DAY, 10_001)).await;
    table.execute(&insert("2099-01-01", 1)).await;
    let rows = "SELECT default_rows FROM outbox_partition_state()";
    assert_eq!(table.value(rows).await, "10000", "counted up to that");
    assert!(
        table.held().await.contains("rows of outbox_default stay, because a relay has not delivered them")
    );
    table.delivered("relay").await;
    table.execute(&insert(DAY, 1)).await;
    assert_eq!(table.maintain().await, (0, 0, 10_000, None), "a batch");
    assert_eq!(table.maintain().await, (0, 0, 1, None));
    assert!(table.held().await.contains("has not delivered them"), "the row written last");
    table.delivered("relay").await;
    table.execute("CREATE PUBLICATION everything FOR TABLE outbox").await;
    assert!(table.held().await.contains("a publication publishes deletes"));
    table.execute("DROP PUBLICATION everything").await;
    assert_eq!(table.maintain().await, (0, 0, 1, None));
    assert_eq!(table.value(rows).await, "1", "the one of 2099 is not due");
    assert_eq!(table.maintain().await, (0, 0, 0, None));
}

/// R17: rows in the DEFAULT partition prevent only the creation of their day's partition.
#[tokio::test]
async fn r17_a_day_with_rows_in_default_gets_no_partition_and_the_others_do() {
    let table = Table::fresh().await;
    table.register("relay").await;
    let (day, next) = ("now() + interval '1 day'", "now() + interval '2 days'");
    for day in [day, next] {
        let name =
            table.value(&format!("'outbox_p' || to_char(({day}) AT TIME ZONE 'UTC', 'YYYYMMDD')")).await;
        table.execute(&format!("DROP TABLE {name}")).await;
    }
    let time = table.value(day).await;
    table.execute(&insert(&time, 1)).await;
    table.past(DAY, 1).await;
    table.delivered("relay").await;
    let (made, dropped, _, held) = table.maintain().await;
    assert_eq!((made, dropped), (1, 0));
    assert!(held.unwrap().contains("outbox_default holds rows of it"));
    let (made, dropped, _, held) = table.maintain().await;
    assert_eq!((made, dropped), (0, 1));
    assert!(held.unwrap().contains("outbox_default holds rows of it"));
}

/// The owner needs no privilege beyond its tables, and the relay's role only EXECUTE, in any schema.
#[tokio::test]
async fn an_owner_without_privileges_maintains_its_tables_in_its_schema() {
    let table = Table::fresh().await;
    let (owner, relay, slot) = (unique("owner"), unique("relay_role"), unique("slot"));
    table
        .execute(&format!(
            "CREATE ROLE {owner}; CREATE ROLE {relay}; CREATE SCHEMA shop AUTHORIZATION {owner}"
        ))
        .await;
    let migrations = testbed::migrations().unwrap();
    let as_owner = format!("SET ROLE {owner}; SET search_path = shop; {} {}", migrations[0], migrations[1]);
    table.execute(&as_owner).await;
    table
        .execute(&format!(
            "GRANT USAGE ON SCHEMA shop TO {relay};
             GRANT EXECUTE ON FUNCTION shop.outbox_maintain(interval, interval), shop.outbox_partition_state() TO {relay};
             SET search_path = shop;
             INSERT INTO outbox_checkpoint (relay, slot, system_identifier, timeline, delivered_snapshot)
             VALUES ('relay', 'mine', 1, 1, pg_current_snapshot());
             CREATE TABLE outbox_p20200101 PARTITION OF outbox FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z');
             ALTER TABLE outbox_p20200101 OWNER TO {owner}"
        ))
        .await;
    table.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let call = "SELECT * FROM shop.outbox_maintain('72 hours', '3 days')";
    let mut sql = table.0.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("SET ROLE {relay}"))).execute(&mut sql).await.unwrap();
    let done: Done = sqlx::query_as(call).fetch_one(&mut sql).await.unwrap();
    assert!(done.3.unwrap().contains(&slot), "the foreign slot is seen");
    table.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    let done: Done = sqlx::query_as(call).fetch_one(&mut sql).await.unwrap();
    assert_eq!(done, (0, 1, 0, None));
    let state: (i64, f64) =
        sqlx::query_as("SELECT * FROM shop.outbox_partition_state()").fetch_one(&mut sql).await.unwrap();
    assert_eq!(state, (0, 0.0));
    drop(sql.close().await);
    table.execute("DROP SCHEMA shop CASCADE").await;
    table.execute(&format!("DROP ROLE {owner}; DROP ROLE {relay}")).await;
}

/// Of two concurrent calls one does the work, and the other reports that instead of failing.
#[tokio::test]
async fn concurrent_calls_do_not_conflict() {
    let table = Table::fresh().await;
    let mut other = table.0.connect().await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT outbox_maintain('72 hours', '3 days')").execute(&mut other).await.unwrap();
    assert!(table.held().await.contains("another session maintains"));
    commit(other).await;
    assert_eq!(table.maintain().await, (0, 0, 0, None));
}
