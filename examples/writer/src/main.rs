//! A minimal service with a transactional outbox: one table, one handler, one transaction.
//!
//! `POST /accounts/{id}/deposits` with `{"amount": 500}` changes the balance and appends `account.deposited.v1`.

use std::error::Error;
use std::num::NonZeroU32;

use outbox::{AppendError, Event, InvalidEvent, TraceContext};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{FromRow, PgPool};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use warp::http::StatusCode;
use warp::reply::{Response, json as json_body, with_status};
use warp::{Filter, Reply};

#[derive(Deserialize)]
struct Deposit {
    amount: NonZeroU32,
}

/// The account after the deposit.
#[derive(FromRow)]
struct Account {
    balance: i64,
    version: i64,
}

/// The payload of `account.deposited.v1`. It is a public contract: an incompatible change is a `V2` with a new type name.
#[derive(Serialize)]
struct DepositedV1<'a> {
    account_id: &'a str,
    version: i64,
    amount: u32,
}

#[derive(Debug, thiserror::Error)]
enum DepositError {
    #[error(transparent)]
    InvalidEvent(#[from] InvalidEvent),
    #[error("the payload cannot be serialized")]
    Payload(#[from] serde_json::Error),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Changes the state and appends the event in one transaction: both are committed, or neither is.
async fn deposit(
    pool: &PgPool,
    account_id: &str,
    amount: NonZeroU32,
    trace: TraceContext,
) -> Result<Account, DepositError> {
    let mut transaction = pool.begin().await?;
    // The state first: this statement locks the row, so events of one account are committed in the order of their versions.
    let account: Account = sqlx::query_as(
        "INSERT INTO account AS a (account_id, balance, version) VALUES ($1, $2, 1)
         ON CONFLICT (account_id) DO UPDATE SET balance = a.balance + excluded.balance, version = a.version + 1
         RETURNING balance, version",
    )
    .bind(account_id)
    .bind(i64::from(amount.get()))
    .fetch_one(&mut *transaction)
    .await?;
    let payload = DepositedV1 { account_id, version: account.version, amount: amount.get() };
    let payload = serde_json::to_value(payload)?;
    let event = Event::new("account", account_id, "account.deposited.v1", payload)?.with_trace(trace);
    outbox::append(&mut transaction, &[event]).await?;
    transaction.commit().await?;
    Ok(account)
}

async fn handle(account_id: String, body: Deposit, trace: TraceContext, pool: PgPool) -> Response {
    let (status, body) = match deposit(&pool, &account_id, body.amount, trace).await {
        Ok(Account { balance, version }) => {
            (StatusCode::CREATED, json!({ "balance": balance, "version": version }))
        }
        Err(DepositError::InvalidEvent(error)) => {
            (StatusCode::BAD_REQUEST, json!({ "detail": error.to_string() }))
        }
        Err(error) => {
            eprintln!("deposit to '{account_id}' failed: {error}: {:?}", error.source());
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "detail": "try again later" }))
        }
    };
    with_status(json_body(&body), status).into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let listener = TcpListener::bind(std::env::var("LISTEN")?).await?;
    let trace = warp::header::optional("traceparent")
        .and(warp::header::optional("tracestate"))
        .map(|traceparent, tracestate| TraceContext { traceparent, tracestate });
    let routes = warp::path!("accounts" / String / "deposits")
        .and(warp::post())
        .and(warp::body::content_length_limit(1024))
        .and(warp::body::json())
        .and(trace)
        .and(warp::any().map(move || pool.clone()))
        .then(handle);
    let mut stop = signal(SignalKind::terminate())?;
    let stopped = async move { _ = stop.recv().await };
    warp::serve(routes).incoming(listener).graceful(stopped).run().await;
    Ok(())
}
