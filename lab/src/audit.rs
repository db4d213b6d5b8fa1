//! `cargo xtask audit`: what others have written and the programs are built from, by cargo-deny. Two questions, asked apart: whether it
//! is what `deny.toml` allows, which only a change can make wrong; and whether something has become known against it, which any day can.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use clap::Args;
use testbed::rust;

use crate::Failure;
use crate::build;
use crate::paint::{bad, good, heading, notable};

/// One that builds with the toolchain of `rust-toolchain.toml`.
const CARGO_DENY: &str = "0.20.2";

/// Options of `audit`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    /// Fail where the database of advisories cannot be reached. Without, it is only said: machines without the internet ask the other
    /// question.
    #[arg(long)]
    advisories: bool,
}

/// Asks both; the first is answered also where the second cannot be.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let options = *options;
    // On a separate thread, so that Ctrl-C is heard meanwhile.
    tokio::task::spawn_blocking(move || audit(options)).await?
}

fn audit(options: Options) -> Result<(), Failure> {
    let program = rust::program("cargo-deny", CARGO_DENY, &[])?;
    println!("{}", heading("licences, bans and sources"));
    let checks = ["check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    let allowed = judged("licences, bans and sources", deny(&program, &checks)?);
    println!("{}", heading("advisories"));
    let known = if deny(&program, &["fetch", "db"])?.success() {
        judged("advisories", deny(&program, &["check", "--hide-inclusion-graph", "advisories"])?)
    } else {
        println!("advisories: {}: their database cannot be reached", notable("NOT CHECKED"));
        !options.advisories
    };
    if allowed && known { Ok(()) } else { Err("the audit failed: see above".into()) }
}

fn judged(what: &str, ended: ExitStatus) -> bool {
    println!("{what}: {}", if ended.success() { good("passed") } else { bad("FAILED") });
    ended.success()
}

fn deny(program: &Path, arguments: &[&str]) -> Result<ExitStatus, Failure> {
    let mut deny = Command::new(program);
    deny.current_dir(build::repository()).arg("--locked").args(arguments).stdin(Stdio::null());
    Ok(deny.status()?)
}
