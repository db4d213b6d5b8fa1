//! A real node: containerd, kubelet, kube-proxy and DNS in separate mount, network and process namespaces, with a separate
//! cgroup. It needs root, and changes nothing of the machine: the packages it needs lie over `/usr` in its mount namespace only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::access::{self, Access, User};
use super::binaries;
use super::cluster::run;
use super::network::Claim;
use crate::process::{self, Launch, Program};
use crate::{Error, blocking, cache, guard, images, packages, wait};

/// Its name in the cluster.
pub(super) const NAME: &str = "node";
/// Generous: images are unpacked on a machine that is busy with tests.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The kernel ends a namespace's processes at once, and forgets them a moment later.
const GONE_WITHIN: Duration = Duration::from_secs(10);

const DNS_PORT: u16 = 53;

const CONTAINERD: &str = include_str!("node/containerd.toml");
const POD_NETWORK: &str = include_str!("node/network.conflist");
const KUBELET: &str = include_str!("node/kubelet.yaml");
const KUBE_PROXY: &str = include_str!("node/kube-proxy.yaml");
const DNS: &str = include_str!("node/Corefile");

/// The node. Dropping it ends all that runs on it.
pub(super) struct Node {
    claim: Claim,
    /// Below the cluster's.
    folder: PathBuf,
    namespaces: Option<Program>,
    init: u32,
    programs: Vec<Program>,
}

impl Node {
    /// Makes the namespaces and the link to them; nothing runs there yet.
    pub async fn new(folder: &Path) -> Result<Node, Error> {
        let packages = blocking(packages::folder).await?;
        let claim = Claim::new()?;
        remove_cgroups(&claim.cgroup());
        guard::register_cgroup(&claim.cgroup())?;
        let folder = folder.join(NAME);
        for made in [folder.clone(), folder.join("cni")] {
            fs::create_dir_all(&made).map_err(Error::file("make", &made))?;
        }
        let script = folder.join("init.sh");
        fs::write(&script, include_str!("node/init.sh")).map_err(Error::file("write", &script))?;
        let namespaces = Launch::new("the node's namespaces", "unshare")
            .log_to(folder.join("init.log"))
            .arg("--mount")
            .arg("--propagation=private")
            .arg("--net")
            .arg("--pid")
            .arg("--fork")
            .arg("--mount-proc")
            .arg("--kill-child")
            .arg("sh")
            .arg(script)
            .arg(packages)
            .arg(&folder)
            .arg(claim.gateway())
            .arg(claim.address())
            .arg(claim.cgroup())
            .start()?;
        let mut node = Node { claim, folder, init: 0, namespaces: Some(namespaces), programs: Vec::new() };
        node.until_there("waits-for-its-link").await?;
        node.init =
            node.namespaces.iter().flat_map(|own| process::children(own.pid())).next().unwrap_or_default();
        node.link()?;
        node.until_there("is-up").await?;
        Ok(node)
    }

    /// Its addresses.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Starts what makes it a node of the cluster.
    pub async fn join(&mut self, access: &Access) -> Result<(), Error> {
        let programs = blocking(binaries::node).await?;
        let dns = blocking(binaries::dns).await?;
        self.programs.push(self.containerd()?);
        wait::until("containerd", READY_WITHIN, async || {
            let mut ctr = Command::new("nsenter");
            ctr.args(self.inside()).args(["ctr", "--address", &self.socket(), "version"]);
            run(ctr, "ctr version", "")
        })
        .await?;
        let kubelet = self.kubelet(&programs, access)?;
        let proxy = self.kube_proxy(&programs, access)?;
        let dns = self.dns(&dns, access)?;
        self.programs.extend([kubelet, proxy, dns]);
        let dns = (self.claim.address(), DNS_PORT);
        wait::until("names of the cluster", READY_WITHIN, async || {
            if let Some(ended) =
                self.programs.iter_mut().find_map(|own| own.exit_status().map(|_| own.ended_early()))
            {
                return Ok(Err(ended));
            }
            tokio::net::TcpStream::connect(dns.clone()).await.map(|_| Ok(()))
        })
        .await?
    }

    /// The command that makes an image known to it; its last argument is the archive.
    pub fn import_command(&self) -> Vec<String> {
        let ctr = ["ctr", "--address", &self.socket(), "--namespace", "k8s.io", "images", "import"]
            .map(str::to_owned);
        ["nsenter".to_owned()].into_iter().chain(self.inside()).chain(ctr).collect()
    }

    fn containerd(&self) -> Result<Program, Error> {
        self.write("cni/pods.conflist", POD_NETWORK, &[])?;
        let config = self.write("containerd.toml", CONTAINERD, &[("PAUSE", images::PAUSE)])?;
        self.launch("containerd", Path::new("containerd")).arg("--config").arg(config).start()
    }

