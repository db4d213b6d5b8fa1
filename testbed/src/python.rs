//! Tools that are Python packages, installed once into the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cache};

/// The interpreter.
pub const PYTHON: &str = "python3";

/// A folder with the packages that the file `requirements` pins, for `PYTHONPATH`. `name` is the cache entry: it must
/// change when the requirements do.
pub fn packages(name: &str, requirements: &Path) -> Result<PathBuf, Error> {
    let doing = format!("installing {name}");
    cache::entry(name, &doing, |folder| {
        let mut pip = Command::new(PYTHON);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
        pip.arg(folder).arg("--requirement").arg(requirements);
        cache::run(&mut pip, PYTHON, "Python 3.10 or newer, with pip", &doing)
    })
}
