//! Cargo, as tests and tools run it, and tools that are Rust programs, built once into the cache.

use std::path::PathBuf;
use std::process::Command;

use crate::{Error, cache};

/// The one that runs us, where one does. What it tells a test of its package would make build scripts that look at it run again, and
/// half the tree with them.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name.to_str().is_some_and(|name| told.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The program `name` in `version`, with the versions of everything else that its makers have released it with, built with these
/// options of `cargo install`.
///
/// # Errors
/// It cannot be built; the error has what cargo said.
pub fn program(name: &str, version: &str, options: &[&str]) -> Result<PathBuf, Error> {
    let said = format!("building {name} {version} (some minutes, once)");
    let built = cache::entry(&format!("{name}-{version}"), &said, |folder| {
        // Gently: tests and compilers run beside it. Not optimised, because it runs for seconds.
        let mut cargo = Command::new("nice");
        cargo.args(["cargo", "install", "--quiet", "--locked", "--debug", name, "--version"]);
        cargo.arg(format!("={version}")).args(options).arg("--root").arg(folder);
        // In a folder that goes, whatever the workspace builds into.
        cargo.env_remove("CARGO_TARGET_DIR");
        cache::run(&mut cargo, "nice", "coreutils", &format!("building {name}"))
    })?;
    Ok(built.join("bin").join(name))
}
