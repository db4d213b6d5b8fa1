//! The client against real servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::time::Duration;

use pg_replication::pgoutput::{Column, Message};
use pg_replication::{
    Client, CommitLsn, ConnectOptions, EndLsn, Error, Frame, Host, Password, PgOutput, SlotOptions, Snapshot,
    SqlState, Stream,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::postgres::{Auth, PgVersion, Postgres, PostgresOptions, Shutdown};
use testbed::wait;

const SOON: Duration = Duration::from_secs(60);

struct Server {
    postgres: Postgres,
}

impl Server {
    async fn start(version: PgVersion, settings: &[(&str, &str)], auth: Auth) -> Server {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = PostgresOptions { version, settings, auth, ..PostgresOptions::default() };
        let server = Server { postgres: Postgres::start(options).await.unwrap() };
        server
            .sql(
                "CREATE TABLE t (n int, b bytea); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')",
            )
            .await;
        server
    }

    async fn version_18() -> Server {
        Server::start(PgVersion::V18, &[], Auth::Trust).await
    }

    async fn sql(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.postgres.url("postgres")).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    }

    async fn value(&self, sql: &str) -> Option<String> {
        let mut connection = PgConnection::connect(&self.postgres.url("postgres")).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({sql})::text")))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    fn options(&self) -> ConnectOptions {
        let host = Host::Tcp { host: "127.0.0.1".into(), port: self.postgres.port() };
        ConnectOptions::new(host, "postgres", "postgres")
    }

    async fn client(&self) -> Client {
        Client::connect(&self.options()).await.unwrap()
    }

    /// A stream over a new slot.
    async fn stream(&self, slot: &str, output: &PgOutput) -> Stream {
        let mut client = self.client().await;
        client.create_slot(slot, &SlotOptions::default()).await.unwrap();
        client.start_replication(slot, EndLsn::ZERO, output).await.unwrap()
    }

    async fn confirmed(&self, slot: &str) -> EndLsn {
        let sql = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
        EndLsn::new(self.value(&sql).await.unwrap().parse().unwrap())
    }
}

fn output(binary: bool) -> PgOutput {
    PgOutput { publications: vec!["p".into()], binary, messages: true }
}

