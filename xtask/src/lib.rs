//! The commands of `cargo xtask`, and what each of them needs.

pub mod tools;

use self::tools::Needs;

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// As it is typed.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// What has to be on the machine.
    pub needs: Needs,
}

const fn command(name: &'static str, needs: Needs, about: &'static str) -> Command {
    Command { name, about, needs }
}

/// All of them. A test in `lab` compares them with the commands that run.
pub const COMMANDS: [Command; 14] = [
    command(
        "demo",
        Needs::Servers,
        "A shopping session on real servers, with the relay killed in the middle; ends with a verdict",
    ),
    command("up", Needs::Servers, "The servers, the API and the relay, until interrupted; supervised"),
    command(
        "cluster",
        Needs::Cluster,
        "A real Kubernetes on this machine, with both charts installed as docs/INSTALL.md says, and an event in Kafka",
    ),
    command("test", Needs::Tests, "The tests a change must pass"),
    command("soak", Needs::Servers, "Random faults under load, and a verdict; a seed repeats its schedule"),
    command("bench", Needs::Servers, "Measurements, side by side in one run; results in target/bench"),
    command("contract", Needs::Tests, "The running basket service against its own OpenAPI document"),
    command("images", Needs::Build, "The images of the programs, without Docker: archives in target/images"),
    command(
        "audit",
        Needs::Build,
        "What the programs are built from against deny.toml (licences, bans, sources), and against what is known of it (advisories)",
    ),
    command("sbom", Needs::Build, "Write what each program is built from into target/sbom (CycloneDX)"),
    command("openapi", Needs::Build, "Write docs/openapi.json, docs/events and docs/asyncapi.json again"),
    command(
        "crds",
        Needs::Build,
        "Write crds/, its copy in the chart, and the tables of fields and reasons again",
    ),
    command("charts", Needs::Build, "Write the tables of values in the charts' READMEs again"),
    command("site", Needs::Build, "Build the documents as a site into target/site"),
];

/// The list of commands, as `--help` shows it.
pub fn help() -> String {
    let width = COMMANDS.iter().map(|command| command.name.len()).max().unwrap_or_default();
    let rows = COMMANDS.map(|Command { name, about, .. }| format!("  {name:width$}  {about}"));
    format!(
        "Real servers on this machine: show the platform, run it, test it, measure it.\n\n\
         Usage: cargo xtask <COMMAND>\n\nCommands:\n{}\n\n\
         cargo xtask <COMMAND> --help shows a command's options.",
        rows.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::help;

    #[test]
    fn the_help_has_a_line_for_each_command() {
        assert!(help().contains("\n  demo      A shopping session"), "{}", help());
    }
}
