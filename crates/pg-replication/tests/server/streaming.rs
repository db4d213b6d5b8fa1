//! The content of a stream.

use super::*;
use pg_replication::SqlState;
use testbed::wait;

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
async fn a_missing_publication_is_noticed() {
    let missing = PgOutput { publications: vec!["nowhere".into()], ..output(true) };
    // PostgreSQL 15 ends the stream at the first change, 18 sends a warning and skips it.
    let server = Server::start(PgVersion::V15, &[], Auth::Trust).await;
    let mut stream = server.stream("s", &missing).await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    let error = loop {
        match stream.next_frame() {
            Err(error) => break error,
            Ok(Some(_)) => {}
            Ok(None) => drop(stream.fill().await.unwrap()),
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
async fn a_changed_table_is_described_again_before_its_next_row() {
    let server = Server::version_18().await;
    let mut stream = server.stream("s", &output(true)).await;
    server.sql("INSERT INTO t VALUES (1, NULL)").await;
    server.sql("ALTER TABLE t DROP COLUMN b, ADD COLUMN c text").await;
    server.sql("INSERT INTO t VALUES (2, 'new')").await;
    let mut shapes = Vec::new();
    for _ in 0..2 {
        let names = read(&mut stream, |frame| {
            let Frame::XLogData { data, .. } = frame else { return None };
            match Message::parse(data).unwrap() {
                Message::Relation(table) => {
                    Some(table.columns().map(|c| c.name.to_owned()).collect::<Vec<_>>())
                }
                _ => None,
            }
        });
        shapes.push(names.await);
    }
    assert_eq!(shapes, [["n", "b"], ["n", "c"]]);
}

#[tokio::test]
async fn updates_deletes_and_truncates_name_their_table() {
    let server = Server::version_18().await;
    server.sql("CREATE TABLE whole (n int); ALTER TABLE whole REPLICA IDENTITY FULL").await;
    server.sql("CREATE PUBLICATION everything FOR TABLE whole").await;
    let everything = PgOutput { publications: vec!["everything".into()], ..output(false) };
    let mut stream = server.stream("s", &everything).await;
    server.sql("INSERT INTO whole VALUES (1)").await;
    server.sql("UPDATE whole SET n = 2").await;
    server.sql("DELETE FROM whole").await;
    server.sql("TRUNCATE whole CASCADE").await;
    let (mut table, mut seen) = (0, Vec::new());
    let number = |tuple: &pg_replication::pgoutput::Tuple| match tuple.columns().next() {
        Some(Column::Text(digits)) => String::from_utf8(digits.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    read(&mut stream, |frame| {
        let Frame::XLogData { data, .. } = frame else { return None };
        let (relation, what) = match Message::parse(data).unwrap() {
            Message::Relation(relation) => {
                table = relation.oid;
                return None;
            }
            Message::Insert(m) => (m.relation, format!("+{}", number(&m.tuple))),
            Message::Update(m) => (m.relation, format!("{}>{}", number(&m.old.unwrap()), number(&m.new))),
            Message::Delete(m) => (m.relation, format!("-{}", number(&m.old))),
            Message::Truncate(m) => {
                (m.relations().next().unwrap(), format!("truncate, cascade {}", m.cascade))
            }
            _ => return None,
        };
        assert_eq!(relation, table);
        seen.push(what);
        (seen.len() == 4).then_some(())
    })
    .await;
    assert_eq!(seen, ["+1", "1>2", "-2", "truncate, cascade true"]);
}

#[tokio::test]
async fn dropped_futures_lose_nothing() {
    const ROWS: usize = 20_000;
    let server = Server::version_18().await;
    let mut stream = server.stream("s", &output(false)).await;
    // Rows of many sizes, so that reads end anywhere in a message; one is larger than the read buffer.
    let writing = async {
        server
            .sql(&format!(
                "INSERT INTO t SELECT n, decode(repeat('ab', n % 701), 'hex') FROM generate_series(1, {ROWS}) n"
            ))
            .await;
        server.sql("INSERT INTO t VALUES (0, decode(repeat('cd', 3000000), 'hex'))").await;
    };
    let (mut next, mut broken_off) = (1, 0_u32);
    let reading = async {
        loop {
            while let Some(frame) = stream.next_frame().unwrap() {
                let Frame::XLogData { data, .. } = frame else { continue };
                let Message::Insert(insert) = Message::parse(&data).unwrap() else { continue };
                let columns: Vec<Column> = insert.tuple.columns().collect();
                let [Column::Text(number), Column::Text(bytes)] = columns[..] else { panic!("{columns:?}") };
                if next > ROWS {
                    assert_eq!((number, bytes.len()), (&b"0"[..], 2 + 2 * 3_000_000));
                    return;
                }
                assert_eq!(number, next.to_string().as_bytes());
                assert_eq!(bytes.len(), 2 + 2 * (next % 701));
                next += 1;
            }
            // Polled once and dropped: the next one must continue what it had begun.
            broken_off += u32::from(tokio::time::timeout(Duration::ZERO, stream.fill()).await.is_err());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, async { tokio::join!(writing, reading) }).await.expect("rows are missing");
    assert!(broken_off > 0, "nothing was broken off, so nothing was shown");
}
