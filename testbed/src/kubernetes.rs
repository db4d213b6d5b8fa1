//! A real Kubernetes control plane: etcd, API server, controller manager and scheduler. It has no nodes, so pods are made and
//! stay pending, unless one is simulated ([`Kubernetes::simulate_node`]) or real ([`Kubernetes::with_node`]).

mod access;
mod binaries;
mod cluster;
mod monitoring;
mod network;
mod node;
mod servers;

use std::ops::Deref;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;

use self::access::{Access, User};
use self::binaries::Programs;
pub use self::cluster::{Cluster, KUBECONFIG, Namespace};
pub use self::monitoring::Monitoring;
use self::network::Network;
use self::node::Node;
pub use self::servers::{Data, Servers};
use crate::guard::Folder;
pub use crate::packages::can_be_a_node;
use crate::process::{Launch, Program};
use crate::{Error, blocking, net, packages, wait};

/// Generous: the API server sets its storage up, on a machine that is busy with tests.
const READY_WITHIN: Duration = Duration::from_secs(120);

const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "simulated"}}"#;

/// A control plane, which one talks to as to any [`Cluster`]. Dropping it ends it and removes its files.
pub struct Kubernetes {
    cluster: Cluster,
    programs: Programs,
    network: Network,
    ports: Ports,
    access: Access,
    node: Option<Node>,
    api_server: Mutex<Option<Program>>,
    /// etcd, controller manager, scheduler.
    others: Vec<Program>,
    folder: Folder,
}

#[derive(Clone, Copy)]
struct Ports {
    etcd: u16,
    etcd_peers: u16,
    api_server: u16,
    controller_manager: u16,
    scheduler: u16,
}

static SHARED: OnceCell<(Cluster, Option<Kubernetes>)> = OnceCell::const_new();

/// The cluster of all tests of this process: that of [`KUBECONFIG`], or a separate control plane, started at the first call. A
/// test that stops something of it starts one for itself.
///
/// # Errors
/// As [`Kubernetes::start`] or [`Cluster::existing`].
pub async fn shared_cluster() -> Result<&'static Cluster, Error> {
    let begun = SHARED.get_or_try_init(async || {
        if let Some(kubeconfig) = std::env::var_os(KUBECONFIG) {
            return Ok((Cluster::existing(Path::new(&kubeconfig), &[]).await?, None));
        }
        let own = Kubernetes::start().await?;
        Ok((own.cluster.clone(), Some(own)))
    });
    begun.await.map(|(cluster, _)| cluster)
}

impl Deref for Kubernetes {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Kubernetes {
    /// Builds the programs if need be, and starts them; returns when objects can be made.
    ///
    /// # Errors
    /// Go is missing, the module proxy cannot be reached, or a program does not come up; the error shows its log.
    pub async fn start() -> Result<Kubernetes, Error> {
        Kubernetes::start_in(Folder::new("kubernetes")?, Network::loopback(), None).await
    }

