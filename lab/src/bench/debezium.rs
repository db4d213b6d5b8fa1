//! Debezium as a reader: Debezium Server with its Kafka sink, or its connector in Kafka Connect standalone. Both are fetched once, as the
//! servers of the testbed are.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use testbed::process::{Launch, Program};
use testbed::{java, net};

use super::site::Site;
use crate::Failure;
use crate::build;

const RELEASE: &str = "3.6.1.Final";
/// What Debezium Server of this release is compiled for. The connector runs on it too, so that both have the same virtual machine.
const JAVA: u32 = 21;
/// The cache entry of the libraries that `debezium/pom.xml` names; it changes with them.
const CONNECT: &str = "debezium-connect-3.6.1.Final-1";
/// A thread pool of Debezium Server resets thread locals, which a newer virtual machine forbids without it.
const OPENED: &str = "--add-opens=java.base/java.lang=ALL-UNNAMED";

/// In which form Debezium runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Distribution {
    /// Debezium Server.
    #[value(name = "debezium-server")]
    Server,
    /// Kafka Connect standalone.
    #[value(name = "debezium-connect")]
    Connect,
}

/// How Debezium is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// Only what it needs to deliver the outbox.
    Default,
    /// For a backlog.
    Throughput,
    /// For live traffic.
    Latency,
}

/// Debezium, fetched and configured.
#[derive(Clone, Debug)]
pub struct Debezium {
    distribution: Distribution,
    settings: Settings,
    java: PathBuf,
    home: PathBuf,
    java_options: Vec<String>,
}

impl Debezium {
    /// Fetches the distribution if need be.
    pub fn fetch(
        distribution: Distribution,
        settings: Settings,
        java_options: &[String],
    ) -> Result<Debezium, Failure> {
        let home = match distribution {
            Distribution::Server => java::distribution("io.debezium", "debezium-server-dist", RELEASE)?,
            Distribution::Connect => {
                java::libraries(CONNECT, &build::repository().join("lab/src/bench/debezium"))?
            }
        };
        let java = java::at_least(JAVA)?;
        Ok(Debezium { distribution, settings, java, home, java_options: java_options.to_vec() })
    }

    /// What tables call it.
    pub fn name(&self) -> String {
        let distribution = match self.distribution {
            Distribution::Server => "Debezium Server",
            Distribution::Connect => "Debezium in Connect",
        };
        match self.settings {
            Settings::Default => format!("{distribution}, defaults"),
            Settings::Throughput | Settings::Latency => format!("{distribution}, tuned"),
        }
    }

    /// Creates publication and slot, as the relay does for itself.
    pub async fn prepare(&self, site: &Site) -> Result<(), Failure> {
        let publication = "CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)";
        site.database.execute(publication).await?;
        let slot = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", site.slot);
        Ok(site.database.execute(&slot).await?)
    }

    /// Starts it; does not wait.
    pub fn start(&self, site: &Site) -> Result<Program, Failure> {
        let folder = site.folder.path();
        let java = self.java_options.iter().fold(Launch::new(self.name(), &self.java), Launch::arg);
        let program = match self.distribution {
            Distribution::Server => self.server(java.arg(OPENED), folder, site)?,
            Distribution::Connect => self.connect(java, folder, site)?,
        };
        Ok(program.start()?)
    }

    fn server(&self, java: Launch, folder: &Path, site: &Site) -> Result<Launch, Failure> {
        let text = format!(
            "{}{}debezium.sink.kafka.producer.bootstrap.servers={}\nquarkus.http.port={}\n",
            properties(self.distribution, self.settings),
            source("debezium.source.", site),
            site.bootstrap,
            net::free_port()?
        );
        let file = folder.join("application.properties");
        fs::write(&file, text)?;
        let class_path = format!(
            "{home}/debezium-server-dist-{RELEASE}-runner.jar:{}:{home}/lib/*",
            folder.display(),
            home = self.home.display()
        );
        Ok(java.arg("-cp").arg(class_path).arg("io.debezium.server.Main"))
    }

    fn connect(&self, java: Launch, folder: &Path, site: &Site) -> Result<Launch, Failure> {
        let worker = folder.join("worker.properties");
        let text = format!(
            "bootstrap.servers={}\nlisteners=http://127.0.0.1:{}\nplugin.discovery=service_load\n\
             key.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.storage.StringConverter\n{}",
            site.bootstrap,
            net::free_port()?,
            offsets("", site)
        );
        fs::write(&worker, text)?;
        let connector = folder.join("connector.properties");
        fs::write(&connector, properties(self.distribution, self.settings) + &source("", site))?;
        Ok(java
            .arg("-cp")
            .arg(format!("{}/*", self.home.display()))
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .arg(worker)
            .arg(connector))
    }
}

