//! The client against real servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod feedback;
mod hosts;
mod in_between;
mod login;
mod slots;
mod streaming;
mod tls;

use std::time::Duration;

use pg_replication::pgoutput::{Column, Message};
use pg_replication::{
    Client, CommitLsn, ConnectOptions, EndLsn, Error, Frame, Host, PgOutput, SlotOptions, Stream, TlsOptions,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::postgres::{Auth, PgVersion, Postgres, PostgresOptions};

const SOON: Duration = Duration::from_secs(60);

struct Server {
    postgres: Postgres,
}

impl Server {
    async fn start(version: PgVersion, settings: &[(&str, &str)], auth: Auth) -> Server {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Server::with(PostgresOptions { version, settings, auth, ..PostgresOptions::default() }).await
    }

    async fn with(options: PostgresOptions) -> Server {
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
        let mut options = ConnectOptions::new(host, "postgres", "postgres");
        options.tls = TlsOptions::disabled();
        options
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

/// Reads until `wanted` returns something for a frame.
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

/// Reads until the stream ends, and returns why.
async fn end(stream: &mut Stream) -> Error {
    let reading = async {
        loop {
            let step = match stream.next_frame() {
                Ok(Some(_)) => Ok(()),
                Ok(None) => stream.fill().await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                return error;
            }
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("the stream did not end")
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
                        Column::Null | Column::Unchanged | Column::Oversized(_) => None,
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
