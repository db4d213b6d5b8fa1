//! Status updates, how both sides notice that the other is gone, and how a stream ends.

use super::*;
use pg_replication::{MemoryLimit, SqlState};
use testbed::postgres::Shutdown;
use testbed::proxy::{Fault, Proxy};
use testbed::wait;

#[tokio::test]
async fn confirmed_transactions_are_not_sent_again_after_a_graceful_end() {
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
async fn keepalives_advance_an_idle_stream() {
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
    // Four times the server's timeout without reading anything.
    assert!(tokio::time::timeout(Duration::from_secs(4), stream.idle()).await.is_err());
    assert_eq!(server.value("SELECT active_pid FROM pg_replication_slots").await, pid);
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    assert_eq!(transaction(&mut stream).await.2.len(), 1);
}

#[tokio::test]
async fn a_server_that_stops_responding_is_noticed() {
    let server = Server::start(PgVersion::V18, &[("wal_sender_timeout", "1s")], Auth::Trust).await;
    let mut stream = server.stream("s", &output(true)).await;
    server.postgres.pause().unwrap();
    let error = end(&mut stream).await;
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    server.postgres.resume().unwrap();
}

#[tokio::test]
async fn a_fast_shutdown_is_not_delayed() {
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

#[tokio::test]
async fn a_stream_ends_gracefully_within_a_transaction() {
    const ROWS: usize = 50_000;
    let server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    let before = server.confirmed("s").await;
    server.sql(&format!("INSERT INTO t SELECT n, '\\xff' FROM generate_series(1, {ROWS}) n")).await;
    read(&mut stream, |frame| match frame {
        Frame::XLogData { data, .. } if data.starts_with(b"I") => Some(()),
        _ => None,
    })
    .await;
    stream.finish(SOON).await.unwrap().client.close().await.unwrap();
    assert_eq!(server.confirmed("s").await, before, "nothing was confirmed");
    let mut stream = server.client().await.start_replication("s", EndLsn::ZERO, &output(true)).await.unwrap();
    assert_eq!(transaction(&mut stream).await.2.len(), ROWS, "all of it comes again");
}

#[tokio::test]
async fn a_graceful_end_has_a_timeout() {
    let server = Server::version_18().await;
    let stream = server.stream("s", &output(true)).await;
    server.postgres.pause().unwrap();
    let finished = tokio::time::timeout(SOON, stream.finish(Duration::from_millis(200))).await;
    server.postgres.resume().unwrap();
    assert!(matches!(finished, Ok(Err(Error::Timeout { .. }))));
}

#[tokio::test]
async fn a_broken_stream_reports_the_servers_error() {
    let mut server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    server.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
    assert_eq!(end(&mut stream).await.sqlstate(), Some(SqlState::ADMIN_SHUTDOWN));

    let freed = async || match server.client().await.start_replication("s", EndLsn::ZERO, &output(true)).await
    {
        Ok(stream) => Ok(stream),
        Err(error) => Err(error.to_string()),
    };
    let mut stream = wait::until("the slot to be free", SOON, freed).await.unwrap();
    let (ended, killed) = tokio::join!(end(&mut stream), server.postgres.kill());
    killed.unwrap();
    assert!(matches!(ended, Error::Closed | Error::Io(_)), "{ended}");
}

#[tokio::test]
async fn a_message_that_takes_longer_than_the_servers_timeout_arrives() {
    let server = Server::start(PgVersion::V18, &[("wal_sender_timeout", "1s")], Auth::Trust).await;
    let proxy = Proxy::before(server.postgres.port()).await.unwrap();
    let mut options = server.options();
    options.hosts = vec![Host::Tcp { host: "127.0.0.1".into(), port: proxy.port() }];
    let mut client = Client::connect(&options).await.unwrap();
    client.create_slot("s", &SlotOptions::default()).await.unwrap();
    let mut stream = client.start_replication("s", EndLsn::ZERO, &output(true)).await.unwrap();
    stream.limit_memory(MemoryLimit { largest_value: 1_000_000, is_wanted: Box::new(|_, _| true) });
    let pid = server.value("SELECT active_pid FROM pg_replication_slots").await;
    proxy.set(Fault::BytesPerSecond(10_000_000));
    // More than two seconds each.
    let written = server.sql(
        "SELECT pg_logical_emit_message(true, 'other', repeat('x', 25000000));
         INSERT INTO t VALUES (1, convert_to(repeat('x', 25000000), 'UTF8')), (2, 'small')",
    );
    tokio::select! {
        () = written => {}
        ended = stream.idle() => panic!("{ended:?}"),
    }
    let columns: Vec<String> = read(&mut stream, |frame| {
        let Frame::XLogData { data, .. } = frame else { return None };
        let Message::Insert(insert) = Message::parse(data).unwrap() else { return None };
        Some(insert.tuple.columns().map(|column| format!("{column:?}")).collect())
    })
    .await;
    assert_eq!(columns, ["Binary([0, 0, 0, 1])", "Oversized(25000000)"]);
    let behind = read(&mut stream, |frame| match frame {
        Frame::XLogData { data, .. } => Some(data.clone()),
        Frame::Keepalive { .. } => None,
    })
    .await;
    assert!(behind.ends_with(b"small"), "the row behind it");
    assert_eq!(
        server.value("SELECT active_pid FROM pg_replication_slots").await,
        pid,
        "the server gave it up"
    );
}
