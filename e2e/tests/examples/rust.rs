//! The writer and the consumer in Rust.

use reqwest::Client;
use serde_json::json;
use sqlx::Connection;
use testbed::process::{Launch, Program};
use testbed::{net, wait};
use tokio::net::TcpStream;

use crate::contract::Run;
use crate::env::Env;
use crate::{PROGRAMS, TIMEOUT, Writer};

/// The service, over HTTP.
struct Service {
    address: String,
    program: Program,
}

impl Service {
    async fn start(env: &Env) -> Service {
        let address = format!("127.0.0.1:{}", net::free_port().unwrap());
        let program = Launch::new("example-writer", PROGRAMS.join("example-writer"))
            .env("DATABASE_URL", env.writer.url())
            .env("LISTEN", &address)
            .start()
            .unwrap();
        let mut service = Service { address, program };
        wait::until("a writer that listens", TIMEOUT, async || {
            assert_eq!(service.program.exit_status(), None, "{}", service.program.log_tail());
            TcpStream::connect(&service.address).await
        })
        .await
        .unwrap();
        service
    }

    async fn send(&self, account: &str, body: &serde_json::Value, traceparent: &str) -> (u16, String) {
        let url = format!("http://{}/accounts/{account}/deposits", self.address);
        let request = Client::new().post(url).header("traceparent", traceparent).json(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

impl Writer for Service {
    async fn deposit(&self, account: &str, amount: u32, traceparent: &str) -> Result<(), String> {
        match self.send(account, &json!({ "amount": amount }), traceparent).await {
            (201, _) => Ok(()),
            (status, body) => Err(format!("{status}: {body}")),
        }
    }
}

pub fn consumer() -> Launch {
    Launch::new("example-consumer", PROGRAMS.join("example-consumer"))
}

#[tokio::test]
async fn a_deposit_counts_once_whatever_happens_to_consumer_and_records() {
    let env = Env::start("rust").await;
    let writer = Service::start(&env).await;
    Run::new(&env, &writer, &consumer).check().await;
}

#[tokio::test]
async fn a_consumer_outlives_its_database_connections() {
    let env = Env::start("connections").await;
    let writer = Service::start(&env).await;
    let mut run = Run::new(&env, &writer, &consumer);
    run.deposit_to_all().await;
    let mut consumer = run.start_consumer();
    run.until_all_applied(&mut [&mut consumer]).await;
    // No statement succeeds before the database is let in again.
    let closed = format!(
        "ALTER DATABASE {0} ALLOW_CONNECTIONS false;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
        env.consumer.name()
    );
    env.writer.execute(&closed).await.unwrap();
    run.deposit_to_all().await;
    wait::until("a consumer that tries again", TIMEOUT, async || {
        let log = consumer.log();
        if log.contains("trying again") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    let open = format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", env.consumer.name());
    env.writer.execute(&open).await.unwrap();
    run.until_all_applied(&mut [&mut consumer]).await;
}

#[tokio::test]
async fn an_event_whose_transaction_is_cancelled_by_a_stop_is_delivered_again() {
    let env = Env::start("stopped").await;
    let writer = Service::start(&env).await;
    let mut run = Run::new(&env, &writer, &consumer);
    let mut blocker = env.consumer.connect().await.unwrap();
    let mut lock = blocker.begin().await.unwrap();
    sqlx::query("LOCK TABLE inbox").execute(&mut *lock).await.unwrap();
    run.deposit_to_all().await;
    let mut stopped = run.start_consumer();
    wait::until("a consumer in the middle of an event", TIMEOUT, async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let mut sql = env.consumer.connect().await.unwrap();
        match sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut sql).await.unwrap() {
            0 => Err(stopped.log_tail()),
            _ => Ok(()),
        }
    })
    .await
    .unwrap();
    stopped.terminate().unwrap();
    assert!(stopped.wait(TIMEOUT).await.unwrap().success(), "{}", stopped.log());
    lock.rollback().await.unwrap();
    let mut next = run.start_consumer();
    run.until_all_applied(&mut [&mut next]).await;
}

#[tokio::test]
async fn a_request_that_is_no_deposit_changes_nothing() {
    let env = Env::start("requests").await;
    let writer = Service::start(&env).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for body in [json!({}), json!({ "amount": 0 }), json!({ "amount": -1 }), json!({ "amount": "1" })] {
        assert_eq!(writer.send("ann", &body, trace).await.0, 400, "{body}");
    }
    let mut sql = env.writer.connect().await.unwrap();
    let rows: i64 =
        sqlx::query_scalar("SELECT (SELECT count(*) FROM account) + (SELECT count(*) FROM outbox)")
            .fetch_one(&mut sql)
            .await
            .unwrap();
    assert_eq!(rows, 0);
}
