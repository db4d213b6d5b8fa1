//! Decodes a Kafka record into an event, or says why it is [`Poison`].

use std::collections::BTreeMap;

use outbox::header::{CE_ID, CE_TYPE, TRACEPARENT};
use rdkafka::Message;
use rdkafka::message::Headers;
use serde::Deserialize;
use uuid::Uuid;

use crate::trace::Trace;

/// An event of an account.
pub struct Event {
    pub id: Uuid,
    pub account_id: String,
    /// Counts the events of the account from 1.
    pub version: i64,
    pub effect: Effect,
    pub trace: Trace,
}

pub enum Effect {
    Deposit(u32),
    /// The event has a type that this consumer does not use. Its version still counts: without it, a gap would be reported.
    Nothing,
}

/// Why a record can never take effect.
#[derive(Debug, thiserror::Error)]
pub enum Poison {
    #[error("header '{0}' is missing or malformed")]
    Header(&'static str),
    #[error("the value is malformed: {0}")]
    Value(#[from] serde_json::Error),
    #[error("version {0} of the account has arrived before, with another event id")]
    VersionReused(i64),
    #[error("the database refuses the values: {0}")]
    Refused(sqlx::Error),
}

/// What all payloads of the topic have. Unknown members are ignored: the writer may add some at any time.
#[derive(Deserialize)]
struct Versioned {
    account_id: String,
    version: i64,
}

#[derive(Deserialize)]
struct DepositedV1 {
    amount: u32,
}

impl Event {
    pub fn decode(message: &impl Message) -> Result<Event, Poison> {
        let headers = headers(message);
        let header = |name: &'static str| headers.get(name).ok_or(Poison::Header(name));
        let id = header(CE_ID)?.parse().map_err(|_| Poison::Header(CE_ID))?;
        let value = message.payload().unwrap_or_default();
        let Versioned { account_id, version } = serde_json::from_slice(value)?;
        let effect = match header(CE_TYPE)?.as_str() {
            "account.deposited.v1" => Effect::Deposit(serde_json::from_slice::<DepositedV1>(value)?.amount),
            _ => Effect::Nothing,
        };
        let trace = Trace::continued(headers.get(TRACEPARENT).map(String::as_str));
        Ok(Event { id, account_id, version, effect, trace })
    }
}

/// Headers as text that PostgreSQL stores.
pub fn headers(message: &impl Message) -> BTreeMap<&str, String> {
    let text = |value: Option<&[u8]>| storable(&String::from_utf8_lossy(value.unwrap_or_default()));
    let headers =
        message.headers().map(|headers| headers.iter().map(|header| (header.key, text(header.value))));
    headers.into_iter().flatten().collect()
}

/// PostgreSQL stores no U+0000 in text, and rejecting a record must always succeed.
pub fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
