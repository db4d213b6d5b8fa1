//! `cargo xtask contract`: the running service against its own OpenAPI document, by Schemathesis: requests made from
//! the schemas, valid and invalid ones, alone and in sequences, and every answer checked. With `--clients`, also the
//! document by a linter, and the service by a generated client.

mod clients;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use testbed::guard::Folder;
use testbed::python::{self, PYTHON};

use crate::Failure;
use crate::build::{self, Profile};
use crate::stack::{Stack, StackOptions, TOKEN};

/// Name in the cache: the version in `requirements.txt`, whose checks this service is known to pass.
const SCHEMATHESIS: &str = "schemathesis-4.32.5";
/// Where its configuration is.
const FOLDER: &str = "lab/schemathesis";
/// Requests per operation and phase: seconds in all.
const EXAMPLES: u32 = 30;
/// The same requests each time: what a change must pass must not depend on luck. Luck is for `--long`.
const SEED: &str = "1";
/// With `--long`: minutes.
const LONG: u32 = 1000;

/// Options of `contract`.
#[derive(Args, Debug)]
pub struct Options {
    /// Many more requests, others each time: minutes in place of seconds.
    #[arg(long)]
    long: bool,
    /// Also lints the document, and generates, compiles and runs a client. Needs Node.js; part of --long.
    #[arg(long)]
    clients: bool,
    /// Makes the requests of a run again, whose seed its last lines name.
    #[arg(long)]
    seed: Option<String>,
}

/// Starts the service and checks it.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let folder = build::repository().join(FOLDER);
    let packages = python::packages(SCHEMATHESIS, &folder.join("requirements.txt"))?;
    let programs = build::programs(Profile::Dev)?;
    let quiet = |_: &str| {};
    let only_api = StackOptions { relay: false, ..StackOptions::default() };
    let mut stack = Stack::servers(only_api, programs, quiet).await?;
    stack.programs(quiet).await?;
    if options.clients || is_long(options) {
        let api = stack.api_url();
        tokio::task::spawn_blocking(move || clients::check(&api)).await??;
    }
    // It keeps what it found where it runs.
    let scratch = Folder::new("contract")?;
    let mut check = command(&[&packages, &folder], scratch.path(), &stack.api_url(), options)?;
    let ended = tokio::task::spawn_blocking(move || check.status()).await??;
    if let Some(status) = stack.api.as_mut().and_then(|api| api.exit_status()) {
        return Err(format!("the service ended with {status} while it was checked").into());
    }
    if ended.success() {
        Ok(())
    } else {
        Err("the service and its OpenAPI document disagree: see above".into())
    }
}

fn is_long(options: &Options) -> bool {
    options.long || testbed::long_matrix()
}

fn command(modules: &[&PathBuf], scratch: &Path, api: &str, options: &Options) -> Result<Command, Failure> {
    let long = is_long(options);
    let mut command = Command::new(PYTHON);
    let config = build::repository().join(FOLDER).join("schemathesis.toml");
    command
        .current_dir(scratch)
        .env("PYTHONPATH", std::env::join_paths(modules)?)
        .env("SCHEMATHESIS_HOOKS", "hooks")
        // No bytecode in the work tree.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(config)
        .args(["run", &format!("{api}/openapi.json"), "--no-color", "--generation-database", "none"])
        .args(["--max-examples", &if long { LONG } else { EXAMPLES }.to_string()])
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .stdin(Stdio::null());
    match &options.seed {
        Some(seed) => command.args(["--seed", seed]),
        None if long => &mut command,
        None => command.args(["--seed", SEED]),
    };
    Ok(command)
}
