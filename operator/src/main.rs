//! The program `outbox-operator`: arguments, wiring.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::process::exit;
use std::sync::Arc;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use kube::Client;
use outbox_operator::activity::Activity;
use outbox_operator::desired::pod;
use outbox_operator::leadership::{DEFAULT_LEASE, Leadership, LeaseReference};
use outbox_operator::metrics::Metrics;
use outbox_operator::overview::{self, Overview};
use outbox_operator::reconcile::{Context, RelayDefaults};
use outbox_operator::{conditions, controller, doctor, field_table, resource};
use process::{Admin, EXIT_BUG, EXIT_CONFIG, EXIT_UNAVAILABLE, LogFormat, init_logging};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const DEFAULT_LOG_FILTER: &str = "info,librdkafka=off,rdkafka=off";

/// Makes what OutboxRelay resources declare: publication, topics and relay.
#[derive(Parser)]
#[command(
    version = process::version(),
    about,
    after_help = "Exit codes: 0 done, or stopped gracefully; 64 invalid arguments; 69 no Kubernetes API server to be found, the Lease was lost, or 'doctor' found a problem; 70 a bug."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator against the cluster from KUBECONFIG or the in-cluster service account.
    Run(Run),
    /// Check what 'run' with these arguments meets, one line each: ok, warn or problem, and what to do. Changes nothing.
    ///
    /// The API server, the CRD, the account's rights and, with --lease-namespace, whether an operator leads. Run it as the operator's
    /// account. Exit codes: 0 no problem (warnings do not count), 64 invalid arguments, 69 a problem.
    Doctor(Doctor),
    /// Print the custom resource definition (CRD), to be applied: outbox-operator crd | kubectl apply --server-side -f -
    Crd,
    /// Print the resource's fields as a Markdown table.
    Fields,
    /// Print the reasons of its conditions as a Markdown table.
    Reasons,
}

#[derive(Args)]
struct Place {
    /// Namespaces to look at, separated by commas; all, when not given.
    #[arg(long = "namespace", env = "OUTBOX_OPERATOR_NAMESPACE", value_delimiter = ',', value_parser = namespace)]
    namespaces: Vec<String>,
    /// Namespace of the Lease by which one of several operators is chosen; without it, only one may run.
    #[arg(long, env = "OUTBOX_OPERATOR_LEASE_NAMESPACE")]
    lease_namespace: Option<String>,
    /// Name of that Lease. Of the operators with the same one, one acts: they must watch the same namespaces, and others must watch others.
    #[arg(
        long,
        env = "OUTBOX_OPERATOR_LEASE_NAME",
        default_value = DEFAULT_LEASE,
        value_parser = NonEmptyStringValueParser::new()
    )]
    lease_name: String,
}

impl Place {
    fn lease(&self) -> Option<LeaseReference> {
        let name = self.lease_name.clone();
        self.lease_namespace.clone().map(|namespace| LeaseReference { namespace, name })
    }

    /// Each once: two loops over one namespace would do everything twice.
    fn namespaces(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        self.namespaces.iter().filter(|name| seen.insert(*name)).cloned().collect()
    }
}

/// A name that no namespace has would be looked at in vain.
fn namespace(name: &str) -> Result<String, &'static str> {
    let is_inside = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let is_label = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(is_inside)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_label {
        Ok(name.to_owned())
    } else {
        Err("no namespace has such a name; leave it out for all namespaces")
    }
}

fn pod_template(text: &str) -> Result<Value, String> {
    let template: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    pod::check_common(&template)?;
    Ok(template)
}

#[derive(Args)]
struct Doctor {
    #[command(flatten)]
    place: Place,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// Image of relays whose resource names none.
    #[arg(long, env = "OUTBOX_OPERATOR_RELAY_IMAGE")]
    relay_image: String,
    /// Pod template, as YAML or JSON, for all relays: as spec.relay.podTemplate, which is laid over it, as are the resource's other fields.
    #[arg(long, env = "OUTBOX_OPERATOR_RELAY_POD_TEMPLATE", value_parser = pod_template)]
    relay_pod_template: Option<Value>,
    /// Address of the admin listener: a status page at /, and /livez /readyz /metrics /status /log-level.
    #[arg(long, env = "OUTBOX_OPERATOR_LISTEN", default_value = "127.0.0.1:9101")]
    listen: SocketAddr,
    /// How log lines look.
    #[arg(long, env = "OUTBOX_OPERATOR_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

fn main() {
    let arguments: Arguments = process::arguments();
    exit(match arguments.command {
        Command::Run(options) => run(options),
        Command::Doctor(options) => examine(&options),
        Command::Crd => match serde_saphyr::to_string(&resource::definition()) {
            Ok(yaml) => print(&yaml),
            Err(error) => {
                eprintln!("cannot write the CRD: {error}");
                EXIT_BUG
            }
        },
        Command::Fields => print(&field_table::markdown()),
        Command::Reasons => print(&conditions::markdown()),
    })
}

/// The reader of a pipe may close it early.
fn print(text: &str) -> i32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => EXIT_UNAVAILABLE,
        _ => 0,
    }
}

