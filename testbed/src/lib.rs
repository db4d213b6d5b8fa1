//! Real servers on one machine, load, and the checker: what a promise is proven with.
//!
//! - [`postgres`], [`kafka`]: servers that can be stopped, killed, paused and started again; fetched once
//!   ([`cache`]) and never left behind ([`guard`]).
//! - [`kubernetes`]: a control plane, built once, and a node that runs [`images`]; [`prometheus`]: what scrapes,
//!   and what tests [`alerts`]; [`dashboard`].
//! - [`browser`]: Chromium, for the pages that programs serve.
//! - [`certificates`]: CAs, and certificates of servers and clients; [`issuer`]: tokens.
//! - [`process`]: a product's binary under the same control.
//! - [`proxy`]: a network that resets, goes silent, is slow, or breaks inside a message.
//! - [`shared`]: one PostgreSQL and one Kafka for many tests, each with its own [`Database`] and topics.
//! - [`documents`]: the commands that documents show.
//! - [`log_ends`]: how much is in Kafka and since when, without reading it.
//! - [`load`], [`records`], [`checker`]: what was committed, what is in Kafka, and whether that is right.
//!
//! No product crate is used here, so the checker shares no code with what it checks.

use std::fs;
use std::path::Path;

pub mod alerts;
pub mod browser;
pub mod cache;
pub mod certificates;
pub mod checker;
pub mod dashboard;
pub mod documents;
mod error;
mod go;
pub mod guard;
pub mod images;
pub mod issuer;
pub mod java;
pub mod kafka;
pub mod kubernetes;
pub mod load;
pub mod log_ends;
pub mod lua;
pub mod metrics;
pub mod net;
pub mod node;
pub mod other_producer;
mod packages;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod python;
pub mod records;
pub mod rust;
pub mod shared;
pub mod wait;

pub use error::Error;
pub use shared::{Database, shared, unique};

/// The repository's migrations, in the order of their versions, as SQL.
///
/// # Errors
/// The folders cannot be read: the testbed runs inside the repository only.
pub fn migrations() -> Result<Vec<String>, Error> {
    migrations_in(&["outbox", "basket"])
}

/// Those of the outbox's tables, which every service applies.
///
/// # Errors
/// As [`migrations`].
pub fn outbox_migrations() -> Result<Vec<String>, Error> {
    migrations_in(&["outbox"])
}

fn migrations_in(folders: &[&str]) -> Result<Vec<String>, Error> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut files = Vec::new();
    for folder in folders {
        files.extend(cache::files(&root.join(folder))?);
    }
    files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files.iter().map(|path| fs::read_to_string(path).map_err(Error::file("read", path))).collect()
}

/// Environment variable by which `cargo xtask test --all` asks for the long matrix.
pub const LONG_MATRIX: &str = "OUTBOX_TEST_ALL";

/// Whether the tests run that take minutes each: the same on every supported version, literal durations, large numbers.
pub fn long_matrix() -> bool {
    std::env::var_os(LONG_MATRIX).is_some()
}

/// Does what takes its time, such as a build, beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|join| Error::system("wait for what runs beside the tests")(std::io::Error::other(join)))?
}