/// The property files that are checked in: what is needed, and then what is tuned.
fn properties(distribution: Distribution, settings: Settings) -> String {
    let (needed, throughput, latency) = match distribution {
        Distribution::Server => (
            include_str!("debezium/server.properties"),
            include_str!("debezium/server-throughput.properties"),
            include_str!("debezium/server-latency.properties"),
        ),
        Distribution::Connect => (
            include_str!("debezium/connect.properties"),
            include_str!("debezium/connect-throughput.properties"),
            include_str!("debezium/connect-latency.properties"),
        ),
    };
    let tuned = match settings {
        Settings::Default => "",
        Settings::Throughput => throughput,
        Settings::Latency => latency,
    };
    format!("{needed}{tuned}")
}

/// Where to read from. The server asks for no password.
fn source(prefix: &str, site: &Site) -> String {
    let offsets = if prefix.is_empty() { String::new() } else { offsets(prefix, site) };
    format!(
        "{prefix}database.hostname=127.0.0.1\n{prefix}database.port={}\n{prefix}database.user=postgres\n\
         {prefix}database.password=none\n{prefix}database.dbname={}\n{prefix}database.sslmode={}\n\
         {prefix}slot.name={}\n{offsets}",
        site.port,
        site.database.name(),
        if site.tls { "require" } else { "disable" },
        site.slot,
    )
}

/// Where Debezium keeps how far it has come.
fn offsets(prefix: &str, site: &Site) -> String {
    format!("{prefix}offset.storage.file.filename={}\n", site.folder.path().join("offsets.dat").display())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Keys and values, each key without its prefix: those of the sink, and those of everything else.
    fn parsed(distribution: Distribution, settings: Settings) -> BTreeMap<String, String> {
        let text = properties(distribution, settings);
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entry = |line: &str| {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no property: {line}"));
            assert!(!key.contains(char::is_whitespace) && !value.trim().is_empty(), "{line}");
            let key = key
                .replace("debezium.sink.kafka.producer.", "producer.override.")
                .replace("debezium.source.", "")
                .replace("debezium.transforms", "transforms");
            (key, value.to_owned())
        };
        let entries: Vec<_> = lines.map(entry).collect();
        let map: BTreeMap<_, _> = entries.iter().cloned().collect();
        assert_eq!(map.len(), entries.len(), "a property is set twice");
        map
    }

    const NEEDED: [(&str, &str); 8] = [
        ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
        ("plugin.name", "pgoutput"),
        ("publication.name", "outbox"),
        ("publication.autocreate.mode", "disabled"),
        ("table.include.list", "public.outbox"),
        ("snapshot.mode", "no_data"),
        ("transforms", "outbox"),
        ("transforms.outbox.type", "io.debezium.transforms.outbox.EventRouter"),
    ];

    #[test]
    fn the_property_files_name_what_debezium_needs_to_deliver_the_outbox() {
        for distribution in [Distribution::Server, Distribution::Connect] {
            for settings in [Settings::Default, Settings::Throughput, Settings::Latency] {
                let found = parsed(distribution, settings);
                for (key, value) in NEEDED {
                    assert_eq!(found.get(key).map(String::as_str), Some(value), "{key} of {distribution:?}");
                }
            }
        }
    }

    #[test]
    fn defaults_tune_nothing_and_both_distributions_are_tuned_alike() {
        let tuned = |distribution, settings| {
            let defaults = parsed(distribution, Settings::Default);
            let mut found = parsed(distribution, settings);
            found.retain(|key, value| defaults.get(key) != Some(value));
            found
        };
        for (settings, decisive) in
            [(Settings::Throughput, "max.batch.size"), (Settings::Latency, "poll.interval.ms")]
        {
            let server = tuned(Distribution::Server, settings);
            assert_eq!(server, tuned(Distribution::Connect, settings));
            assert!(server.contains_key(decisive) && server.contains_key("producer.override.linger.ms"));
            for distribution in [Distribution::Server, Distribution::Connect] {
                let defaults = parsed(distribution, Settings::Default);
                assert!(server.keys().all(|key| !defaults.contains_key(key)), "{distribution:?}");
            }
        }
    }

    #[test]
    fn both_distributions_are_of_one_release() {
        let pom = include_str!("debezium/pom.xml");
        assert!(pom.contains(&format!("<version>{RELEASE}</version>")) && CONNECT.contains(RELEASE));
    }
}
