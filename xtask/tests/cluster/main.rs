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

use testbed::kubernetes::{Cluster, can_be_a_node};
use testbed::wait;
use xtask::build::Profile;
use xtask::cluster::Site;

/// Generous: images are unpacked and pods started on a machine that is busy with tests.
pub const SOON: Duration = Duration::from_secs(180);

/// Whether this machine cannot be a node; says why.
pub fn no_node() -> bool {
    let why = can_be_a_node().err();
    if let Some(why) = &why {
        eprintln!("skipped: this machine cannot be a node: {why}");
    }
    why.is_some()
}

/// A cluster with the platform on it, for the tests that take minutes; `None` where they do not run.
pub async fn installed() -> Option<Site> {
    if !testbed::long_matrix() || no_node() {
        return None;
    }
    let site = Site::start(Profile::Dev, quiet).await.unwrap();
    site.install(quiet).await.unwrap();
    Some(site)
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
