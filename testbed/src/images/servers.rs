//! The servers of the testbed as images: what was fetched, with the libraries of this machine that it needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::own;
use crate::kafka;
use crate::postgres::{self, PgVersion};
use crate::{Error, cache, packages, prometheus};

/// In this image PostgreSQL runs as a user that has a name, which `initdb` asks for.
const USERS: &str = "server:x:65532:65532:server:/:/bin/sh\n";

const JDK: &str = "a JDK, 17 or newer";

/// What Kafka needs of Java.
const JAVA_MODULES: &str = "java.base,java.desktop,java.logging,java.management,java.naming,java.security.jgss,\
                            java.security.sasl,java.sql,java.xml,jdk.crypto.ec,jdk.management,jdk.unsupported";

/// Archives of the images of PostgreSQL and Kafka, made once.
pub(crate) fn servers() -> Result<[PathBuf; 2], Error> {
    let entry =
        cache::entry("images-of-servers", "packing PostgreSQL and Kafka into images (once)", |folder| {
            let roots = folder.join("roots");
            postgres(&roots.join("postgres"))?;
            kafka(&roots.join("kafka"))?;
            for target in ["postgres", "kafka"] {
                own(target, &roots, folder)?;
            }
            fs::remove_dir_all(&roots).map_err(Error::file("remove", &roots))
        })?;
    Ok(["postgres.tar", "kafka.tar"].map(|archive| entry.join(archive)))
}

/// Archives of the images of Prometheus and its operator, made once.
pub(crate) fn monitoring() -> Result<[PathBuf; 3], Error> {
    let (server, operator) = (prometheus::prometheus()?, prometheus::prometheus_operator()?);
    let images = [
        ("prometheus", &server),
        ("prometheus-operator", &operator),
        ("prometheus-config-reloader", &operator),
    ];
    let entry = cache::entry(
        "images-of-prometheus",
        "packing Prometheus and its operator into images (once)",
        |folder| images.iter().try_for_each(|(target, build)| own(target, build, folder).map(drop)),
    )?;
    Ok(images.map(|(target, _)| entry.join(format!("{target}.tar"))))
}

fn postgres(root: &Path) -> Result<(), Error> {
    system(root, "postgres.sh")?;
    let fetched = postgres::binaries(PgVersion::default())?;
    let programs = root.join("opt/postgres");
    copy(&[&fetched.join("bin"), &fetched.join("lib"), &fetched.join("share")], &programs)?;
    let users = root.join("etc/passwd");
    fs::write(&users, USERS).map_err(Error::file("write", &users))?;
    libraries(root, &["postgres", "initdb"].map(|program| fetched.join("bin").join(program)), &fetched)
}

fn kafka(root: &Path) -> Result<(), Error> {
    system(root, "kafka.sh")?;
    let java = root.join("opt/java");
    let mut link = Command::new("jlink");
    link.args(["--add-modules", JAVA_MODULES, "--no-header-files", "--no-man-pages", "--output"]).arg(&java);
    cache::run(&mut link, "jlink", JDK, "making a small Java")?;
    copy(
        &cache::files(&kafka::libraries()?)?.iter().map(PathBuf::as_path).collect::<Vec<_>>(),
        &root.join("opt/kafka"),
    )?;
    libraries(
        root,
        &[java.join("bin/java"), java.join("lib/server/libjvm.so"), java.join("lib/libnio.so")],
        &java,
    )
}

/// A shell with the usual tools, the script that starts the server, and folders that have to be there.
fn system(root: &Path, script: &str) -> Result<(), Error> {
    let tools = root.join("bin");
    for folder in [&tools, &root.join("etc")] {
        fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
    }
    copy(&[&packages::folder()?.join("bin/busybox"), &super::folder().join(script)], &tools)?;
    let (from, to) = (tools.join(script), root.join("start.sh"));
    fs::rename(&from, &to).map_err(Error::file("move", &from))?;
    for name in ["sh", "cat", "echo", "mv", "rm", "chown", "sleep"] {
        let link = tools.join(name);
        symlink("busybox", &link).map_err(Error::file("link", &link))?;
    }
    Ok(())
}

fn copy(from: &[&Path], to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::file("make", to))?;
    cache::run(Command::new("cp").args(["-a", "-L"]).args(from).arg(to), "cp", "coreutils", "copying")
}

/// What the programs load from elsewhere than their own folder.
fn libraries(root: &Path, programs: &[PathBuf], own: &Path) -> Result<(), Error> {
    let listed = Command::new("ldd").args(programs).output().map_err(Error::file("run", "ldd"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let words = listed.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let found: BTreeSet<&Path> = words.map(Path::new).filter(|path| !path.starts_with(own)).collect();
    for library in found {
        let folder = library.parent().unwrap_or(library);
        copy(&[library], &root.join(folder.strip_prefix("/").unwrap_or(folder)))?;
    }
    Ok(())
}
