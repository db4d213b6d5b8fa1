//! Servers fetched once, from the package registry their makers publish them in, with the ordinary client (Maven),
//! and kept outside the work tree.
//!
//! Every entry is a folder that appears under its name only when it is complete. Processes that want the same entry
//! at the same time wait for the one that makes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, guard};

const MAVEN_DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1";

/// Where entries are kept: `$OUTBOX_TESTBED_CACHE`, or the user's cache folder. Root's home is closed to the
/// servers' user, so root keeps them in `/var/cache`.
pub fn folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("OUTBOX_TESTBED_CACHE").unwrap_or_else(|| {
        if guard::is_root() {
            return PathBuf::from("/var/cache/outbox-testbed");
        }
        let user = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        user.unwrap_or_else(std::env::temp_dir).join("outbox-testbed")
    })
}

/// The entry `name`; `make` fills a folder for it when there is none yet. `said` is shown meanwhile.
pub(crate) fn entry(
    name: &str,
    said: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let cache = folder();
    let path = cache.join(name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&cache).map_err(Error::file("make", &cache))?;
    let lock_path = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(Error::file("make", &lock_path))?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another process that is {said} …");
        lock.lock().map_err(Error::file("lock", &lock_path))?;
    }
    if path.exists() {
        return Ok(path);
    }
    eprintln!("{said} …");
    let unfinished = cache.join(format!("{name}.part"));
    drop(fs::remove_dir_all(&unfinished));
    fs::create_dir_all(&unfinished).map_err(Error::file("make", &unfinished))?;
    make(&unfinished)?;
    fs::rename(&unfinished, &path).map_err(Error::file("put in place", &path))?;
    Ok(path)
}

/// Copies one artifact into `to`.
pub(crate) fn fetch_artifact(artifact: &str, to: &Path) -> Result<(), Error> {
    let mut maven = maven();
    maven
        .arg(format!("{MAVEN_DEPENDENCY_PLUGIN}:copy"))
        .arg(format!("-Dartifact={artifact}"))
        .arg(format!("-DoutputDirectory={}", to.display()));
    run(&mut maven, "mvn", "Maven 3 (package 'maven')", &format!("fetching {artifact}"))
}

/// Copies artifacts with all they depend on into `to`.
pub(crate) fn fetch_with_dependencies(artifacts: &[(&str, &str, &str)], to: &Path) -> Result<(), Error> {
    let dependencies: String = artifacts
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>"
            )
        })
        .collect();
    let pom = to.join("pom.xml");
    let text = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>testbed</groupId><artifactId>servers</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>"
    );
    fs::write(&pom, text).map_err(Error::file("write", &pom))?;
    copy_dependencies(&pom, &to.join("lib"), "fetching the Kafka libraries")
}

/// Copies what a `pom.xml` depends on into `to`.
pub(crate) fn copy_dependencies(pom: &Path, to: &Path, doing: &str) -> Result<(), Error> {
    let mut maven = maven();
    maven
        .arg("-f")
        .arg(pom)
        .arg(format!("{MAVEN_DEPENDENCY_PLUGIN}:copy-dependencies"))
        .arg(format!("-DoutputDirectory={}", to.display()))
        .arg("-DincludeScope=runtime");
    run(&mut maven, "mvn", "Maven 3 (package 'maven')", doing)
}

fn maven() -> Command {
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B"]);
    maven
}

/// The files in a folder, in the order of their names.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// Runs a program of the machine to its end.
pub(crate) fn run(
    command: &mut Command,
    tool: &'static str,
    package: &'static str,
    doing: &str,
) -> Result<(), Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::MissingTool { tool, package },
        _ => Error::System { doing: "run a program", source },
    })?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let lines: Vec<&str> = printed.lines().rev().take(20).collect();
    let output_end = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(Error::Failed { doing: doing.to_owned(), status: output.status, output: output_end })
}
