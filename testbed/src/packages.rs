//! Packages of the distribution, unpacked beside the system instead of installed in it: a test changes no machine. Programs find them
//! in a separate mount namespace, where their files lie over `/usr`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cache, guard};

/// What a node needs, and what builds images.
const PACKAGES: [&str; 6] =
    ["buildah", "busybox-static", "containerd", "containernetworking-plugins", "iptables", "runc"];

/// What the package's scripts would have linked.
const LINKS: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

/// Lays the packages over the system, and executes the arguments: a script for a separate mount namespace.
const OVER_THE_SYSTEM: &str = r#"mount -t overlay overlay -o "lowerdir=$0/usr:/usr" /usr && exec "$@""#;

const DISTRIBUTION: &str = "Debian or Ubuntu, whose packages are unpacked beside the system";

/// The folder that the packages of a node are unpacked in.
///
/// # Errors
/// This is no Debian, or the packages cannot be fetched.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    cache::entry("packages", &fetching(&PACKAGES, 46), |folder| {
        unpack(&PACKAGES, folder)?;
        let programs = folder.join("usr/sbin");
        for link in LINKS {
            let to = programs.join(link);
            symlink("xtables-nft-multi", &to).map_err(Error::file("link", to))?;
        }
        Ok(())
    })
}

/// A folder with these packages and what they need that the system does not have.
///
/// # Errors
/// This is no Debian, or the packages cannot be fetched.
pub(crate) fn unpacked(entry: &str, packages: &[&str], megabytes: u32) -> Result<PathBuf, Error> {
    cache::entry(entry, &fetching(packages, megabytes), |folder| unpack(packages, folder))
}

fn fetching(packages: &[&str], megabytes: u32) -> String {
    format!("fetching the packages {} ({megabytes} MB)", packages.join(", "))
}

fn unpack(packages: &[&str], folder: &Path) -> Result<(), Error> {
    let fetched = folder.join("fetched");
    let lists = fetched.join("lists/partial");
    fs::create_dir_all(&lists).map_err(Error::file("make", &lists))?;
    apt(&fetched, &["update"])?;
    // Also what is installed: a program looks for its own files beside itself.
    let install = ["install", "--reinstall", "--yes", "--download-only", "--no-install-recommends"];
    apt(&fetched, &[&install, packages].concat())?;
    let is_package = |file: &&PathBuf| file.extension().is_some_and(|end| end == "deb");
    for package in cache::files(&fetched)?.iter().filter(is_package) {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package).arg(folder);
        cache::run(&mut unpack, "dpkg-deb", DISTRIBUTION, "unpacking a package")?;
    }
    fs::remove_dir_all(&fetched).map_err(Error::file("remove", &fetched))
}

/// Runs a program with the packages over the system, in a separate mount namespace.
pub(crate) fn command(program: &str) -> Result<Command, Error> {
    require_root()?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", OVER_THE_SYSTEM])
        .arg(folder()?)
        .arg(program);
    Ok(command)
}

/// Whether this machine lets a node be made; if not, why.
///
/// # Errors
/// Not root, no Debian, the packages cannot be fetched, or namespaces and mounts are forbidden, as in many containers.
pub fn can_be_a_node() -> Result<(), Error> {
    let mut nothing = command("true")?;
    cache::run(&mut nothing, "unshare", "util-linux", "laying packages over the system")?;
    let mut namespaces = Command::new("unshare");
    namespaces.args([
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "ip",
        "link",
        "add",
        "probe0",
        "type",
        "veth",
    ]);
    cache::run(&mut namespaces, "unshare", "util-linux", "making namespaces and a link")
}

/// Namespaces, mounts and cgroups are for root only.
pub(crate) fn require_root() -> Result<(), Error> {
    if guard::is_root() {
        return Ok(());
    }
    Err(Error::system("run containers")(std::io::Error::new(
        std::io::ErrorKind::PermissionDenied,
        "only root may make namespaces, mounts and cgroups",
    )))
}

/// With separate package lists: those of the system may be missing, or old. Without the locks of the system, in which nothing changes.
fn apt(folder: &Path, arguments: &[&str]) -> Result<(), Error> {
    let mut apt = Command::new("apt-get");
    apt.arg("--quiet")
        .args(["-o", &format!("Dir::State::Lists={}", folder.join("lists").display())])
        .args(["-o", &format!("Dir::Cache::Archives={}/", folder.display())])
        .args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    cache::run(&mut apt, "apt-get", DISTRIBUTION, &format!("apt-get {}", arguments.join(" ")))
}