    /// The same with a real node, which runs containers; this machine's programs reach their addresses and those of Services.
    ///
    /// # Errors
    /// As [`Kubernetes::start`]; this machine cannot be a node (not root, no Debian), or it does not become ready.
    pub async fn with_node() -> Result<Kubernetes, Error> {
        packages::require_root()?;
        let folder = Folder::new("kubernetes")?;
        let node = Node::new(folder.path()).await?;
        let network = node.claim().network();
        let mut cluster = Kubernetes::start_in(folder, network, Some(node)).await?;
        for (name, role, user) in [
            ("kubelet-client", "system:kubelet-api-admin", access::KUBELET_CLIENT),
            ("dns", "view", access::DNS),
        ] {
            let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
            cluster.kubectl(&["create", "clusterrolebinding", name, &role, &user]).await?;
        }
        if let Some(node) = &mut cluster.node {
            node.join(&cluster.access).await?;
        }
        cluster.import_pause().await?;
        let condition =
            ["get", "node", node::NAME, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
        wait::until("a ready node", READY_WITHIN, async || match cluster.kubectl(&condition).await {
            Ok(status) if status == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await?;
        Ok(cluster)
    }

    async fn start_in(folder: Folder, network: Network, node: Option<Node>) -> Result<Kubernetes, Error> {
        let programs = blocking(Programs::find).await?;
        let ports = Ports {
            etcd: net::free_port()?,
            etcd_peers: net::free_port()?,
            api_server: net::free_port()?,
            controller_manager: net::free_port()?,
            scheduler: net::free_port()?,
        };
        let access = Access::new(folder.path(), &network, ports.api_server)?;
        let import = node.as_ref().map_or_else(Vec::new, Node::import_command);
        let cluster = Cluster::new(&programs, access.kubeconfig(User::Admin).to_owned(), import)?;
        let (api_server, others) = (Mutex::default(), Vec::new());
        let mut cluster =
            Kubernetes { cluster, programs, network, ports, access, node, api_server, others, folder };
        cluster.others.push(cluster.etcd()?);
        cluster.start_api_server().await?;
        cluster.others.push(cluster.controller_manager()?);
        cluster.others.push(cluster.scheduler()?);
        // The last thing that a namespace needs.
        let account = ["get", "serviceaccount", "default", "--namespace", "default"];
        wait::until("the default service account", READY_WITHIN, async || {
            cluster.kubectl(&account).await.map(drop)
        })
        .await?;
        Ok(cluster)
    }

    /// Starts the API server again where it was killed, and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up; the error shows its log.
    pub async fn start_api_server(&self) -> Result<(), Error> {
        let mut program = self.api_server_program()?;
        wait::until("a ready API server", READY_WITHIN, async || {
            if program.exit_status().is_some() {
                return Ok(Err(program.ended_early()));
            }
            self.kubectl(&["get", "--raw", "/readyz"]).await.map(|_| Ok(()))
        })
        .await??;
        *lock(&self.api_server) = Some(program);
        Ok(())
    }

    /// kill -9 of the API server: asked to stop it would wait a minute for those who watch.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill_api_server(&self) -> Result<(), Error> {
        let running = lock(&self.api_server).take();
        let Some(mut program) = running else { return Ok(()) };
        program.kill().await
    }

    /// A node that runs every pod there is by saying so, at once. `pods` is the network (CIDR) of their addresses.
    ///
    /// # Errors
    /// kwok cannot be built, or does not make the node ready.
    pub async fn simulate_node(&mut self, pods: &str) -> Result<(), Error> {
        let (folder, stages) = blocking(binaries::kwok).await?;
        self.apply(NODE).await?;
        let kwok = Launch::new("kwok", folder.join("kwok"))
            .log_to(self.folder.path().join("kwok.log"))
            .unprivileged()
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .arg("--manage-all-nodes")
            .arg("--node-lease-duration-seconds=40")
            .arg(format!("--cidr={pods}"));
        let kwok = stages.iter().fold(kwok, |kwok, stage| kwok.arg(format!("--config={}", stage.display())));
        self.others.push(kwok.start()?);
        let ready = ["wait", "--for=condition=Ready", "node/simulated", "--timeout=60s"];
        self.kubectl(&ready).await.map(drop)
    }

    /// Process numbers of all that runs.
    pub fn pids(&self) -> Vec<u32> {
        self.others.iter().chain(&*lock(&self.api_server)).map(Program::pid).collect()
    }

    fn etcd(&self) -> Result<Program, Error> {
        let Ports { etcd, etcd_peers, .. } = self.ports;
        let (clients, peers) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{etcd_peers}"));
        self.launch("etcd")
            .arg("--name=testbed")
            .arg(format!("--data-dir={}", self.folder.path().join("etcd").display()))
            // The cluster lives for one test.
            .arg("--unsafe-no-fsync")
            .arg("--log-level=warn")
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=testbed={peers}"))
            .start()
    }

    fn api_server_program(&self) -> Result<Program, Error> {
        let launch = self
            .launch("kube-apiserver")
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd))
            .arg(format!("--bind-address={}", self.network.api_server))
            .arg(format!("--secure-port={}", self.ports.api_server));
        let launch = if self.node.is_some() {
            launch.arg(format!("--advertise-address={}", self.network.api_server))
        } else {
            // An address for documentation: nothing connects there, and without nodes nothing has to.
            launch.arg("--advertise-address=192.0.2.1").arg("--endpoint-reconciler-type=none")
        };
        launch
            .arg(self.access.flag("tls-cert-file", access::SERVER_CERTIFICATE))
            .arg(self.access.flag("tls-private-key-file", access::SERVER_KEY))
            .arg(self.access.flag("client-ca-file", access::AUTHORITY))
            .arg(self.access.flag("token-auth-file", access::TOKENS))
            .arg(self.access.flag("kubelet-client-certificate", access::CLIENT_CERTIFICATE))
            .arg(self.access.flag("kubelet-client-key", access::CLIENT_KEY))
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--authorization-mode=Node,RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(self.access.flag("service-account-key-file", access::ACCOUNT_PUBLIC_KEY))
            .arg(self.access.flag("service-account-signing-key-file", access::ACCOUNT_KEY))
            .arg(format!("--service-cluster-ip-range={}", self.network.services))
            .arg("--profiling=false")
            .start()
    }

    fn controller_manager(&self) -> Result<Program, Error> {
        self.component("kube-controller-manager", User::ControllerManager, self.ports.controller_manager)
            .arg("--use-service-account-credentials=true")
            .arg(self.access.flag("service-account-private-key-file", access::ACCOUNT_KEY))
            .arg(self.access.flag("root-ca-file", access::AUTHORITY))
            .start()
    }

    fn scheduler(&self) -> Result<Program, Error> {
        self.component("kube-scheduler", User::Scheduler, self.ports.scheduler).start()
    }

    fn component(&self, program: &str, user: User, port: u16) -> Launch {
        let kubeconfig = self.access.kubeconfig(user).display();
        self.launch(program)
            .arg(format!("--kubeconfig={kubeconfig}"))
            .arg(format!("--authentication-kubeconfig={kubeconfig}"))
            .arg(format!("--authorization-kubeconfig={kubeconfig}"))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", self.folder.path().join(program).display()))
            .arg("--leader-elect=false")
            // By default it is so slow that the first service account takes seconds.
            .arg("--kube-api-qps=500")
            .arg("--kube-api-burst=1000")
            .arg("--profiling=false")
    }

    fn launch(&self, program: &str) -> Launch {
        Launch::new(program, self.programs.path(program))
            .log_to(self.folder.path().join(format!("{program}.log")))
            .unprivileged()
    }
}

fn lock(api_server: &Mutex<Option<Program>>) -> MutexGuard<'_, Option<Program>> {
    api_server.lock().unwrap_or_else(PoisonError::into_inner)
}
