//! Libraries from Maven's central repository, fetched once into the cache.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, cache};

/// A folder with the libraries that the `pom.xml` in `project` names, with all they depend on. `name` is the cache entry:
/// it must change when they do.
///
/// # Errors
/// Maven is missing, or the repository cannot be reached.
pub fn libraries(name: &str, project: &Path) -> Result<PathBuf, Error> {
    let doing = format!("fetching {name}");
    let folder = cache::entry(name, &doing, |folder| {
        let pom = folder.join("pom.xml");
        fs::copy(project.join("pom.xml"), &pom).map_err(Error::file("copy", &pom))?;
        cache::copy_dependencies(&pom, &folder.join("lib"), &doing)
    })?;
    Ok(folder.join("lib"))
}

/// The jar of `group:artifact:version`, which holds all that it needs.
///
/// # Errors
/// Maven is missing, or the repository cannot be reached.
pub fn jar(group: &str, artifact: &str, version: &str) -> Result<PathBuf, Error> {
    let name = format!("{artifact}-{version}");
    let folder = cache::entry(&name, &format!("fetching {name}"), |folder| {
        cache::fetch_artifact(&format!("{group}:{artifact}:{version}"), folder)
    })?;
    Ok(folder.join(format!("{name}.jar")))
}
