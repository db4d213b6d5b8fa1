//! `cargo xtask cluster`: the platform on a separate, real Kubernetes node, installed as docs/INSTALL.md says.

mod existing;
pub mod guide;
pub mod measure;
pub mod prometheus;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testbed::kubernetes::{Cluster, Data, Kubernetes, Servers};
use testbed::records::{Record, read_all};
use testbed::wait;

use self::guide::Guide;
use self::prometheus::Prometheus;
use crate::build::{self, Profile};
use crate::images::{self, LOCAL};
use crate::paint::{faint, good, heading};
use crate::shop::Shop;
use crate::{Failure, stack};

/// From the request to the record, on a machine that is busy with tests.
const ARRIVAL_WITHIN: Duration = Duration::from_secs(120);

/// A line for each pod: its namespace and its name.
const PODS: &str = "custom-columns=:.metadata.namespace,:.metadata.name";

/// Options of `cluster`.
#[derive(Args, Debug)]
pub struct Options {
    /// Stay up until interrupted, and say what to try.
    #[arg(long)]
    keep: bool,
    /// Programs as tests build them: sooner there, slower and larger.
    #[arg(long, conflicts_with = "measure")]
    dev: bool,
    /// Also what the programs use, idle and under 1,000 events per second: three minutes more.
    #[arg(long)]
    measure: bool,
    /// Use this cluster instead of starting one. It has to be one for trying things; this machine has to reach its Services.
    #[arg(long, value_name = "FILE", requires = "import")]
    kubeconfig: Option<PathBuf>,
    /// What makes an image known to that cluster's nodes, given the archive: 'k3s ctr images import', 'kind load image-archive'.
    #[arg(long, value_name = "COMMAND", requires = "kubeconfig")]
    import: Option<String>,
}

/// A cluster with the platform's images, PostgreSQL and Kafka.
pub struct Site {
    /// The cluster.
    pub cluster: Cluster,
    /// PostgreSQL and Kafka in it.
    pub servers: Servers,
    /// Ends with the site; an existing cluster does not.
    _own: Option<Kubernetes>,
}

impl Site {
    /// On a separate node; nothing of the platform is installed yet.
    pub async fn start(profile: Profile, progress: impl Fn(&str)) -> Result<Site, Failure> {
        let archives = built(profile, &progress).await?;
        let own = Kubernetes::with_node().await?;
        progress("Kubernetes is up: one node");
        let servers = fill(&own, &archives, Data::OnTheNode, &progress).await?;
        Ok(Site { cluster: own.clone(), servers, _own: Some(own) })
    }

    /// In an existing cluster.
    async fn within(cluster: Cluster, profile: Profile, progress: impl Fn(&str)) -> Result<Site, Failure> {
        let archives = built(profile, &progress).await?;
        let servers = fill(&cluster, &archives, Data::InPods, &progress).await?;
        Ok(Site { cluster, servers, _own: None })
    }

    /// Follows docs/INSTALL.md to the first record.
    pub async fn install(&self, progress: impl Fn(&str)) -> Result<Record, Failure> {
        self.follow(&Guide::read(guide::FIRST_RECORD)?, progress).await?;
        self.record(1).await
    }

    /// Starts a Prometheus and follows docs/INSTALL.md to being scraped.
    pub async fn monitor(&self, progress: impl Fn(&str)) -> Result<Prometheus, Failure> {
        let prometheus = Prometheus::at(self.cluster.monitoring().await?.url);
        self.follow(&Guide::read(guide::MONITORING)?, progress).await?;
        Ok(prometheus)
    }

    async fn follow(&self, guide: &Guide, progress: impl Fn(&str)) -> Result<(), Failure> {
        let mut postgres = PgConnection::connect(&self.servers.postgres_url("postgres")).await?;
        // One by one: a database is not made in a transaction.
        for statement in &guide.sql {
            progress(statement);
            sqlx::raw_sql(AssertSqlSafe(statement.as_str())).execute(&mut postgres).await?;
        }
        for commands in &guide.commands {
            progress(commands);
            self.shell(commands).await?;
        }
        Ok(())
    }

    /// The basket API by its Service.
    pub async fn shop(&self) -> Result<Shop, Failure> {
        let question =
            ["get", "service", "shop-basket-api", "--namespace=shop", "-o", "jsonpath={.spec.clusterIP}"];
        Ok(Shop::at(format!("http://{}", self.cluster.kubectl(&question).await?)))
    }

