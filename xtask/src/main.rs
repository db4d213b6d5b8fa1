//! `cargo xtask`: says what this machine lacks for a command, and runs the command in the package `lab`.
//!
//! `lab` compiles for minutes the first time, a Kafka client in C among it. This package depends on nothing, so that help, and what is
//! missing, are there within seconds.

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use xtask::tools::missing;
use xtask::{COMMANDS, help};

/// That of clap, with which the commands read their own arguments.
const INVALID_ARGUMENTS: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let first = arguments.first().and_then(|argument| argument.to_str()).unwrap_or_default();
    if ["-h", "--help", "help"].contains(&first) {
        println!("{}", help());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == first) else {
        if !arguments.is_empty() {
            eprintln!("error: there is no command '{first}'\n");
        }
        eprintln!("{}", help());
        return ExitCode::from(INVALID_ARGUMENTS);
    };
    let missing = missing(command.needs);
    if !missing.is_empty() {
        eprintln!("error: {}", missing.join("\n       "));
        return ExitCode::FAILURE;
    }
    let Err(error) = run(arguments);
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Returns only if the command cannot be built or started.
fn run(arguments: Vec<OsString>) -> Result<Infallible, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the features of the whole workspace: with those of one package, what tests build later would be compiled a second time.
    if !Command::new(cargo).args(["build", "--workspace", "--bin", "lab"]).status()?.success() {
        return Err("the package lab could not be built".into());
    }
    let program = env::current_exe()?.with_file_name("lab");
    // In place of this process, so that signals reach the command.
    Err(Command::new(program).args(arguments).exec().into())
}
