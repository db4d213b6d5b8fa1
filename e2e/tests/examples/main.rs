//! The examples keep the contract between writers, relay and consumers, on real servers, with the relay as it is shipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod contract;
mod env;
mod languages;
mod records;
mod rust;
mod sql;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use lab::build::{self, Profile};

/// Generous: programs start on a machine that is busy with tests.
const TIMEOUT: Duration = Duration::from_secs(180);

/// The folder with the relay and the examples in Rust, built once.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| build::examples(Profile::Dev).unwrap());

/// Writes deposits through an outbox.
trait Writer {
    /// Deposits `amount` in the trace of `traceparent`. The error says why it failed.
    async fn deposit(&self, account: &str, amount: u32, traceparent: &str) -> Result<(), String>;
}
