//! `cargo xtask cluster`: the platform on a real Kubernetes of its own, installed as docs/INSTALL.md says.

pub mod guide;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::kubernetes::{Kubernetes, Servers};
use testbed::records::{Record, read_all};
use testbed::wait;

use self::guide::Guide;
use crate::build::{self, Profile};
use crate::images;
use crate::paint::{faint, good, heading};
use crate::{Failure, stack};

/// What image names begin with: no registry has it, so that nothing is ever pulled.
pub const REGISTRY: &str = "outbox.local";
/// From the request to the record, on a machine that is busy with tests.
const ARRIVAL_WITHIN: Duration = Duration::from_secs(120);

/// Options of `cluster`.
#[derive(Args, Debug)]
pub struct Options {
    /// Stay up until interrupted, and say what to try.
    #[arg(long)]
    keep: bool,
    /// Programs as tests build them: sooner there, slower and larger.
    #[arg(long)]
    dev: bool,
}

/// A cluster with the platform's images, PostgreSQL and Kafka.
pub struct Site {
    /// The cluster.
    pub cluster: Kubernetes,
    /// PostgreSQL and Kafka in it.
    pub servers: Servers,
}

impl Site {
    /// Starts it; nothing of the platform is installed yet.
    pub async fn start(profile: Profile, progress: impl Fn(&str)) -> Result<Site, Failure> {
        let archives = tokio::task::spawn_blocking(move || images::make(profile, REGISTRY)).await??;
        progress("the images are built");
        let cluster = Kubernetes::with_node().await?;
        progress("Kubernetes is up: one node");
        for archive in &archives {
            cluster.import(archive)?;
        }
        let servers = cluster.servers().await?;
        progress("PostgreSQL and Kafka are up, as pods");
        Ok(Site { cluster, servers })
    }

    /// Follows docs/INSTALL.md to the first record.
    pub async fn install(&self, progress: impl Fn(&str)) -> Result<Record, Failure> {
        let guide = Guide::read()?;
        let mut postgres = PgConnection::connect(&self.servers.postgres_url("postgres")).await?;
        // One by one: a database is not made in a transaction.
        for statement in &guide.sql {
            sqlx::raw_sql(AssertSqlSafe(statement.as_str())).execute(&mut postgres).await?;
        }
        for commands in &guide.commands {
            progress(commands);
            self.shell(commands).await?;
        }
        self.record(1).await
    }

    /// Runs commands in a shell, as an administrator in the repository's folder; answers what they printed.
    pub async fn shell(&self, commands: &str) -> Result<String, Failure> {
        let tools = self.cluster.tools()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&path)))?;
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-euc", commands]).current_dir(build::repository()).kill_on_drop(true);
        shell.env("PATH", path).env("KUBECONFIG", self.cluster.kubeconfig());
        shell.env("REGISTRY", REGISTRY).env("POSTGRES", self.servers.postgres_host());
        shell.env("KAFKA", self.servers.kafka_host());
        let output = shell.stdin(std::process::Stdio::null()).output().await?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{commands}\nfailed: {printed}{said}{}", self.what_is_wrong().await).into())
    }

    /// The basket topic's record number `count`, which may be on its way.
    pub async fn record(&self, count: usize) -> Result<Record, Failure> {
        let bootstrap = self.servers.kafka_bootstrap();
        let records = wait::until(format!("{count} records"), ARRIVAL_WITHIN, async || {
            let records = read_all(&bootstrap, &[stack::TOPIC]).await.map_err(|error| error.to_string())?;
            if records.len() >= count { Ok(records) } else { Err(format!("{} records", records.len())) }
        });
        records.await?.pop().ok_or_else(|| "there is no record".into())
    }

    /// For errors: what the cluster says of pods that do not run.
    async fn what_is_wrong(&self) -> String {
        let mut said = String::new();
        for question in [
            ["get", "pods,jobs,outboxrelays", "--all-namespaces"].as_slice(),
            ["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"].as_slice(),
        ] {
            said.push_str(&self.cluster.kubectl(question).await.unwrap_or_else(|error| error.to_string()));
        }
        said
    }
}

/// Installs everything on a cluster of its own and shows an event in Kafka.
pub async fn run(options: &Options) -> Result<(), Failure> {
    build::require_tools()?;
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    println!("{}", heading("A cluster"));
    let site = Site::start(profile, |what| println!("  {what}")).await?;
    println!("{}", heading("docs/INSTALL.md, word for word"));
    let began = Instant::now();
    let record = site.install(|commands| println!("{}", faint(commands))).await?;
    let event = record.header("ce_type").unwrap_or_default();
    println!("  {} in Kafka, {} s after the first command", good(event), began.elapsed().as_secs());
    if options.keep {
        keep(&site.cluster).await?;
    }
    Ok(())
}

async fn keep(cluster: &Kubernetes) -> Result<(), Failure> {
    let folders: Vec<String> = cluster.tools()?.iter().map(|folder| folder.display().to_string()).collect();
    println!("{}", heading("Try"));
    println!("  export KUBECONFIG={} PATH={}:$PATH", cluster.kubeconfig().display(), folders.join(":"));
    for command in [
        "kubectl get pods -A",
        "kubectl -n shop describe obr shop-basket-api",
        "kubectl -n shop logs deployment/shop-basket-api-relay",
        "kubectl -n shop delete pod -l app.kubernetes.io/name=outbox-relay",
        "helm -n shop upgrade shop charts/basket-api --reuse-values --set replicas=3",
    ] {
        println!("  {command}");
    }
    println!("{}", faint("Ctrl-C ends the cluster and removes it."));
    std::future::pending().await
}

/// Whether this machine can be a node.
pub fn is_possible() -> bool {
    Path::new("/usr/bin/apt-get").exists()
        && std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
