//! The programs of Kubernetes and etcd, built once from their Go modules: their makers publish no package that an ordinary
//! client fetches.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::cache;

/// The version in `testbed/kubernetes/go.mod`; a test compares the two.
const RELEASE: &str = "1.35.8";

const GO: &str = "Go 1.25 or newer (go.dev/dl)";

const KUBERNETES: [&str; 4] = [
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
];
const ETCD: &str = "go.etcd.io/etcd/server/v3";

/// Where the programs tell their version from.
const STAMPED: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

/// The folder with the programs.
pub(super) fn built() -> Result<PathBuf, Error> {
    let said =
        format!("building Kubernetes {RELEASE} and etcd from their Go modules (91 MB; some minutes, once)");
    cache::entry(&format!("kubernetes-{RELEASE}"), &said, |folder| {
        cache::run(Command::new("go").arg("version"), "go", GO, "asking Go for its version")?;
        go_build(&["-o", &format!("{}/", folder.display()), "-ldflags", &stamps()], &KUBERNETES)?;
        go_build(&["-o", &folder.join("etcd").display().to_string(), "-ldflags", "-s -w"], &[ETCD])
    })
}

fn go_build(options: &[&str], packages: &[&str]) -> Result<(), Error> {
    // Gently: tests and compilers run beside it.
    let mut go = Command::new("nice");
    go.args(["go", "build"])
        .args(options)
        .args(packages)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .current_dir(modules());
    cache::run(&mut go, "nice", "coreutils", "building Kubernetes")
}

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes")
}

fn stamps() -> String {
    let minor = RELEASE.split('.').nth(1).unwrap_or_default();
    let values = [
        ("gitVersion", format!("v{RELEASE}")),
        ("gitMajor", "1".to_owned()),
        ("gitMinor", minor.to_owned()),
        ("gitTreeState", "clean".to_owned()),
    ];
    let flags = STAMPED
        .iter()
        .flat_map(|package| values.iter().map(move |(name, value)| format!(" -X {package}.{name}={value}")));
    format!("-s -w{}", flags.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_of_the_modules() {
        let modules = std::fs::read_to_string(modules().join("go.mod")).unwrap();
        assert!(modules.contains(&format!("k8s.io/kubernetes v{RELEASE}")));
    }
}
