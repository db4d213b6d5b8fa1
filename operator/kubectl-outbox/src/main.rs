//! The kubectl plugin `kubectl outbox`: all relays in a table, and the commands of one relay by the name of its resource.
//! It asks kubectl for everything, so it has the rights, the cluster and the namespace that kubectl has.

mod kubectl;
mod relays;
mod table;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::kubectl::{Failure, Kubectl};
use self::relays::{Relay, exec_in, find, list};
use self::table::{bytes, print, seconds};

/// Shows OutboxRelay resources with what their relays report, and runs the relay's commands in its pod.
#[derive(Parser)]
#[command(
    name = "kubectl-outbox",
    bin_name = "kubectl outbox",
    version,
    after_help = "Rights: get and list on outboxrelays and pods; get on pods/proxy for lag; create on pods/exec for the others.\n\
    Exit codes: 0 shown; 1 kubectl failed, or there is no such relay; 2 invalid arguments; otherwise those of the relay's command."
)]
struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Cluster {
    /// Namespace. Without it, status and top show all namespaces, and the others use the one of kubectl's context.
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    /// kubectl's context.
    #[arg(long, global = true)]
    context: Option<String>,
    /// kubectl's configuration file.
    #[arg(long, global = true)]
    kubeconfig: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// All relays: whether they are ready, why not, and how far behind they are.
    Status,
    /// All relays, the one furthest behind first, with what they have in flight and the WAL that their slots retain.
    Top,
    /// Run the relay's checks of source and sink in its pod.
    Doctor(Name),
    /// Say what has become of an event: committed, confirmed, acknowledged at topic, partition and offset; or why not.
    Where {
        #[command(flatten)]
        relay: Name,
        /// The event's id.
        id: String,
    },
    /// Compare the outbox table with Kafka: missing, duplicate and out-of-order events, and events without a row.
    Audit {
        #[command(flatten)]
        relay: Name,
        /// Rows written at this time or later, such as 2026-11-24T10:00:00Z; by default those of the last 24 hours.
        #[arg(long)]
        since: Option<String>,
        /// Rows written before this time.
        #[arg(long)]
        until: Option<String>,
        /// Print JSON, with all differences.
        #[arg(long)]
        json: bool,
    },
    /// Have the relay send events of its table again: see 'outbox-relay replay'.
    Replay {
        #[command(flatten)]
        relay: Name,
        #[command(flatten)]
        rows: SelectedRows,
        /// List the events that would be sent, and send nothing.
        #[arg(long)]
        dry_run: bool,
        /// Send: the consumers can take old events of a key behind newer ones. Not needed with --topic.
        #[arg(long, required_unless_present_any = ["dry_run", "topic"], conflicts_with = "dry_run")]
        allow_reorder: bool,
    },
    /// Show the relay's dead letters.
    DeadLetters {
        #[command(flatten)]
        relay: Name,
        /// Only those written at this time or later, such as 2026-11-24T10:00:00Z.
        #[arg(long)]
        since: Option<String>,
        /// At most this many.
        #[arg(long)]
        limit: Option<String>,
    },
}

/// The rows to replay. A row has to meet all criteria.
#[derive(Args)]
struct SelectedRows {
    /// Event id; may be given several times.
    #[arg(long = "id", required_unless_present_any = ["since", "missing"], conflicts_with = "missing")]
    ids: Vec<String>,
    /// Only events written at this time or later, such as 2026-11-24T10:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Only events written before this time.
    #[arg(long)]
    until: Option<String>,
    /// Only events of this type.
    #[arg(long = "type")]
    event_type: Option<String>,
    /// Only events of this key (column aggregateid).
    #[arg(long)]
    key: Option<String>,
    /// Name of the replay, for the header ce_replay; by default the present time.
    #[arg(long)]
    replay_name: Option<String>,
    /// Maximum number of events per second.
    #[arg(long)]
    rate: Option<String>,
    /// Send to this topic, which must exist and be none that the relay delivers to: a consumer's own topic.
    #[arg(long, conflicts_with = "missing")]
    topic: Option<String>,
    /// Only events that are not in Kafka; without --since, of the last 24 hours.
    #[arg(long)]
    missing: bool,
    /// Send those, too, of which it is not known whether they are missing.
    #[arg(long, requires = "missing")]
    include_unverifiable: bool,
    /// A topic that an earlier routing gave; may be given several times. Events there are not missing.
    #[arg(long = "earlier-topic", requires = "missing")]
    earlier_topics: Vec<String>,
}

impl SelectedRows {
    fn arguments(&self) -> Vec<&str> {
        let SelectedRows { since, until, event_type, key, replay_name, rate, topic, .. } = self;
        let ids = self.ids.iter().flat_map(|id| ["--id", id]);
        let earlier = self.earlier_topics.iter().flat_map(|topic| ["--earlier-topic", topic]);
        let missing = self.missing.then_some("--missing");
        let unverifiable = self.include_unverifiable.then_some("--include-unverifiable");
        let others = options(&[
            ("--since", since),
            ("--until", until),
            ("--type", event_type),
            ("--key", key),
            ("--name", replay_name),
            ("--rate", rate),
            ("--topic", topic),
        ]);
        ids.chain(earlier).chain(missing).chain(unverifiable).chain(others).collect()
    }
}

