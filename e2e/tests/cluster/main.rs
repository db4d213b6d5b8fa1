//! The platform on a real Kubernetes: its images run, its charts install, and faults of the cluster lose and double nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod alerts;
mod existing;
mod faults;
mod release;
mod smoke;
mod traffic;

use std::time::Duration;

use lab::build::Profile;
use lab::cluster::Site;
use testbed::kubernetes::{Cluster, can_be_a_node};
use testbed::wait;
use tokio::sync::{Mutex, MutexGuard};

/// Generous: images are unpacked and pods started on a machine that is busy with tests.
pub const SOON: Duration = Duration::from_secs(180);

/// Two clusters at a time take the processor from each other's servers, however many threads run tests.
static TURN: Mutex<()> = Mutex::const_new(());

/// The turn of a test that starts a node; `None` where this machine cannot be one, and says why.
pub async fn turn() -> Option<MutexGuard<'static, ()>> {
    match can_be_a_node() {
        Ok(()) => Some(TURN.lock().await),
        Err(why) => {
            eprintln!("skipped: this machine cannot be a node: {why}");
            None
        }
    }
}

/// A cluster with the platform on it, for the tests that take minutes; `None` where they do not run.
pub async fn installed() -> Option<(MutexGuard<'static, ()>, Site)> {
    if !testbed::long_matrix() {
        return None;
    }
    let turn = turn().await?;
    let site = Site::start(Profile::Dev, quiet).await.unwrap();
    site.install(quiet).await.unwrap();
    Some((turn, site))
}

/// No progress is shown.
pub fn quiet(_: &str) {}

/// Gives a Deployment or StatefulSet that many pods.
pub async fn scale(site: &Site, what: &str, namespace: &str, replicas: u8) {
    let (namespace, replicas) = (format!("--namespace={namespace}"), format!("--replicas={replicas}"));
    site.cluster.kubectl(&["scale", what, &namespace, &replicas]).await.unwrap();
}

/// Waits until kubectl answers what is expected.
pub async fn until(cluster: &Cluster, question: &[&str], expected: impl Fn(&str) -> bool) {
    wait::until(format!("kubectl {}", question.join(" ")), SOON, async || {
        match cluster.kubectl(question).await {
            Ok(answer) if expected(&answer) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}