/// Reads until `wanted` makes something of a frame.
async fn read<T>(stream: &mut Stream, mut wanted: impl FnMut(&Frame) -> Option<T>) -> T {
    let reading = async {
        loop {
            while let Some(frame) = stream.next_frame().unwrap() {
                if let Some(found) = wanted(&frame) {
                    return found;
                }
            }
            stream.fill().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("nothing wanted arrived")
}

/// The next transaction: where it commits and ends, and the columns of its rows.
async fn transaction(stream: &mut Stream) -> (CommitLsn, EndLsn, Vec<Vec<Option<Vec<u8>>>>) {
    let (mut begin, mut rows) = (None, Vec::new());
    read(stream, |frame| {
        let Frame::XLogData { data, .. } = frame else { return None };
        match Message::parse(data).unwrap() {
            Message::Begin(message) => begin = Some(message.final_lsn),
            Message::Insert(insert) => rows.push(
                insert
                    .tuple
                    .columns()
                    .map(|column| match column {
                        Column::Text(bytes) | Column::Binary(bytes) => Some(bytes.to_vec()),
                        Column::Null | Column::Unchanged => None,
                    })
                    .collect(),
            ),
            Message::Commit(commit) => return Some((begin?, commit.end_lsn, std::mem::take(&mut rows))),
            _ => {}
        }
        None
    })
    .await
}

#[tokio::test]
async fn scram_unix_sockets_and_a_wrong_password() {
    let server = Server::start(PgVersion::V18, &[], Auth::Scram).await;
    let mut options = server.options();
    options.password = server.postgres.password().map(Password::new);
    let mut client = Client::connect(&options).await.unwrap();
    let identity = client.identify_system().await.unwrap();
    assert_eq!((identity.timeline, identity.database.as_str()), (1, "postgres"));
    let system_id = server.value("SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(Some(identity.system_id.to_string()), system_id);

    options.password = Some(Password::new("wrong-password"));
    let error = Client::connect(&options).await.err().unwrap();
    assert_eq!(error.sqlstate(), Some(SqlState::INVALID_PASSWORD));
    assert!(!format!("{error} {error:?} {options:?}").contains("wrong-password"));

    let directory = server.postgres.socket_directory().to_owned();
    let host = Host::Unix { directory, port: server.postgres.port() };
    let mut client = Client::connect(&ConnectOptions::new(host, "postgres", "postgres")).await.unwrap();
    assert_eq!(client.identify_system().await.unwrap(), identity_at(&identity, &mut client).await);
}

/// The same identity with the flush LSN of now.
async fn identity_at(
    identity: &pg_replication::SystemIdentity,
    client: &mut Client,
) -> pg_replication::SystemIdentity {
    let now = client.identify_system().await.unwrap();
    assert!(now.flush_lsn >= identity.flush_lsn);
    pg_replication::SystemIdentity { flush_lsn: now.flush_lsn, ..identity.clone() }
}

#[tokio::test]
async fn a_server_that_is_not_there_and_a_database_that_is_not() {
    let server = Server::version_18().await;
    let port = testbed::net::free_port().unwrap();
    let nobody = ConnectOptions { host: Host::Tcp { host: "127.0.0.1".into(), port }, ..server.options() };
    assert!(matches!(Client::connect(&nobody).await, Err(Error::Connect { .. })));
    let unknown = ConnectOptions { database: "unknown".into(), ..server.options() };
    assert_eq!(
        Client::connect(&unknown).await.err().unwrap().sqlstate(),
        Some(SqlState::INVALID_CATALOG_NAME)
    );
}

#[tokio::test]
async fn slots_are_created_once_held_once_and_missed() {
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

#[tokio::test]
async fn rows_come_in_binary_and_in_text() {
    for (binary, number, bytes) in
        [(true, b"\0\0\0\x07".to_vec(), b"\xff".to_vec()), (false, b"7".to_vec(), b"\\xff".to_vec())]
    {
        let server = Server::version_18().await;
        let mut stream = server.stream("s", &output(binary)).await;
        server.sql("INSERT INTO t VALUES (7, '\\xff'), (7, NULL)").await;
        let (commit, end, rows) = transaction(&mut stream).await;
        assert_eq!(rows, [vec![Some(number.clone()), Some(bytes)], vec![Some(number), None]]);
        assert!(end.covers(commit), "a transaction lies before its end");
    }
}

#[tokio::test]
async fn logical_messages_arrive_and_other_tables_do_not() {
    let server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    server.sql("CREATE TABLE other (n int); INSERT INTO other VALUES (1)").await;
    server.sql("SELECT pg_logical_emit_message(false, 'beat', 'hello')").await;
    let content = read(&mut stream, |frame| {
        let Frame::XLogData { data, .. } = frame else { return None };
        match Message::parse(data).unwrap() {
            Message::Logical(message) => Some((message.prefix.to_owned(), message.content.to_vec())),
            Message::Insert(_) => panic!("a row of a table that is not published"),
            _ => None,
        }
    });
    assert_eq!(content.await, ("beat".to_owned(), b"hello".to_vec()));
}

#[tokio::test]
async fn a_missing_publication_is_seen() {
    let missing = PgOutput { publications: vec!["nowhere".into()], ..output(true) };
    // Postgres 15 ends the stream when the first change comes, 18 warns and leaves it out.
    let server = Server::start(PgVersion::V15, &[], Auth::Trust).await;
    let mut stream = server.stream("s", &missing).await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    let error = loop {
        match stream.next_frame() {
            Err(error) => break error,
            Ok(Some(_)) => {}
            Ok(None) => stream.fill().await.unwrap(),
        }
    };
    assert_eq!(error.sqlstate(), Some(SqlState::UNDEFINED_OBJECT));

    let server = Server::version_18().await;
    let mut stream = server.stream("s", &missing).await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    wait::until("the warning", SOON, async || {
        drop(tokio::time::timeout(Duration::from_millis(100), stream.fill()).await);
        while stream.next_frame().unwrap().is_some() {}
        if stream.take_notices().iter().any(|notice| notice.skipped_publication()) {
            Ok(())
        } else {
            Err("no warning")
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_confirmed_is_known_after_an_orderly_end_and_not_sent_again() {
    let server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    let (_, first, _) = transaction(&mut stream).await;
    server.sql("INSERT INTO t VALUES (2, NULL)").await;
    let (_, second, _) = transaction(&mut stream).await;
    assert!(matches!(
        stream.confirm(EndLsn::new((second.lsn().as_u64() + 1_000_000).into())),
        Err(Error::NotReceived { .. })
    ));
    stream.confirm(first).unwrap();
    let finished = stream.finish(SOON).await.unwrap();
    assert_eq!((finished.confirmed, server.confirmed("s").await), (first, first));
    let mut client = finished.client;
    assert_eq!(client.simple_query("SELECT 1").await.unwrap(), [vec![Some("1".to_owned())]]);
    let mut stream = server.client().await.start_replication("s", EndLsn::ZERO, &output(true)).await.unwrap();
    let (_, end, rows) = transaction(&mut stream).await;
    assert_eq!((end, rows.len()), (second, 1), "exactly what was not confirmed comes again");
}

#[tokio::test]
async fn keepalives_move_an_idle_stream() {
    let server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    server.sql("CREATE TABLE busy AS SELECT generate_series(1, 10000) n").await;
    let now: EndLsn =
        EndLsn::new(server.value("SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap());
    let end = read(&mut stream, |frame| match frame {
        Frame::Keepalive { wal_end, .. } if *wal_end >= now => Some(*wal_end),
        _ => None,
    })
    .await;
    stream.confirm(end).unwrap();
    wait::until("a confirmation by the stream's own timer", SOON, async || {
        drop(tokio::time::timeout(Duration::from_millis(50), stream.fill()).await);
        let seen = server.confirmed("s").await;
        if seen == end { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_kept_alive() {
    let server = Server::start(PgVersion::V18, &[("wal_sender_timeout", "1s")], Auth::Trust).await;
    let mut stream = server.stream("s", &output(true)).await;
    let pid = server.value("SELECT active_pid FROM pg_replication_slots").await;
    // Four times the server's patience without reading anything.
    assert!(tokio::time::timeout(Duration::from_secs(4), stream.idle()).await.is_err());
    assert_eq!(server.value("SELECT active_pid FROM pg_replication_slots").await, pid);
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    assert_eq!(transaction(&mut stream).await.2.len(), 1);
}

#[tokio::test]
async fn a_server_that_has_stopped_answering_is_noticed() {
    let server = Server::start(PgVersion::V18, &[("wal_sender_timeout", "1s")], Auth::Trust).await;
    let mut stream = server.stream("s", &output(true)).await;
    server.postgres.pause().unwrap();
    let noticed = async {
        loop {
            match stream.fill().await {
                Err(error) => return error,
                Ok(()) => while stream.next_frame().unwrap().is_some() {},
            }
        }
    };
    let error = tokio::time::timeout(SOON, noticed).await.expect("silence was not noticed");
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    server.postgres.resume().unwrap();
}

#[tokio::test]
async fn a_fast_shutdown_is_not_held_up() {
    let mut server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    let reading = async {
        loop {
            match stream.next_frame() {
                Err(error) => return error,
                Ok(Some(Frame::Keepalive { wal_end, .. })) => stream.confirm(wal_end).unwrap(),
                Ok(Some(Frame::XLogData { .. })) => {}
                Ok(None) => {
                    if let Err(error) = stream.fill().await {
                        return error;
                    }
                }
            }
        }
    };
    let (ended, stopped) = tokio::join!(reading, server.postgres.stop(Shutdown::Fast));
    stopped.unwrap();
    assert!(matches!(ended, Error::Closed | Error::Server(_) | Error::Io(_)), "{ended}");
}
