//! What a user may do with a topic. librdkafka's Rust binding has no requests for ACLs, so Kafka's own client makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{JVM, Kafka, class_path};
use crate::guard::{self, Folder};
use crate::{Error, cache};

const SOURCE: &str = include_str!("Acls.java");

impl Kafka {
    /// Allows `user` operations on a topic, by Kafka's names for them.
    ///
    /// # Errors
    /// The cluster has no authorizer, or does not answer.
    pub async fn allow(&self, user: &str, topic: &str, operations: &[&str]) -> Result<(), Error> {
        self.change_acls("allow", user, topic, operations).await
    }

    /// Takes back what [`Kafka::allow`] gave.
    ///
    /// # Errors
    /// The cluster has no authorizer, or does not answer.
    pub async fn withdraw(&self, user: &str, topic: &str, operations: &[&str]) -> Result<(), Error> {
        self.change_acls("withdraw", user, topic, operations).await
    }

    async fn change_acls(
        &self,
        change: &str,
        user: &str,
        topic: &str,
        operations: &[&str],
    ) -> Result<(), Error> {
        let libraries = self.brokers.first().map(|broker| broker.libraries.clone()).unwrap_or_default();
        let mut arguments = vec![self.bootstrap(), change.to_owned(), user.to_owned(), topic.to_owned()];
        arguments.extend(operations.iter().map(|operation| (*operation).to_owned()));
        let changed = tokio::task::spawn_blocking(move || run(&libraries, &arguments)).await;
        changed.map_err(|join| Error::system("change ACLs")(std::io::Error::other(join)))?
    }
}

fn run(libraries: &Path, arguments: &[String]) -> Result<(), Error> {
    let folder = Folder::new("acls")?;
    let source: PathBuf = folder.path().join("Acls.java");
    std::fs::write(&source, SOURCE).map_err(Error::file("write", &source))?;
    guard::give_away(&source)?;
    let mut java = Command::new("java");
    java.args(JVM).arg("-cp").arg(class_path(libraries)).arg(&source).args(arguments);
    cache::run(guard::unprivileged(&mut java), "java", "a JDK, 17 or newer", "changing ACLs")
}
