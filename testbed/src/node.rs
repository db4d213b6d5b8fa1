//! Packages from the npm registry, installed once into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cache};

const NPM: &str = "Node.js 20 or newer, with npm (Debian: nodejs npm)";

/// The folder `node_modules` with the packages that `package.json` and `package-lock.json` in `project` pin. `name` is the
/// cache entry: it must change when they do.
///
/// # Errors
/// npm is missing, or the registry cannot be reached.
pub fn packages(name: &str, project: &Path) -> Result<PathBuf, Error> {
    let doing = format!("installing {name}");
    let folder = cache::entry(name, &doing, |folder| {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(project.join(file), folder.join(file))
                .map_err(Error::file("copy", folder.join(file)))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
        cache::run(&mut npm, "npm", NPM, &doing)
    })?;
    Ok(folder.join("node_modules"))
}
