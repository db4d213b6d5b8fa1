//! The API dies again and again under load, and its clients repeat what was not answered: every command that was
//! acknowledged is in the log, in the state and in Kafka, exactly once, and nothing is half done.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lab::build::{self, Profile};
use lab::stack::{Stack, StackOptions, TOKEN, TOPIC};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use testbed::records::read_all;
use testbed::wait;

const CLIENTS: u64 = 8;
const CRASHES: u64 = 20;
const SOON: Duration = Duration::from_secs(180);
/// A client's back-off.
const BEFORE_REPEATING: Duration = Duration::from_millis(20);

/// What all clients know together.
struct Shop {
    client: Client,
    base: String,
    acknowledged: AtomicU64,
    cut: AtomicU64,
    closing: AtomicBool,
}

impl Shop {
    /// Sends a command until it is answered; returns its id in the log, and the basket.
    async fn command(&self, path: &str, key: &str, body: &Value) -> (String, Value) {
        loop {
            let request = self.client.post(format!("{}{path}", self.base)).bearer_auth(TOKEN);
            match request.header("Idempotency-Key", key).json(body).send().await {
                Ok(response) if response.status().is_success() => {
                    let command = response.headers()["command-id"].to_str().unwrap().to_owned();
                    // The head arrived, the body may not: then it was not answered.
                    if let Ok(basket) = response.json().await {
                        self.acknowledged.fetch_add(1, Ordering::SeqCst);
                        return (command, basket);
                    }
                }
                Ok(response) => {
                    let later = [StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE];
                    assert!(later.contains(&response.status()), "{path}: {}", response.text().await.unwrap());
                }
                Err(_) => {
                    self.cut.fetch_add(1, Ordering::SeqCst);
                }
            }
            tokio::time::sleep(BEFORE_REPEATING).await;
        }
    }

    /// Buys until the shop closes: commands and the baskets they led to.
    async fn buy(self: Arc<Shop>, client: u64) -> Bought {
        let mut bought = Bought::default();
        for visit in 0.. {
            if self.closing.load(Ordering::SeqCst) {
                break;
            }
            let key = |step: &str| format!("{client}-{visit}-{step}");
            let created = self.command("/v1/baskets", &key("create"), &json!({"buyer_id": "ann"})).await;
            let path = format!("/v1/baskets/{}", created.1["id"].as_str().unwrap());
            bought.note(created);
            for item in ["a", "b", "a"] {
                let article = json!({"sku": item, "name": "An article", "quantity": 1,
                                     "unit_price": {"amount": 100, "currency": "EUR"}});
                let step = format!("item-{}", bought.commands.len());
                bought.note(self.command(&format!("{path}/items"), &key(&step), &article).await);
            }
            let payment = json!({"payment_method": "card"});
            bought.note(self.command(&format!("{path}/checkout"), &key("checkout"), &payment).await);
        }
        bought
    }
}

#[derive(Default)]
struct Bought {
    commands: BTreeSet<String>,
    /// The last that was answered of each basket.
    baskets: BTreeMap<String, Value>,
}

impl Bought {
    fn note(&mut self, (command, basket): (String, Value)) {
        assert!(self.commands.insert(command), "two commands have one id");
        self.baskets.insert(basket["id"].as_str().unwrap().to_owned(), basket);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_happened_once_however_often_the_service_dies() {
    let programs = build::programs(Profile::Dev).unwrap();
    let quiet = |_: &str| {};
    let mut stack = Stack::servers(StackOptions::default(), programs, quiet).await.unwrap();
    stack.programs(quiet).await.unwrap();
    let shop = Arc::new(Shop {
        client: Client::new(),
        base: stack.api_url(),
        acknowledged: AtomicU64::new(0),
        cut: AtomicU64::new(0),
        closing: AtomicBool::new(false),
    });
    let clients: Vec<_> = (0..CLIENTS).map(|client| tokio::spawn(Arc::clone(&shop).buy(client))).collect();
    for crash in 0..CRASHES {
        // Kills fall wherever the commands are just then.
        let enough = shop.acknowledged.load(Ordering::SeqCst) + 7 + (crash * 13) % 31;
        wait::until(format!("{enough} answers"), SOON, async || {
            let seen = shop.acknowledged.load(Ordering::SeqCst);
            if seen >= enough { Ok(()) } else { Err(seen) }
        })
        .await
        .unwrap();
        stack.api.as_mut().unwrap().kill().await.unwrap();
        stack.start_api().await.unwrap();
    }
    shop.closing.store(true, Ordering::SeqCst);
    let mut bought = Bought::default();
    for client in futures::future::join_all(clients).await {
        let mut client = client.unwrap();
        bought.commands.append(&mut client.commands);
        bought.baskets.append(&mut client.baskets);
    }
    assert!(shop.cut.load(Ordering::SeqCst) > 0, "no request was cut: nothing was tried");
    verify_database(&stack, &bought).await;
    verify_kafka(&stack, &bought).await;
}

async fn verify_database(stack: &Stack, bought: &Bought) {
    let mut sql = PgConnection::connect(&stack.database_url()).await.unwrap();
    let logged: Vec<String> =
        sqlx::query_scalar("SELECT id::text FROM command_log ORDER BY id").fetch_all(&mut sql).await.unwrap();
    // All of the clients' commands were acknowledged in the end, under the id of the execution that counted.
    assert_eq!(logged, bought.commands.iter().cloned().collect::<Vec<_>>());
    let halves = "SELECT count(*) FROM command_log c
                  FULL JOIN idempotency_key k ON k.command_id = c.id
                  FULL JOIN outbox o ON o.headers ->> 'causation-id' = coalesce(c.id, k.command_id)::text
                  WHERE c.id IS NULL OR k.command_id IS NULL OR o.id IS NULL OR c.outcome <> 'accepted'";
    let halves: i64 = sqlx::query_scalar(halves).fetch_one(&mut sql).await.unwrap();
    assert_eq!(halves, 0, "a command, its key or its event without the others");
    let state =
        sqlx::query("SELECT b.id::text, b.version, v.view FROM basket b JOIN basket_view v USING (id)");
    let state = state.fetch_all(&mut sql).await.unwrap();
    assert_eq!(state.len(), bought.baskets.len());
    for row in state {
        let told = &bought.baskets[row.get::<&str, _>(0)];
        assert_eq!(
            (row.get::<i64, _>(1), &row.get::<Value, _>(2)),
            (told["version"].as_i64().unwrap(), told)
        );
        assert_eq!((&told["version"], &told["status"]), (&json!(5), &json!("checked_out")));
    }
}

async fn verify_kafka(stack: &Stack, bought: &Bought) {
    let records = wait::until("all events in Kafka", SOON, async || {
        let records =
            read_all(&stack.kafka.bootstrap(), &[TOPIC]).await.map_err(|error| error.to_string())?;
        if records.len() >= bought.commands.len() { Ok(records) } else { Err(records.len().to_string()) }
    })
    .await
    .unwrap();
    let causes: BTreeSet<String> =
        records.iter().map(|record| record.header("causation-id").unwrap().to_owned()).collect();
    assert_eq!((records.len(), &causes), (bought.commands.len(), &bought.commands), "each event once");
    let mut versions: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    for record in &records {
        let payload: Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        let last = versions.entry(record.key.clone().unwrap().to_vec()).or_default();
        *last += 1;
        assert_eq!(payload["version"], *last, "events of a basket are in order, without holes");
    }
}