    fn kubelet(&self, programs: &Path, access: &Access) -> Result<Program, Error> {
        self.write("resolv.conf", "", &[])?;
        let authority = access.path(access::AUTHORITY).display().to_string();
        let config = self.write("kubelet.yaml", KUBELET, &[("AUTHORITY", &authority)])?;
        self.launch("kubelet", &programs.join("kubelet"))
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", access.kubeconfig(User::Kubelet).display()))
            .arg(format!("--root-dir={}", self.folder.join("kubelet").display()))
            .arg(format!("--hostname-override={NAME}"))
            .arg(format!("--node-ip={}", self.claim.address()))
            .start()
    }

    fn kube_proxy(&self, programs: &Path, access: &Access) -> Result<Program, Error> {
        let kubeconfig = access.kubeconfig(User::Proxy).display().to_string();
        let config =
            self.write("kube-proxy.yaml", KUBE_PROXY, &[("KUBECONFIG", &kubeconfig), ("NODE", NAME)])?;
        let config = format!("--config={}", config.display());
        self.launch("kube-proxy", &programs.join("kube-proxy")).arg(config).start()
    }

    fn dns(&self, program: &Path, access: &Access) -> Result<Program, Error> {
        let kubeconfig = access.kubeconfig(User::Dns).display().to_string();
        let config = self.write("Corefile", DNS, &[("KUBECONFIG", &kubeconfig)])?;
        self.launch("coredns", &program.join("coredns")).arg("-conf").arg(config).start()
    }

    /// A configuration file, with the names in capitals replaced.
    fn write(&self, name: &str, template: &str, values: &[(&str, &str)]) -> Result<PathBuf, Error> {
        let (folder, address) = (self.folder.display().to_string(), self.claim.address());
        let (pods, cgroup) = (self.claim.pods(), self.claim.cgroup());
        let own: [(&str, &str); 4] =
            [("FOLDER", &folder), ("ADDRESS", &address), ("PODS", &pods), ("CGROUP", &cgroup)];
        // Theirs first: KUBECONFIG holds no other name.
        let text = values
            .iter()
            .chain(&own)
            .fold(template.to_owned(), |text, (name, value)| text.replace(name, value));
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        Ok(path)
    }

    fn launch(&self, name: &str, program: &Path) -> Launch {
        let launch = Launch::new(name, "nsenter").log_to(self.folder.join(format!("{name}.log")));
        self.inside().iter().fold(launch, |launch, argument| launch.arg(argument)).arg(program)
    }

    fn inside(&self) -> [String; 6] {
        let target = format!("--target={}", self.init);
        [&target, "--mount", "--net", "--pid", "--wd=/", "--"].map(str::to_owned)
    }

    fn socket(&self) -> String {
        self.folder.join("containerd.sock").display().to_string()
    }

    /// Also leads the machine's own programs to pods and Services.
    fn link(&self) -> Result<(), Error> {
        let (interface, init) = (self.claim.interface(), self.init.to_string());
        let gateway = format!("{}/30", self.claim.gateway());
        ip(&["link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", &init])?;
        ip(&["address", "add", &gateway, "dev", &interface])?;
        ip(&["link", "set", &interface, "up"])?;
        for network in [self.claim.pods(), self.claim.network().services] {
            ip(&["route", "replace", &network, "via", &self.claim.address()])?;
        }
        Ok(())
    }

    async fn until_there(&mut self, file: &str) -> Result<(), Error> {
        let path = self.folder.join(file);
        let Some(namespaces) = &mut self.namespaces else { return Ok(()) };
        wait::until(format!("a node that {}", file.replace('-', " ")), READY_WITHIN, async || {
            if path.exists() {
                return Ok(Ok(()));
            }
            match namespaces.exit_status() {
                Some(_) => Ok(Err(namespaces.ended_early())),
                None => Err(namespaces.log_tail()),
            }
        })
        .await?
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The first process last of all: its end is that of the others, and what started it ends when all are gone.
        if self.init != 0 {
            drop(process::send(process::Signal::Kill, &[self.init]));
        }
        let ended = Instant::now();
        while let Some(namespaces) = &mut self.namespaces
            && namespaces.exit_status().is_none()
            && ended.elapsed() < GONE_WITHIN
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.namespaces = None;
        while !remove_cgroups(&self.claim.cgroup()) && ended.elapsed() < GONE_WITHIN {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Of a node that is gone. Answers whether nothing is left.
fn remove_cgroups(name: &str) -> bool {
    let hierarchies = cache::files(Path::new("/sys/fs/cgroup")).unwrap_or_default();
    let roots = hierarchies
        .iter()
        .map(|hierarchy| hierarchy.join(name))
        .chain([Path::new("/sys/fs/cgroup").join(name)]);
    roots.filter(|root| root.is_dir()).all(|root| remove_cgroup(&root))
}

/// A cgroup is removed as a folder is, from its leaves; the files in it go along.
fn remove_cgroup(folder: &Path) -> bool {
    let below = cache::files(folder).unwrap_or_default();
    for cgroup in below.iter().filter(|path| path.is_dir()) {
        remove_cgroup(cgroup);
    }
    fs::remove_dir(folder).is_ok()
}

fn ip(arguments: &[&str]) -> Result<(), Error> {
    let doing = format!("ip {}", arguments.join(" "));
    cache::run(Command::new("ip").args(arguments), "ip", "iproute2", &doing)
}
