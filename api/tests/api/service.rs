//! A running service with its own database.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};
use testbed::process::{Launch, Program};
use testbed::{Database, net, unique, wait};

pub const TOKEN: &str = "a-token-for-tests-only";
const SOON: Duration = Duration::from_secs(60);

pub struct Service {
    pub database: Database,
    pub program: Program,
    pub client: Client,
    base: String,
    admin: String,
}

impl Service {
    /// On the shared PostgreSQL.
    pub async fn start() -> Service {
        Service::over(Database::fresh("api").await.unwrap()).await
    }

    /// On the shared PostgreSQL, writing commands in this way.
    pub async fn writing(unit_of_work: &str) -> Service {
        // As many at once as a test sends.
        Service::with(&[&format!("--unit-of-work={unit_of_work}"), "--max-requests-per-principal=0"]).await
    }

    /// Over a database that may be anywhere.
    pub async fn over(database: Database) -> Service {
        Service::launch(database, &["--auth=static-token"]).await
    }

    /// With more arguments than `--auth=static-token`.
    pub async fn with(arguments: &[&str]) -> Service {
        let arguments = [&["--auth=static-token"], arguments].concat();
        Service::launch(Database::fresh("api").await.unwrap(), &arguments).await
    }

    /// With these arguments only.
    pub async fn launch(database: Database, arguments: &[&str]) -> Service {
        let url = database.url().to_owned();
        Service::through(database, &url, arguments).await
    }

    /// Over another address of the database: of a proxy, or of several servers.
    pub async fn through(database: Database, url: &str, arguments: &[&str]) -> Service {
        let service = Service::unready(database, url, arguments);
        service.until_ready(200).await;
        service
    }

    /// The same, without waiting until it serves.
    pub fn launch_unready(database: Database, arguments: &[&str]) -> Service {
        let url = database.url().to_owned();
        Service::unready(database, &url, arguments)
    }

    /// Does not wait until it is ready.
    pub fn unready(database: Database, url: &str, arguments: &[&str]) -> Service {
        let (port, admin_port) = (net::free_port().unwrap(), net::free_port().unwrap());
        let program = start(url, port, admin_port, arguments);
        Service::around(database, program, port, admin_port)
    }

    /// A program that was started elsewhere.
    pub fn around(database: Database, program: Program, port: u16, admin_port: u16) -> Service {
        Service {
            database,
            program,
            client: Client::new(),
            base: format!("http://127.0.0.1:{port}"),
            admin: format!("http://127.0.0.1:{admin_port}"),
        }
    }

    /// Another replica on the same database; stopped when dropped.
    pub fn replica(&self, arguments: &[&str]) -> Program {
        start(self.database.url(), net::free_port().unwrap(), net::free_port().unwrap(), arguments)
    }

    /// Waits for an answer of `/readyz`.
    pub async fn until_ready(&self, status: u16) {
        let url = format!("{}/readyz", self.admin);
        wait::until(format!("/readyz {status}"), SOON, async || {
            let response = self.client.get(&url).send().await.map_err(|error| error.to_string())?;
            let seen = response.status().as_u16();
            if seen == status { Ok(()) } else { Err(format!("{seen}")) }
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", self.program.log()));
    }

    /// What `/readyz` says.
    pub async fn readiness(&self) -> String {
        let said = self.client.get(format!("{}/readyz", self.admin)).send().await.unwrap().text().await;
        said.unwrap().trim_end().to_owned()
    }

    /// Waits until a basket can be created.
    pub async fn until_created(&self) {
        wait::until("a basket", SOON, async || {
            let status = self.command("/v1/baskets", &json!({"buyer_id": "ann"})).await.status();
            if status == 201 { Ok(()) } else { Err(status) }
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", self.program.log()));
    }

    pub async fn metrics(&self) -> String {
        self.client.get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await.unwrap()
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        self.base.strip_prefix("http://").unwrap()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(TOKEN)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// Without a token.
    pub async fn anonymous(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    /// A command under `key`.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Response {
        self.request(Method::POST, path).header("Idempotency-Key", key).json(body).send().await.unwrap()
    }

    /// A command under a new key.
    pub async fn command(&self, path: &str, body: &Value) -> Response {
        self.post(path, &unique("key"), body).await
    }

    /// A command that needs no key.
    pub async fn change(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self.request(method, path);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        request.send().await.unwrap()
    }

    /// A new basket's id.
    pub async fn basket(&self) -> String {
        let created = self.command("/v1/baskets", &json!({"buyer_id": "ann"})).await;
        assert_eq!(created.status(), 201);
        created.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    pub async fn sql(&self) -> PgConnection {
        self.database.connect().await.unwrap()
    }

    /// The outbox, in insertion order: type, key, payload, headers.
    pub async fn outbox(&self) -> Vec<(String, String, Value, Value)> {
        let rows = sqlx::query("SELECT type, aggregateid, payload, headers FROM outbox ORDER BY seq");
        let rows = rows.fetch_all(&mut self.sql().await).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
    }

    /// Types of the events in the outbox.
    pub async fn event_types(&self) -> Vec<String> {
        self.outbox().await.into_iter().map(|(event_type, ..)| event_type).collect()
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.sql().await).await.unwrap()
    }

    /// Locks every basket, so that commands wait.
    pub async fn lock_baskets(&self) -> LockedBaskets {
        let mut sql = self.sql().await;
        for statement in ["BEGIN", "SELECT FROM basket FOR UPDATE"] {
            sqlx::query(statement).execute(&mut sql).await.unwrap();
        }
        LockedBaskets(sql)
    }

    /// How many commands wait for a lock.
    pub async fn commands_waiting(&self) -> i64 {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        self.count(waiting).await
    }

    pub async fn until_commands_wait(&self, number: i64) {
        wait::until("commands that wait for a lock", SOON, async || {
            let waiting = self.commands_waiting().await;
            if waiting == number { Ok(()) } else { Err(waiting) }
        })
        .await
        .unwrap();
    }
}

/// A transaction that holds the rows of all baskets.
pub struct LockedBaskets(PgConnection);

impl LockedBaskets {
    pub async fn release(mut self) {
        sqlx::query("ROLLBACK").execute(&mut self.0).await.unwrap();
    }
}

fn start(url: &str, port: u16, admin_port: u16, arguments: &[&str]) -> Program {
    let mut launch = Launch::new("basket-api", env!("CARGO_BIN_EXE_basket-api"))
        .arg("serve")
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg(format!("--admin-listen=127.0.0.1:{admin_port}"))
        .env("BASKET_DATABASE_URL", url)
        .env("BASKET_STATIC_TOKEN", TOKEN);
    for argument in arguments {
        launch = launch.arg(argument);
    }
    launch.start().unwrap()
}

/// Every way of writing commands; tests of what a command writes run over each.
pub const UNITS_OF_WORK: [&str; 2] = ["transaction", "single-statement"];

/// An article.
pub fn tea(quantity: u32) -> Value {
    json!({"sku": "tea", "name": "Tea", "quantity": quantity, "unit_price": {"amount": 350, "currency": "EUR"}})
}

/// The body of a problem, checked for its form.
pub async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("x-request-id"));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert!(body["type"].is_string() && body["title"].is_string() && body["detail"].is_string(), "{body}");
    body
}
