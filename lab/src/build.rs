//! Building the programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::rust::cargo;

use crate::Failure;

/// Which profile to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// For tests and the demo.
    Dev,
    /// For measurements.
    Release,
}

/// The programs that people get, each a package of that name.
pub const SHIPPED: [&str; 3] = ["basket-api", "outbox-relay", "outbox-operator"];

/// The repository.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The folder cargo builds into.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => repository().join(folder),
        None => repository().join("target"),
    }
}

/// Builds API and relay; returns the folder they are in.
pub fn programs(profile: Profile) -> Result<PathBuf, Failure> {
    build(profile, &["basket-api", "outbox-relay"], None)
}

/// Builds the relay and the examples in Rust; returns the folder they are in.
pub fn examples(profile: Profile) -> Result<PathBuf, Failure> {
    build(profile, &["outbox-relay", "example-writer", "example-consumer"], None)
}

/// Builds this package's own program; returns the folder it is in.
pub fn lab(profile: Profile) -> Result<PathBuf, Failure> {
    build(profile, &["lab"], None)
}

/// Builds the operator; returns the folder it is in.
pub fn operator(profile: Profile) -> Result<PathBuf, Failure> {
    build(profile, &["outbox-operator"], None)
}

/// Builds all programs that are shipped, which then know their commit; returns the folder they are in.
pub fn shipped(profile: Profile, commit: Option<&str>) -> Result<PathBuf, Failure> {
    build(profile, &SHIPPED, commit)
}

/// What a program prints when it is asked for something that it knows of itself.
pub fn printed(program: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    output(Command::new(program).arg(what))
}

/// What a command prints; an error has what it said.
pub fn output(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    Err(format!("{} failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr)).into())
}

/// In the dev profile with the workspace's features, as tests are built: with those of the programs alone, most dependencies would be
/// compiled a second time.
fn build(profile: Profile, programs: &[&str], commit: Option<&str>) -> Result<PathBuf, Failure> {
    let mut build = cargo();
    build.current_dir(repository()).args(["build", "--locked"]);
    match profile {
        Profile::Dev => {
            build.args(["--workspace"]).args(programs.iter().flat_map(|program| ["--bin", program]))
        }
        Profile::Release => {
            build.arg("--release").args(programs.iter().flat_map(|program| ["--package", program]))
        }
    };
    if let Some(commit) = commit {
        build.env("OUTBOX_COMMIT", commit);
    }
    if !build.status()?.success() {
        return Err("the programs could not be built".into());
    }
    Ok(target().join(if profile == Profile::Release { "release" } else { "debug" }))
}
