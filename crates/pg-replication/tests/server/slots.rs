//! Slots: created, held, lost.

use super::*;
use pg_replication::{Snapshot, SqlState};
use testbed::postgres::Shutdown;
use testbed::wait;

#[tokio::test]
async fn slots_are_created_once_held_once_and_reported_when_missing() {
    for version in [PgVersion::V15, PgVersion::V17, PgVersion::V18] {
        let server = Server::start(version, &[], Auth::Trust).await;
        let mut client = server.client().await;
        let created = client.create_slot("s", &SlotOptions::default()).await.unwrap();
        assert_eq!((created.snapshot_name, created.consistent_point), (None, server.confirmed("s").await));
        let again = client.create_slot("s", &SlotOptions::default()).await.unwrap_err();
        assert_eq!(again.sqlstate(), Some(SqlState::DUPLICATE_OBJECT));
        let export = SlotOptions { snapshot: Snapshot::Export, temporary: true, failover: false };
        assert!(client.create_slot("exported", &export).await.unwrap().snapshot_name.is_some());

        let _held = client.start_replication("s", EndLsn::ZERO, &output(true)).await.unwrap();
        let other = server.client().await;
        let Err(Error::Server(error)) = other.start_replication("s", EndLsn::ZERO, &output(true)).await
        else {
            panic!("the slot was taken twice")
        };
        assert_eq!(error.code, SqlState::OBJECT_IN_USE);
        let holder = server.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 's'").await;
        assert_eq!(error.holder().map(|pid| pid.to_string()), holder);
        let missing = server.client().await.start_replication("none", EndLsn::ZERO, &output(true)).await;
        assert_eq!(missing.err().unwrap().sqlstate(), Some(SqlState::UNDEFINED_OBJECT));
    }
}

/// With no timeout the server would keep a vanished client's slot in use; with a very short one it would end every
/// stream.
#[tokio::test]
async fn an_unsuitable_timeout_is_replaced_for_the_stream() {
    let server = Server::version_18().await;
    for (configured, used) in [("0", "1min"), ("5ms", "1min"), ("1d", "1min"), ("3s", "3s")] {
        server.sql(&format!("ALTER ROLE postgres SET wal_sender_timeout = '{configured}'")).await;
        let slot = format!("s{}", configured);
        let stream = server.stream(&slot, &output(true)).await;
        let mut client = stream.finish(SOON).await.unwrap().client;
        let shown = client.simple_query("SHOW wal_sender_timeout").await.unwrap();
        assert_eq!(shown, [[Some(used.to_owned())]], "{configured}");
    }
}

#[tokio::test]
async fn failover_is_set_where_it_exists_and_rejected_elsewhere() {
    let wanted = SlotOptions { failover: true, ..SlotOptions::default() };
    let server = Server::start(PgVersion::V17, &[], Auth::Trust).await;
    server.client().await.create_slot("s", &wanted).await.unwrap();
    let set = server.value("SELECT failover FROM pg_replication_slots WHERE slot_name = 's'").await;
    assert_eq!(set.as_deref(), Some("true"));

    let server = Server::start(PgVersion::V15, &[], Auth::Trust).await;
    let refused = server.client().await.create_slot("s", &wanted).await;
    assert!(matches!(refused, Err(Error::Unsupported { since: 17, version: 15, .. })));
    assert_eq!(server.value("SELECT count(*) FROM pg_replication_slots").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn snapshot_and_stream_complement_each_other() {
    let server = Server::version_18().await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    let mut client = server.client().await;
    let export = SlotOptions { snapshot: Snapshot::Export, ..SlotOptions::default() };
    let created = client.create_slot("s", &export).await.unwrap();
    server.sql("INSERT INTO t VALUES (2, NULL)").await;

    let snapshot = created.snapshot_name.unwrap();
    let mut reader = PgConnection::connect(&server.postgres.url("postgres")).await.unwrap();
    let take_over = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'");
    sqlx::raw_sql(AssertSqlSafe(take_over)).execute(&mut reader).await.unwrap();
    let before: Vec<i32> = sqlx::query_scalar("SELECT n FROM t").fetch_all(&mut reader).await.unwrap();
    assert_eq!(before, [1]);

    let mut stream = client.start_replication("s", created.consistent_point, &output(false)).await.unwrap();
    let (_, _, rows) = transaction(&mut stream).await;
    assert_eq!(rows, [[Some(b"2".to_vec()), None]]);
}

#[tokio::test]
async fn an_invalidated_slot_is_distinguished_from_a_missing_one() {
    for version in [PgVersion::V15, PgVersion::V17, PgVersion::V18] {
        let server = Server::start(version, &[("max_slot_wal_keep_size", "1MB")], Auth::Trust).await;
        server.client().await.create_slot("s", &SlotOptions::default()).await.unwrap();
        wait::until("the loss of the slot", SOON, async || {
            server.sql("CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler VALUES (1)").await;
            server.sql("SELECT pg_switch_wal()").await;
            server.sql("CHECKPOINT").await;
            match server.value("SELECT wal_status FROM pg_replication_slots").await.as_deref() {
                Some("lost") => Ok(()),
                status => Err(format!("{status:?}")),
            }
        })
        .await
        .unwrap();
        let lost = server.client().await.start_replication("s", EndLsn::ZERO, &output(true)).await;
        assert_eq!(lost.err().unwrap().sqlstate(), Some(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE));
    }
}

#[tokio::test]
async fn the_history_of_a_timeline_is_read_after_promotions() {
    let mut server = Server::version_18().await;
    let first = server.client().await.timeline_history(1).await.unwrap();
    assert_eq!((first.timeline(), first.switch_points()), (1, &[][..]), "initdb's timeline has no file");
    let missing = server.client().await.timeline_history(2).await.unwrap_err();
    assert_eq!(missing.sqlstate().unwrap().as_str(), "58P01");

    let mut ends = Vec::new();
    for _ in 0..2 {
        server.postgres.stop(Shutdown::Fast).await.unwrap();
        server.postgres.start_as_standby().await.unwrap();
        ends.push(server.value("pg_last_wal_replay_lsn()").await.unwrap());
        server.sql("SELECT pg_promote()").await;
        server.sql("INSERT INTO t VALUES (1, NULL)").await;
    }
    let mut client = server.client().await;
    assert_eq!(client.identify_system().await.unwrap().timeline, 3);
    let history = client.timeline_history(3).await.unwrap();
    let ends: Vec<_> = (1..).zip(ends.iter().map(|end| end.parse().unwrap())).collect();
    assert_eq!(history.switch_points(), ends);
    let now = client.identify_system().await.unwrap().flush_lsn;
    assert_eq!((history.timeline_of(ends[1].1), history.timeline_of(now)), (3, 3));
}
