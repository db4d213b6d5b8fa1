//! A client of the basket API.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::Failure;
use crate::stack::{Stack, TOKEN};

/// How often a command is repeated while the service is busy.
const REPETITIONS: u32 = 30;
/// The service's `Retry-After`.
const PAUSE: Duration = Duration::from_secs(1);

/// A shop's backend.
#[derive(Clone)]
pub struct Shop {
    client: Client,
    base: String,
}

/// What the service answered.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Whether it is the answer to an earlier execution of the same command.
    pub replayed: bool,
    /// Body.
    pub body: Value,
}

impl Shop {
    /// For the stack's API.
    pub fn of(stack: &Stack) -> Shop {
        Shop::at(stack.api_url())
    }

    /// For an API somewhere else, which takes the same token.
    pub fn at(base: String) -> Shop {
        Shop { client: Client::new(), base }
    }

    /// Sends a command under an idempotency key.
    pub async fn send(&self, path: &str, key: &str, body: &Value) -> Result<Answer, Failure> {
        let request = self.client.post(format!("{}{path}", self.base)).bearer_auth(TOKEN);
        let response: Response = request.header("Idempotency-Key", key).json(body).send().await?;
        let (status, headers) = (response.status(), response.headers());
        let replayed = headers.contains_key("idempotent-replayed");
        Ok(Answer { status, replayed, body: response.json().await? })
    }

    /// A whole visit: create, fill, check out.
    pub async fn visit(&self, buyer: &str, items: u32) -> Result<(), Failure> {
        let key = |step: &str| format!("{buyer}-{step}");
        let created = self.expect("/v1/baskets", &key("create"), &json!({"buyer_id": buyer})).await?;
        let id = text(&created, "id");
        for item in 1..=items {
            self.expect(&format!("/v1/baskets/{id}/items"), &key(&format!("item-{item}")), &article(item))
                .await?;
        }
        let payment = json!({"payment_method": "invoice"});
        self.expect(&format!("/v1/baskets/{id}/checkout"), &key("checkout"), &payment).await.map(drop)
    }

    /// One event of every type.
    pub async fn everything(&self) -> Result<(), Failure> {
        let basket = async |buyer: &str| {
            let created =
                self.expect("/v1/baskets", &format!("{buyer}-create"), &json!({"buyer_id": buyer})).await?;
            Ok::<_, Failure>(format!("/v1/baskets/{}", text(&created, "id")))
        };
        let first = basket("first").await?;
        self.expect(&format!("{first}/items"), "first-item", &article(1)).await?;
        let item = format!("{first}/items/article-1");
        self.change(Method::PATCH, &item, Some(json!({"quantity": 3}))).await?;
        self.change(Method::DELETE, &item, None).await?;
        self.expect(&format!("{first}/items"), "second-item", &article(2)).await?;
        self.change(Method::DELETE, &format!("{first}/items"), None).await?;
        self.change(Method::DELETE, &first, None).await?;
        self.visit("second", 2).await
    }

    /// A command that needs no key.
    async fn change(&self, method: Method, path: &str, body: Option<Value>) -> Result<(), Failure> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await?.error_for_status()?;
        Ok(())
    }

    /// Sends a command until it succeeds. A busy service answers 503; the key makes the repetition safe.
    async fn expect(&self, path: &str, key: &str, body: &Value) -> Result<Value, Failure> {
        let mut repetitions = 0..REPETITIONS;
        loop {
            let answer = self.send(path, key, body).await?;
            if answer.status.is_success() {
                return Ok(answer.body);
            }
            if answer.status != StatusCode::SERVICE_UNAVAILABLE || repetitions.next().is_none() {
                return Err(format!("{path} answered {}: {}", answer.status, answer.body).into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A member of an answer that is a text; empty when there is none.
pub fn text<'a>(body: &'a Value, member: &str) -> &'a str {
    body.get(member).and_then(Value::as_str).unwrap_or_default()
}

fn article(number: u32) -> Value {
    json!({
        "sku": format!("article-{number}"),
        "name": format!("Article {number}"),
        "quantity": number,
        "unit_price": {"amount": 100 * number, "currency": "EUR"},
    })
}
