//! What is measured side by side in one run, because this machine at another time is another machine.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use testbed::process::Program;

use super::debezium::{Debezium, Distribution, Settings};
use super::relay;
use super::site::Site;
use crate::Failure;

/// Which readers to compare the relay with.
#[derive(Args, Debug, Serialize)]
pub struct Others {
    /// Folder with an `outbox-relay` of another commit, built with --release.
    #[arg(long, value_name = "FOLDER")]
    against: Option<PathBuf>,
    /// Debezium, at its defaults and tuned; fetched at the first use. Debezium Server is 780 MB and needs Java 21.
    #[arg(long, value_name = "READER", value_delimiter = ',')]
    beside: Vec<Distribution>,
    /// An option for Debezium's virtual machine, such as -Xmx384m.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    java_option: Vec<String>,
}

/// One way from the outbox table to Kafka.
#[derive(Clone, Debug)]
pub enum Reader {
    /// A build of the relay.
    Relay {
        /// What tables call it.
        name: &'static str,
        /// Where its program is.
        programs: PathBuf,
    },
    /// Debezium.
    Debezium(Debezium),
}

/// The build that everything else is compared with.
pub const THIS: &str = "relay";

impl Others {
    /// All that is measured, this build of the relay first. `tuned` is how Debezium is tuned for the scenario.
    pub fn readers(&self, programs: &Path, tuned: Settings) -> Result<Vec<Reader>, Failure> {
        let mut readers = vec![Reader::this(programs)];
        readers.extend(
            self.against.clone().map(|programs| Reader::Relay { name: "relay, other build", programs }),
        );
        for distribution in &self.beside {
            for settings in [Settings::Default, tuned] {
                readers.push(Reader::Debezium(Debezium::fetch(*distribution, settings, &self.java_option)?));
            }
        }
        Ok(readers)
    }
}

/// The order of round `number`: each round another one begins.
pub fn in_turn(readers: &[Reader], number: usize) -> Vec<&Reader> {
    let mut order: Vec<&Reader> = readers.iter().collect();
    order.rotate_left(number % readers.len().max(1));
    order
}

impl Reader {
    /// The build of the relay that everything else is compared with.
    pub fn this(programs: &Path) -> Reader {
        Reader::Relay { name: THIS, programs: programs.to_owned() }
    }

    /// What tables call it.
    pub fn name(&self) -> String {
        match self {
            Reader::Relay { name, .. } => (*name).to_owned(),
            Reader::Debezium(debezium) => debezium.name(),
        }
    }

    /// Makes publication and slot, so that rows written from now on are delivered.
    pub async fn prepare(&self, site: &Site) -> Result<(), Failure> {
        match self {
            Reader::Relay { programs, .. } => relay::prepare(programs, site).await,
            Reader::Debezium(debezium) => debezium.prepare(site).await,
        }
    }

    /// Starts it; does not wait.
    pub fn start(&self, site: &Site) -> Result<Program, Failure> {
        match self {
            Reader::Relay { programs, .. } => relay::start(programs, site),
            Reader::Debezium(debezium) => debezium.start(site),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_begins_with_another_reader_and_has_them_all() {
        let readers = ["a", "b", "c"].map(|name| Reader::Relay { name, programs: PathBuf::new() });
        let names = |number| in_turn(&readers, number).iter().map(|reader| reader.name()).collect::<String>();
        assert_eq!([1, 2, 3, 4].map(names), ["bca", "cab", "abc", "bca"]);
        assert!(in_turn(&[], 1).is_empty());
    }
}
