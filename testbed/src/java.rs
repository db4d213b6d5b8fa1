//! Libraries and programs from Maven's central repository, fetched once into the cache, and the virtual machine to run them with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// The unpacked archive of the program `group:artifact:version`: the folder that it holds.
///
/// # Errors
/// Maven is missing, or the repository cannot be reached.
pub fn distribution(group: &str, artifact: &str, version: &str) -> Result<PathBuf, Error> {
    let name = format!("{artifact}-{version}");
    cache::entry(&name, &format!("fetching {name}"), |folder| {
        cache::fetch_artifact(&format!("{group}:{artifact}:{version}:tar.gz"), folder)?;
        let archive = folder.join(format!("{name}.tar.gz"));
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&archive).args(["--strip-components=1", "--no-same-owner", "-C"]).arg(folder);
        cache::run(&mut tar, "tar", "'tar' and 'gzip'", &format!("unpacking {name}"))?;
        fs::remove_file(&archive).map_err(Error::file("remove", &archive))
    })
}

/// A `java` of this major version or a newer one: that of the PATH, or one that is installed in `/usr/lib/jvm`.
///
/// # Errors
/// There is none.
pub fn at_least(major: u32) -> Result<PathBuf, Error> {
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let installed = installed.map(|entry| entry.path().join("bin/java"));
    let mut candidates = std::iter::once(PathBuf::from("java")).chain(installed);
    let new_enough = |java: &PathBuf| {
        let answer = Command::new(java).arg("-version").output().ok();
        let said = answer.map(|answer| String::from_utf8_lossy(&answer.stderr).into_owned());
        said.and_then(|said| major_version(&said)).is_some_and(|found| found >= major)
    };
    candidates.find(new_enough).ok_or_else(|| {
        let missing = format!("install a JDK, {major} or newer, as 'java' or in /usr/lib/jvm");
        Error::system("find a Java virtual machine that is new enough")(std::io::Error::other(missing))
    })
}

/// From what `java -version` prints.
fn major_version(said: &str) -> Option<u32> {
    said.split('"').nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_virtual_machine_is_read_from_what_it_prints() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime"), Some(17));
        assert_eq!(major_version("openjdk version \"25\" 2025-09-16\n"), Some(25));
        assert_eq!(major_version("openjdk version \"26-ea\" 2026-03-17\n"), Some(26));
        assert_eq!(major_version("java version \"1.8.0_392\"\n"), Some(1));
        assert_eq!(major_version("The operation couldn't be completed."), None);
    }

    #[test]
    fn a_virtual_machine_that_is_newer_than_any_is_not_found() {
        assert!(at_least(17).is_ok());
        let missing = std::error::Error::source(&at_least(999).unwrap_err()).unwrap().to_string();
        assert!(missing.contains("999"), "{missing}");
    }
}
