//! The commands of `cargo xtask`: arguments in, exit code out.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::{
    audit, bench, charts, cluster, contract, crds, demo, images, openapi, paint, sbom, site, soak, test, up,
};

/// Real servers on this machine: show the platform, run it, test it, measure it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A shopping session on real servers, with the relay killed in the middle; ends with a verdict.
    Demo(demo::Options),
    /// The servers, the API and the relay, until interrupted; supervised.
    Up(up::Options),
    /// A real Kubernetes on this machine, with both charts installed as docs/INSTALL.md says, and an event in Kafka.
    Cluster(cluster::Options),
    /// The tests a change must pass.
    Test(test::Options),
    /// Random faults under load, and a verdict; a seed repeats its schedule.
    Soak(soak::Options),
    /// Measurements, side by side in one run; results in target/bench.
    Bench(bench::Options),
    /// The running basket service against its own OpenAPI document.
    Contract(contract::Options),
    /// The images of the programs, without Docker: archives in target/images.
    Images(images::Options),
    /// What the programs are built from against deny.toml (licences, bans, sources), and against what is known of it (advisories).
    Audit(audit::Options),
    /// Write what each program is built from into target/sbom (CycloneDX).
    Sbom,
    /// Write docs/openapi.json, docs/events and docs/asyncapi.json again.
    Openapi,
    /// Write crds/, its copy in the chart, and the tables of fields and reasons again.
    Crds,
    /// Write the tables of values in the charts' READMEs again.
    Charts,
    /// Build the documents as a site into target/site.
    Site,
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // Being interrupted is how these end; the others have not finished.
    let runs_until_stopped = matches!(command, Command::Up(_) | Command::Cluster(_));
    let run = async {
        match command {
            Command::Demo(options) => demo::run(&options).await,
            Command::Up(options) => up::run(options).await,
            Command::Cluster(options) => cluster::run(&options).await,
            Command::Test(options) => test::run(&options).await,
            Command::Soak(options) => soak::run(&options).await,
            Command::Bench(options) => bench::run(&options).await,
            Command::Contract(options) => contract::run(&options).await,
            Command::Images(options) => images::run(&options).await,
            Command::Audit(options) => audit::run(&options).await,
            Command::Sbom => sbom::run(),
            Command::Openapi => openapi::run(),
            Command::Crds => crds::run(),
            Command::Charts => charts::run(),
            Command::Site => site::run().await,
        }
    };
    let ended = tokio::select! {
        ended = run => ended,
        () = stopped() => {
            eprintln!("stopped: removing servers and folders");
            return if runs_until_stopped { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", paint::failure(&failure));
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C or SIGTERM: whatever runs is dropped, and its servers with it.
async fn stopped() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let Ok(mut terminate) = terminate else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use serde_json::{Value, json};

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn cargo_xtask_knows_the_same_commands() {
        let about = |command: &clap::Command| command.get_about().unwrap().to_string();
        let mut ours: Vec<(String, String)> = Arguments::command()
            .get_subcommands()
            .map(|command| (command.get_name().to_owned(), about(command)))
            .collect();
        let mut theirs = xtask::COMMANDS.map(|command| (command.name.to_owned(), command.about.to_owned()));
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_commands_of_the_documents_are_accepted() {
        let parse = |words: &[String]| Arguments::try_parse_from(words).map(drop);
        testbed::documents::accepted("cargo xtask", 3, parse).unwrap();
    }

    #[test]
    fn the_workflow_prepares_the_machine_and_asks_for_commands_that_exist() {
        let file = lab::build::repository().join(".github/workflows/ci.yml");
        let workflow: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(workflow["permissions"], json!({"contents": "read"}));
        let known = Arguments::command();
        let mut asked = 0;
        for (name, job) in workflow["jobs"].as_object().unwrap() {
            assert!(job["timeout-minutes"].is_u64(), "{name} has no time limit");
            for step in job["steps"].as_array().unwrap() {
                if let Some(action) = step["uses"].as_str() {
                    let commit = action.split_once('@').unwrap().1;
                    assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{action}");
                } else if !step["name"].as_str().unwrap().starts_with("Set up") {
                    let mut words = step["run"].as_str().unwrap().split_whitespace();
                    assert_eq!((words.next(), words.next()), (Some("cargo"), Some("xtask")), "{step}");
                    let parsed = known.clone().try_get_matches_from(["xtask"].into_iter().chain(words));
                    assert!(parsed.is_ok(), "{step}: {}", parsed.unwrap_err());
                    asked += 1;
                }
            }
        }
        assert!(asked > 2);
    }
}