    /// Runs commands in a shell, as an administrator in the repository's folder; answers what they printed.
    pub async fn shell(&self, commands: &str) -> Result<String, Failure> {
        let tools = self.cluster.tools()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&path)))?;
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-euc", commands]).current_dir(build::repository()).kill_on_drop(true);
        shell.env("PATH", path).env("KUBECONFIG", self.cluster.kubeconfig());
        shell.env("REGISTRY", LOCAL).env("POSTGRES", self.servers.postgres_host());
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

    /// For errors: what the cluster says of pods that do not run, and the last lines of each program.
    async fn what_is_wrong(&self) -> String {
        let mut said = String::new();
        for question in [
            ["get", "pods,jobs,outboxrelays", "--all-namespaces"].as_slice(),
            ["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"].as_slice(),
        ] {
            said.push_str(&self.answer(question).await);
        }
        let pods = ["get", "pods", "--all-namespaces", "--no-headers", "-o", PODS];
        for pod in self.answer(&pods).await.lines() {
            if let Some((namespace, name)) = pod.split_once(' ')
                && namespace != "servers"
            {
                let (namespace, name) = (format!("--namespace={namespace}"), name.trim());
                let logs = self.answer(&["logs", name, &namespace, "--all-containers", "--tail=15"]).await;
                let _ = write!(said, "\n{name}:\n{logs}");
            }
        }
        said
    }

    /// What kubectl answers, or why it does not.
    async fn answer(&self, question: &[&str]) -> String {
        self.cluster.kubectl(question).await.unwrap_or_else(|error| error.to_string())
    }
}

async fn built(profile: Profile, progress: impl Fn(&str)) -> Result<Vec<PathBuf>, Failure> {
    let archives = tokio::task::spawn_blocking(move || images::make(profile, LOCAL)).await??;
    progress("the images are built");
    Ok(archives)
}

async fn fill(
    cluster: &Cluster,
    archives: &[PathBuf],
    data: Data,
    progress: impl Fn(&str),
) -> Result<Servers, Failure> {
    for archive in archives {
        cluster.import(archive).await?;
    }
    let servers = cluster.servers(data).await?;
    progress("PostgreSQL and Kafka are up, as pods");
    Ok(servers)
}

/// Installs everything and shows an event in Kafka.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    let progress = |what: &str| println!("  {what}");
    println!("{}", heading("A cluster"));
    let Some(kubeconfig) = &options.kubeconfig else {
        let site = Site::start(profile, progress).await?;
        let prometheus = tour(&site, options.measure).await?;
        if options.keep {
            try_this(&site.cluster, &prometheus)?;
            println!("{}", faint("Ctrl-C ends the cluster and removes it."));
            std::future::pending::<()>().await;
        }
        return Ok(());
    };
    let import = options.import.iter().flat_map(|command| command.split_whitespace());
    let cluster = Cluster::existing(kubeconfig, &import.map(str::to_owned).collect::<Vec<_>>()).await?;
    existing::require_room(&cluster).await?;
    let toured = async {
        let site = Site::within(cluster.clone(), profile, progress).await?;
        tour(&site, options.measure).await
    };
    let toured = toured.await;
    if let (true, Ok(prometheus)) = (options.keep, &toured) {
        try_this(&cluster, prometheus)?;
        println!("To remove it all:");
        existing::how_to_remove(&cluster).await?.iter().for_each(|command| println!("  {command}"));
        return Ok(());
    }
    println!("  removing it all");
    let removed = existing::remove(&cluster).await;
    toured.map(drop).and(removed)
}

/// From docs/INSTALL.md's first command to the lag in Prometheus.
async fn tour(site: &Site, measure: bool) -> Result<Prometheus, Failure> {
    println!("{}", heading("docs/INSTALL.md, word for word"));
    let began = Instant::now();
    let record = site.install(|commands| println!("{}", faint(commands))).await?;
    let event = record.header("ce_type").unwrap_or_default();
    let commands = Guide::read(guide::FIRST_RECORD)?.count();
    let seconds = began.elapsed().as_secs();
    println!("  {} in Kafka, {commands} commands and {seconds} s after nothing", good(event));
    println!("{}", heading("Monitoring"));
    let prometheus = site.monitor(|commands| println!("{}", faint(commands))).await?;
    site.shop().await?.visit("ann", 2).await?;
    let lag = prometheus.until_known("outbox_relay_lag_seconds").await?;
    println!("  outbox_relay_lag_seconds in Prometheus: {lag} s");
    if measure {
        measure::run(site, &prometheus).await?;
    }
    Ok(prometheus)
}

fn try_this(cluster: &Cluster, prometheus: &Prometheus) -> Result<(), Failure> {
    let folders: Vec<String> = cluster.tools()?.iter().map(|folder| folder.display().to_string()).collect();
    println!("{}", heading("Try"));
    println!("  export KUBECONFIG={} PATH={}:$PATH", cluster.kubeconfig().display(), folders.join(":"));
    for command in [
        "kubectl get pods -A",
        "kubectl -n shop describe obr shop-basket-api",
        "kubectl -n shop logs -f deployment/shop-basket-api-relay",
        "kubectl -n shop delete pod -l app.kubernetes.io/name=outbox-relay",
        "helm -n shop upgrade shop charts/basket-api --reset-then-reuse-values --set replicas=3",
    ] {
        println!("  {command}");
    }
    println!("  curl '{}/api/v1/query?query=outbox_relay_lag_seconds'", prometheus.url());
    Ok(())
}