#[derive(Args)]
struct Name {
    /// Name of the OutboxRelay resource.
    name: String,
}

fn main() -> ExitCode {
    let Arguments { cluster, command } = Arguments::parse();
    let Cluster { namespace, context, kubeconfig } = cluster;
    let kubectl = Kubectl::new([("--context", context), ("--kubeconfig", kubeconfig)]);
    run(&kubectl, namespace.as_deref(), command).unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        ExitCode::FAILURE
    })
}

fn run(kubectl: &Kubectl, namespace: Option<&str>, command: Command) -> Result<ExitCode, Failure> {
    let exec = |Name { name }: Name, arguments: &[&str]| {
        let relay = find(kubectl, namespace, &name)?;
        exec_in(kubectl, &relay, arguments)
    };
    match command {
        Command::Status => show(list(kubectl, namespace)?, &STATUS, status_row),
        Command::Top => {
            let mut relays = list(kubectl, namespace)?;
            // Unknown lag last: there is nothing to compare.
            relays
                .sort_by(|a, b| b.lag_seconds().unwrap_or(-1.0).total_cmp(&a.lag_seconds().unwrap_or(-1.0)));
            show(relays, &TOP, top_row)
        }
        Command::Doctor(relay) => exec(relay, &["doctor"]),
        Command::Where { relay, id } => exec(relay, &["where", "--id", &id]),
        Command::Audit { relay, since, until, json } => {
            let mut arguments = vec!["audit"];
            arguments.extend(options(&[("--since", &since), ("--until", &until)]));
            arguments.extend(json.then_some("--json"));
            exec(relay, &arguments)
        }
        Command::Replay { relay, rows, dry_run, .. } => {
            let mut arguments = vec!["replay", if dry_run { "--dry-run" } else { "--allow-reorder" }];
            arguments.extend(rows.arguments());
            exec(relay, &arguments)
        }
        Command::DeadLetters { relay, since, limit } => {
            let mut arguments = vec!["dead-letters", "list"];
            arguments.extend(options(&[("--since", &since), ("--limit", &limit)]));
            exec(relay, &arguments)
        }
    }
}

/// The options that were given, as arguments.
fn options<'a>(options: &[(&'a str, &'a Option<String>)]) -> Vec<&'a str> {
    options.iter().filter_map(|(name, value)| Some([*name, value.as_deref()?])).flatten().collect()
}

const STATUS: [&str; 6] = ["NAMESPACE", "NAME", "READY", "REASON", "LAG", "TOPICS"];
const TOP: [&str; 8] =
    ["NAMESPACE", "NAME", "LAG", "IN FLIGHT", "UNCONFIRMED", "RETAINED", "UNTIL AT RISK", "PHASE"];

/// Prints a line for each relay, and on standard error why one reports nothing.
fn show<const COLUMNS: usize>(
    relays: Vec<Relay>,
    heads: &[&str; COLUMNS],
    row: impl Fn(&Relay) -> [String; COLUMNS],
) -> Result<ExitCode, Failure> {
    if relays.is_empty() {
        eprintln!("No OutboxRelay resources found.");
    } else {
        print(heads, &relays.iter().map(row).collect::<Vec<_>>());
    }
    for relay in &relays {
        if let Err(why) = &relay.report {
            eprintln!("{}/{}: {why}", relay.namespace, relay.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status_row(relay: &Relay) -> [String; 6] {
    let lag = relay.lag_seconds().map_or_else(unknown, seconds);
    let Relay { namespace, name, ready, reason, topics, .. } = relay;
    [namespace.clone(), name.clone(), ready.clone(), reason.clone(), lag, topics.to_string()]
}

fn top_row(relay: &Relay) -> [String; 8] {
    let number = |pointer: &str| relay.member(pointer).and_then(serde_json::Value::as_u64);
    let size = |pointer: &str| number(pointer).map_or_else(unknown, bytes);
    let phase = relay.member("/phase").and_then(serde_json::Value::as_str);
    [
        relay.namespace.clone(),
        relay.name.clone(),
        relay.lag_seconds().map_or_else(unknown, seconds),
        number("/inFlightEvents").map_or_else(unknown, |events| events.to_string()),
        size("/slot/unconfirmedBytes"),
        size("/slot/retainedBytes"),
        size("/slot/safeBytes"),
        phase.map_or_else(unknown, str::to_owned),
    ]
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_documents_are_accepted() {
        let parse = |words: &[String]| Arguments::try_parse_from(words).map(drop);
        testbed::documents::accepted("kubectl outbox", 7, parse).unwrap();
    }
}
