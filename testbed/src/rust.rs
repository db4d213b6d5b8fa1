//! Tools that are Rust programs, built once into the cache.

use std::path::PathBuf;
use std::process::Command;

use crate::{Error, cache};

/// The program `name` in `version`, with the versions of everything else that its makers have released it with.
///
/// # Errors
/// It cannot be built; the error has what cargo said.
pub fn program(name: &str, version: &str) -> Result<PathBuf, Error> {
    let said = format!("building {name} {version} (some minutes, once)");
    let built = cache::entry(&format!("{name}-{version}"), &said, |folder| {
        // Gently: tests and compilers run beside it. Not optimised, because it runs for seconds.
        let mut cargo = Command::new("nice");
        cargo.args(["cargo", "install", "--quiet", "--locked", "--debug", name, "--version"]);
        cargo.arg(format!("={version}")).arg("--root").arg(folder);
        // In a folder that goes, whatever the workspace builds into.
        cargo.env_remove("CARGO_TARGET_DIR");
        cache::run(&mut cargo, "nice", "coreutils", &format!("building {name}"))
    })?;
    Ok(built.join("bin").join(name))
}
