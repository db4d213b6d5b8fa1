//! The program `outbox-operator`: arguments, configuration, wiring.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kube::CustomResourceExt;
use outbox_operator::fields;
use outbox_operator::resource::OutboxRelay;

/// Makes what OutboxRelay resources declare: publication, slot, topics and relay.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the custom resource definition, to be applied: outbox-operator crd | kubectl apply --server-side -f -
    Crd,
    /// Print the resource's fields as a Markdown table.
    Fields,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crd => match serde_saphyr::to_string(&OutboxRelay::crd()) {
            Ok(yaml) => print(&yaml),
            Err(error) => {
                eprintln!("cannot write the definition: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Fields => print(&fields::markdown()),
    }
}

/// Whoever reads may stop when they have seen enough.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
