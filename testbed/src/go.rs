//! Programs that are built from their Go modules. Each has a separate `go.mod` in a folder of this crate, with its version and those of all it
//! needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cache};

const GO: &str = "Go 1.25 or newer (go.dev/dl)";

/// Builds packages of the modules in a folder.
pub fn build(modules: &str, options: &[&str], packages: &[&str]) -> Result<(), Error> {
    cache::run(Command::new("go").arg("version"), "go", GO, "asking Go for its version")?;
    // Gently: tests and compilers run beside it.
    let mut go = Command::new("nice");
    go.args(["go", "build"])
        .args(options)
        .args(packages)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .current_dir(folder_of(modules));
    cache::run(&mut go, "nice", "coreutils", &format!("building {}", packages.join(" ")))
}

/// Where Go keeps the source of a module, fetched if need be; what it needs itself is not.
pub fn module_folder(modules: &str, module: &str) -> Result<PathBuf, Error> {
    let mut fetch = Command::new("go");
    fetch.args(["mod", "download", module]).current_dir(folder_of(modules));
    cache::run(&mut fetch, "go", GO, &format!("fetching {module}"))?;
    let mut go = Command::new("go");
    go.args(["list", "-m", "-f", "{{.Dir}}", module]).current_dir(folder_of(modules));
    let output = go.output().map_err(Error::system("run go"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// A folder of this crate.
pub fn folder_of(modules: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(modules)
}