fn run(options: Run) -> i32 {
    let log_level = init_logging(DEFAULT_LOG_FILTER, options.log_format);
    process::exit_on_panic();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    runtime.block_on(async {
        let Some(client) = client().await else { return EXIT_UNAVAILABLE };
        let metrics = match Metrics::new() {
            Ok(metrics) => metrics,
            Err(error) => {
                eprintln!("cannot register the metrics: {error}");
                return EXIT_BUG;
            }
        };
        let activity = Activity::new(&metrics);
        let overview = Overview::new(activity.clone());
        let (readiness, status) = (activity.clone(), overview.clone());
        let admin = Admin::new(metrics.registry.clone(), log_level)
            .readiness(move || readiness.readiness())
            .status(move || status.json())
            .page(overview::page());
        match admin.bind(options.listen).await {
            Ok((_, listener)) => drop(tokio::spawn(listener)),
            Err(error) => {
                eprintln!("invalid arguments: --listen: {error}");
                return EXIT_CONFIG;
            }
        }
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(stop_on_signal(stop));
        let namespaces = options.place.namespaces();
        tracing::info!(?namespaces, version = process::version(), "outbox-operator starts");
        match options.place.lease() {
            Some(lease) => {
                let work = work(client.clone(), &options, metrics, activity, &overview, stopping.clone());
                lead(client, &lease, work, stopping).await
            }
            None => {
                work(client, &options, metrics, activity, &overview, stopping).await;
                stopped()
            }
        }
    })
}

/// The runtime, or the exit code.
fn runtime() -> Result<Runtime, i32> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        eprintln!("cannot start the runtime: {error}");
        EXIT_BUG
    })
}

async fn client() -> Option<Client> {
    let client = Client::try_default().await;
    let refused =
        |error| eprintln!("no Kubernetes API server to be found: {error}; set KUBECONFIG, or run in a pod");
    client.map_err(refused).ok()
}

fn examine(options: &Doctor) -> i32 {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let (namespaces, lease) = (options.place.namespaces(), options.place.lease());
    runtime.block_on(async {
        let Some(client) = client().await else { return EXIT_UNAVAILABLE };
        process::report(&doctor::examine(&client, &namespaces, lease.as_ref()).await, options.json)
    })
}

/// Reconciles the resources until it is asked to stop.
async fn work(
    client: Client,
    options: &Run,
    metrics: Metrics,
    activity: Activity,
    overview: &Overview,
    stopping: watch::Receiver<bool>,
) {
    activity.on_lead();
    let (stores, loops) = controller::watch(&client, &options.place.namespaces(), &metrics, &activity);
    overview.on_watch(&stores);
    let defaults = RelayDefaults {
        image: options.relay_image.clone(),
        pod_template: options.relay_pod_template.clone(),
    };
    let context = Context::new(client, defaults, stores, metrics);
    controller::run(loops, Arc::new(context), stopping).await;
}

/// Does `work` while this process holds the Lease.
async fn lead(
    client: Client,
    lease: &LeaseReference,
    work: impl Future<Output = ()>,
    mut stopping: watch::Receiver<bool>,
) -> i32 {
    // A pod's name is its host's; the number tells two processes of one machine apart.
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "outbox-operator".to_owned());
    let identity = format!("{host}-{}", std::process::id());
    let mut leadership = tokio::select! {
        leadership = Leadership::acquire(client, lease, identity) => leadership,
        _ = stopping.wait_for(|stop| *stop) => return stopped(),
    };
    tracing::info!(lease = lease.name, "leads");
    if leadership.while_held(work).await {
        leadership.release().await;
        return stopped();
    }
    tracing::error!("the Lease is lost: another may act, so this process ends");
    EXIT_UNAVAILABLE
}

fn stopped() -> i32 {
    tracing::info!("stopped gracefully");
    0
}

async fn stop_on_signal(stop: watch::Sender<bool>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: finishing reconciliations in progress");
    stop.send_replace(true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_documents_are_accepted() {
        let parse = |words: &[String]| Arguments::try_parse_from(words).map(drop);
        testbed::documents::accepted("outbox-operator", 1, parse).unwrap();
    }

    fn namespaces(given: &str) -> Option<Vec<String>> {
        let arguments = ["outbox-operator", "doctor", "--namespace", given];
        match Arguments::try_parse_from(arguments).ok()?.command {
            Command::Doctor(options) => Some(options.place.namespaces()),
            _ => None,
        }
    }

    #[test]
    fn each_namespace_is_looked_at_once() {
        assert_eq!(namespaces("b,a,b,a").unwrap(), ["b", "a"]);
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        for given in ["", "a,", "a, b", "A", "-a", "a-", "a.b", &"a".repeat(64)] {
            assert_eq!(namespaces(given), None, "{given:?}");
        }
    }
}
