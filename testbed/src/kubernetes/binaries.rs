//! The programs of Kubernetes and etcd, built once from their Go modules: their makers publish no package that an ordinary
//! client fetches.

use std::path::PathBuf;

use crate::{Error, cache, go};

/// The version in `testbed/kubernetes/go.mod`; a test compares the two.
const RELEASE: &str = "1.35.8";

const KUBERNETES: [&str; 4] = [
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
];
/// What makes a machine a node.
const NODE: [&str; 2] = ["k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy"];

/// Of `testbed/coredns`.
const DNS_RELEASE: &str = "1.14.7";

/// Simulates nodes; the version in `testbed/kwok/go.mod`.
const KWOK: &str = "sigs.k8s.io/kwok";
const KWOK_RELEASE: &str = "0.8.0";
/// What it makes of nodes and pods; its module has more.
const STAGES: [&str; 4] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
];

/// Installs charts; the version in `testbed/helm/go.mod`.
const HELM: &str = "helm.sh/helm/v3";
const HELM_RELEASE: &str = "3.22.0";

const ETCD: &str = "go.etcd.io/etcd/server/v3";

/// Where the programs tell their version from.
const STAMPED: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

/// Where people who test against Kubernetes have etcd, API server and kubectl already: the variable of envtest.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// All that a control plane is.
const PROGRAMS: [&str; 5] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];

/// Where the programs of a control plane are.
#[derive(Debug)]
pub(super) struct Programs(Vec<PathBuf>);

impl Programs {
    /// Those of `KUBEBUILDER_ASSETS`; what is not there is built.
    pub fn find() -> Result<Programs, Error> {
        let assets = std::env::var_os(ASSETS).map(PathBuf::from);
        if let Some(assets) = &assets {
            std::fs::read_dir(assets)
                .map_err(Error::file("read the folder of KUBEBUILDER_ASSETS,", assets))?;
        }
        let mut programs = Programs(assets.into_iter().collect());
        if !PROGRAMS.iter().all(|program| programs.path(program).is_file()) {
            programs.0.push(built()?);
        }
        Ok(programs)
    }

    /// Where one of them is.
    pub fn path(&self, program: &str) -> PathBuf {
        let mut places = self.0.iter().map(|folder| folder.join(program));
        places.find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(program))
    }
}

fn built() -> Result<PathBuf, Error> {
    let said =
        format!("building Kubernetes {RELEASE} and etcd from their Go modules (91 MB; some minutes, once)");
    cache::entry(&format!("kubernetes-{RELEASE}"), &said, |folder| {
        let (programs, etcd) = (format!("{}/", folder.display()), folder.join("etcd").display().to_string());
        go::build("kubernetes", &["-o", &programs, "-ldflags", &stamps()], &KUBERNETES)?;
        go::build("kubernetes", &["-o", &etcd, "-ldflags", "-s -w"], &[ETCD])
    })
}

/// The folder with what a node runs.
pub(super) fn node() -> Result<PathBuf, Error> {
    let said =
        format!("building kubelet and kube-proxy {RELEASE} from their Go modules (some minutes, once)");
    cache::entry(&format!("kubernetes-node-{RELEASE}"), &said, |folder| {
        go::build("kubernetes", &["-o", &format!("{}/", folder.display()), "-ldflags", &stamps()], &NODE)
    })
}

/// The folder with CoreDNS.
pub(super) fn dns() -> Result<PathBuf, Error> {
    let said = format!("building CoreDNS {DNS_RELEASE} from its Go module (some minutes, once)");
    cache::entry(&format!("coredns-{DNS_RELEASE}"), &said, |folder| {
        go::build("coredns", &["-o", &format!("{}/", folder.display()), "-ldflags", "-s -w"], &["."])
    })
}

/// The folder with kwok, and the files of its stages.
pub(super) fn kwok() -> Result<(PathBuf, Vec<PathBuf>), Error> {
    let said = format!("building kwok {KWOK_RELEASE} from its Go module (once)");
    let folder = cache::entry(&format!("kwok-{KWOK_RELEASE}"), &said, |folder| {
        let program = folder.join("kwok").display().to_string();
        go::build("kwok", &["-o", &program, "-ldflags", "-s -w"], &[&format!("{KWOK}/cmd/kwok")])?;
        let module = go::module_folder("kwok", KWOK)?;
        for stage in STAGES {
            let from = module.join("kustomize/stage").join(stage);
            let to = folder.join(stage.replace('/', "-"));
            std::fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
        }
        Ok(())
    })?;
    let stages = STAGES.iter().map(|stage| folder.join(stage.replace('/', "-"))).collect();
    Ok((folder, stages))
}

/// The folder with helm.
pub(super) fn helm() -> Result<PathBuf, Error> {
    let said = format!("building helm {HELM_RELEASE} from its Go module (once)");
    cache::entry(&format!("helm-{HELM_RELEASE}"), &said, |folder| {
        let program = folder.join("helm").display().to_string();
        // Charts are rendered for this cluster where none is asked.
        let kubernetes = format!("{HELM}/pkg/chartutil.k8sVersion");
        let stamps = format!(
            "-s -w -X {HELM}/internal/version.version=v{HELM_RELEASE} -X {kubernetes}Major=1 -X {kubernetes}Minor={}",
            minor()
        );
        go::build("helm", &["-o", &program, "-ldflags", &stamps], &[&format!("{HELM}/cmd/helm")])
    })
}

fn minor() -> &'static str {
    RELEASE.split('.').nth(1).unwrap_or_default()
}

fn stamps() -> String {
    let values = [
        ("gitVersion", format!("v{RELEASE}")),
        ("gitMajor", "1".to_owned()),
        ("gitMinor", minor().to_owned()),
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
    use crate::guard::Folder;

    #[test]
    fn what_is_there_already_comes_first() {
        let (theirs, ours) = (Folder::new("assets").unwrap(), Folder::new("built").unwrap());
        let put = |folder: &Folder, name| std::fs::write(folder.path().join(name), "").unwrap();
        put(&theirs, "etcd");
        PROGRAMS.iter().for_each(|program| put(&ours, program));
        let programs = Programs(vec![theirs.path().to_owned(), ours.path().to_owned()]);
        assert_eq!(programs.path("etcd"), theirs.path().join("etcd"));
        assert_eq!(programs.path("kubectl"), ours.path().join("kubectl"));
    }

    #[test]
    fn the_release_is_the_one_of_the_modules() {
        let modules = |name| std::fs::read_to_string(go::folder_of(name).join("go.mod")).unwrap();
        assert!(modules("kubernetes").contains(&format!("k8s.io/kubernetes v{RELEASE}")));
        assert!(modules("helm").contains(&format!("{HELM} v{HELM_RELEASE}")));
        assert!(modules("coredns").contains(&format!("coredns v{DNS_RELEASE}")));
        assert!(modules("kwok").contains(&format!("{KWOK} v{KWOK_RELEASE}")));
    }
}
