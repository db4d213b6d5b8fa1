//! Real Apache Kafka brokers (KRaft), one or three.

mod acl;
mod batches;
mod properties;
mod security;
mod topics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use uuid::Uuid;

use crate::guard::{self, Folder};
use crate::process::{Launch, Program};
use crate::proxy::Proxy;
use crate::{Error, cache, net, wait};

pub use batches::Batches;
use properties::{Ports, properties};
pub use security::{BrokerTls, Login, Security, TokenCheck};
pub use topics::{alter_topic, create_topic, delete_records, delete_topic, grow_topic};

const RELEASE: &str = "4.3.1";
const READY_WITHIN: Duration = Duration::from_secs(90);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// A broker for tests starts twice as fast without the optimising compiler, and needs no more memory than this.
const JVM: [&str; 4] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Xshare:auto"];

/// What brokers to start.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// 1 or 3. With three, internal topics have three replicas and `min.insync.replicas` is 2.
    pub brokers: usize,
    /// Lines of `server.properties`, after the testbed's own.
    pub settings: Vec<(String, String)>,
    /// Whether a topic is made by being asked for. Off: a typing error should show.
    pub auto_create_topics: bool,
    /// Whether every broker has a second listener, which clients reach through a separate [`Proxy`].
    pub proxied: bool,
    /// A listener that demands proof, beside the plain one.
    pub security: Option<Security>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        KafkaOptions {
            brokers: 1,
            settings: Vec::new(),
            auto_create_topics: false,
            proxied: false,
            security: None,
        }
    }
}

/// One broker, which is a controller too.
pub struct Broker {
    number: usize,
    port: u16,
    libraries: PathBuf,
    folder: Folder,
    program: Option<Program>,
}

/// A cluster. Dropping it ends it and removes its files.
pub struct Kafka {
    options: KafkaOptions,
    ports: Vec<Ports>,
    brokers: Vec<Broker>,
    proxies: Vec<Proxy>,
}

impl Kafka {
    /// Fetches Kafka if need be and starts a cluster; returns when it takes requests.
    ///
    /// # Errors
    /// A tool is missing, the registry cannot be reached, or a broker does not come up; the error shows its log.
    pub async fn start(options: KafkaOptions) -> Result<Kafka, Error> {
        let libraries = tokio::task::spawn_blocking(libraries)
            .await
            .map_err(|join| Error::system("prepare Kafka")(std::io::Error::other(join)))??;
        let (mut ports, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..options.brokers {
            let mut its = Ports {
                clients: net::free_port()?,
                controller: net::free_port()?,
                proxied: None,
                secure: None,
            };
            if options.security.is_some() {
                its.secure = Some(net::free_port()?);
            }
            if options.proxied {
                let target = net::free_port()?;
                let proxy = Proxy::before(target).await?;
                its.proxied = Some((target, proxy.port()));
                proxies.push(proxy);
            }
            ports.push(its);
        }
        let cluster = Uuid::new_v4();
        let mut brokers = Vec::new();
        for (index, its) in ports.iter().enumerate() {
            brokers.push(Broker {
                number: index + 1,
                port: its.clients,
                libraries: libraries.clone(),
                folder: Folder::new("kafka")?,
                program: None,
            });
        }
        let mut kafka = Kafka { options, ports, brokers, proxies };
        kafka.configure()?;
        for broker in &kafka.brokers {
            broker.format(&cluster.simple().to_string(), kafka.options.security.as_ref())?;
        }
        kafka.start_again().await?;
        Ok(kafka)
    }

    /// Gives the listener that demands proof other certificates and credentials, from the brokers' next start on. Users of
    /// SCRAM are part of the cluster's storage and stay as they are.
    pub fn secure_differently(&mut self, security: Security) -> Result<(), Error> {
        self.options.security = Some(security);
        self.configure()
    }

    fn configure(&self) -> Result<(), Error> {
        for (index, broker) in self.brokers.iter().enumerate() {
            let folder = broker.folder.path();
            let mut text = properties(&self.options, index, &self.ports, folder);
            if let Some(security) = &self.options.security {
                text.push_str(&security.properties(folder)?);
            }
            let path = folder.join("server.properties");
            fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        Ok(())
    }

    /// `host:port` of every broker.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> =
            self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port)).collect();
        addresses.join(",")
    }

    /// The same by way of the proxies, which clients that start here keep to.
    pub fn proxied_bootstrap(&self) -> String {
        let addresses: Vec<String> =
            self.proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port())).collect();
        addresses.join(",")
    }

    /// The proxy before each broker, when the options asked for them.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// `host:port` of every broker's listener that demands proof. By name, because certificates are for names.
    pub fn secure_bootstrap(&self) -> String {
        let secure = self.ports.iter().filter_map(|its| its.secure);
        secure.map(|port| format!("localhost:{port}")).collect::<Vec<_>>().join(",")
    }

    /// The brokers; numbered from 0 here.
    pub fn brokers(&mut self) -> &mut [Broker] {
        &mut self.brokers
    }

    /// Process numbers of the brokers that run.
    pub fn pids(&self) -> Vec<u32> {
        self.brokers.iter().filter_map(Broker::pid).collect()
    }

    /// Whether a broker ended without being told to here.
    pub fn has_ended(&mut self) -> bool {
        self.brokers.iter_mut().any(|broker| broker.ended_early().is_some())
    }

    /// Stops every broker in order.
    pub async fn stop(&mut self) -> Result<(), Error> {
        // The last one to leave has no controller left to ask, so all of them at once.
        for broker in &self.brokers {
            broker.terminate()?;
        }
        for broker in &mut self.brokers {
            broker.stop().await?;
        }
        Ok(())
    }

    /// kill -9 of every broker.
    pub async fn kill(&mut self) -> Result<(), Error> {
        for broker in &mut self.brokers {
            broker.kill().await?;
        }
        Ok(())
    }

    /// SIGSTOP of every broker.
    pub fn pause(&self) -> Result<(), Error> {
        self.brokers.iter().try_for_each(Broker::pause)
    }

    /// SIGCONT of every broker.
    pub fn resume(&self) -> Result<(), Error> {
        self.brokers.iter().try_for_each(Broker::resume)
    }

    /// Starts every broker that does not run, on its old port, and waits until the cluster takes requests.
    pub async fn start_again(&mut self) -> Result<(), Error> {
        for broker in &mut self.brokers {
            broker.launch()?;
        }
        self.ready().await
    }

    /// Waits until every broker is in the metadata.
    async fn ready(&mut self) -> Result<(), Error> {
        self.until_brokers(self.brokers.len()).await
    }

    /// Waits until the metadata has so many brokers: one that was killed is there for some seconds.
    pub async fn until_brokers(&mut self, expected: usize) -> Result<(), Error> {
        let bootstrap = self.bootstrap();
        let brokers = &mut self.brokers;
        wait::until("a Kafka cluster that takes requests", READY_WITHIN, async || {
            if let Some(ended) = brokers.iter_mut().find_map(Broker::ended_early) {
                return Ok(Err(ended));
            }
            let bootstrap = bootstrap.clone();
            let seen = tokio::task::spawn_blocking(move || broker_count(&bootstrap)).await;
            match seen {
                Ok(Ok(count)) if count == expected => Ok(Ok(())),
                Ok(Ok(count)) => Err(format!("{count} of {expected} brokers in the metadata")),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?
    }
}

impl Broker {
    /// Process number while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.program.as_ref().map(Program::pid)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.terminate()?;
        let Some(mut program) = self.program.take() else { return Ok(()) };
        program.wait(STOPPED_WITHIN).await.map(drop)
    }

    /// kill -9.
    pub async fn kill(&mut self) -> Result<(), Error> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        program.kill().await
    }

    /// SIGSTOP.
    pub fn pause(&self) -> Result<(), Error> {
        self.program.as_ref().map_or(Ok(()), Program::pause)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), Error> {
        self.program.as_ref().map_or(Ok(()), Program::resume)
    }

    fn terminate(&self) -> Result<(), Error> {
        self.program.as_ref().map_or(Ok(()), Program::terminate)
    }

    fn ended_early(&mut self) -> Option<Error> {
        let program = self.program.as_mut()?;
        program.exit_status().map(|_| program.ended_early())
    }

    fn format(&self, cluster: &str, security: Option<&Security>) -> Result<(), Error> {
        let mut storage = Command::new("java");
        storage.args(JVM).arg("-cp").arg(class_path(&self.libraries)).arg("kafka.tools.StorageTool");
        storage
            .args(["format", "-t", &cluster_id(cluster), "-c"])
            .arg(self.folder.path().join("server.properties"))
            .args(security.map(Security::format_arguments).unwrap_or_default());
        cache::run(
            guard::unprivileged(&mut storage),
            "java",
            "a JDK, 17 or newer",
            "formatting Kafka's storage",
        )
    }

    /// Starts it if it does not run.
    fn launch(&mut self) -> Result<(), Error> {
        if self.program.as_mut().is_some_and(|program| program.exit_status().is_none()) {
            return Ok(());
        }
        let mut launch = Launch::new(format!("Kafka broker {}", self.number), "java");
        for option in JVM {
            launch = launch.arg(option);
        }
        let program = launch
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg(security::keys_argument(self.folder.path()))
            .arg("-cp")
            .arg(class_path(&self.libraries))
            .arg("kafka.Kafka")
            .arg(self.folder.path().join("server.properties"))
            .log_to(self.folder.path().join("log"))
            .unprivileged()
            .start()?;
        self.program = Some(program);
        Ok(())
    }
}

pub(crate) fn libraries() -> Result<PathBuf, Error> {
    let entry = cache::entry(
        &format!("kafka-{RELEASE}"),
        &format!("fetching Apache Kafka {RELEASE} (44 MB)"),
        |folder| {
            let artifacts =
                [("org.apache.kafka", "kafka_2.13", RELEASE), ("org.slf4j", "slf4j-simple", "1.7.36")];
            cache::fetch_with_dependencies(&artifacts, folder)
        },
    )?;
    Ok(entry.join("lib"))
}

fn class_path(libraries: &Path) -> String {
    format!("{}/*", libraries.display())
}

/// Kafka's form of a uuid: its bytes in URL-safe base64. Any 22 characters of that alphabet will do.
fn cluster_id(hex: &str) -> String {
    hex.chars().take(21).chain(['A']).collect()
}

fn broker_count(bootstrap: &str) -> Result<usize, rdkafka::error::KafkaError> {
    let consumer: BaseConsumer = client(bootstrap).create()?;
    Ok(consumer.fetch_metadata(None, Duration::from_secs(2))?.brokers().len())
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "testbed")
        .set("log_level", "0")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200");
    config
}
