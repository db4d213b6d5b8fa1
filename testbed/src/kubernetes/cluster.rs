//! A cluster as its administrator sees it: kubectl, helm and, where its node takes images, a way for those.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::access::PRIVATE;
use super::binaries::{self, Programs};
use crate::guard::{self, Folder};
use crate::{Error, blocking, images, shared, wait};

/// Environment variable with the kubeconfig of a control plane that tests may use instead of starting one. It has no nodes,
/// and no other objects.
pub const KUBECONFIG: &str = "OUTBOX_TEST_KUBECONFIG";

/// On a busy machine.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(120);

/// The administrator of a cluster, who may be several.
#[derive(Clone)]
pub struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// The command that makes an image known to the node; its last argument is the archive. Empty where there is none.
    import: Vec<String>,
    /// What kubectl and helm keep, which would be in the home folder.
    folder: Arc<Folder>,
}

/// A namespace of one test.
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

impl Cluster {
    /// An existing cluster. `import` is the command that makes an image's archive known to its nodes.
    ///
    /// # Errors
    /// There is no such kubeconfig, or kubectl cannot be built.
    pub async fn existing(kubeconfig: &Path, import: &[String]) -> Result<Cluster, Error> {
        let kubeconfig = fs::canonicalize(kubeconfig).map_err(Error::file("read", kubeconfig))?;
        let programs = blocking(Programs::find).await?;
        Cluster::new(&programs, kubeconfig, import.to_vec())
    }

    pub(super) fn new(
        programs: &Programs,
        kubeconfig: PathBuf,
        import: Vec<String>,
    ) -> Result<Cluster, Error> {
        let folder = Arc::new(Folder::new("kubectl")?);
        Ok(Cluster { kubectl: programs.path("kubectl"), kubeconfig, import, folder })
    }

    /// What an administrator connects with.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The program kubectl.
    pub fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// The command that makes an image known to the node, without its last argument, the archive.
    pub fn import_command(&self) -> &[String] {
        &self.import
    }

    /// Makes an image known to the nodes: an archive as `docker save` writes them.
    ///
    /// # Errors
    /// There is no way to, or it fails; the error has what it said.
    pub async fn import(&self, archive: &Path) -> Result<(), Error> {
        let none =
            || Error::system("import an image without a real node")(std::io::ErrorKind::Unsupported.into());
        let (program, arguments) = self.import.split_first().ok_or_else(none)?;
        let mut import = Command::new(program);
        import.args(arguments).arg(archive);
        let doing = format!("importing {}", archive.display());
        blocking(move || run(import, &doing, "")).await.map(drop)
    }

    pub(super) async fn import_pause(&self) -> Result<(), Error> {
        let folder = Folder::new("pause")?;
        let to = folder.path().to_owned();
        self.import(&blocking(move || images::pause(&to)).await?).await
    }

    /// Folders with kubectl and helm, for `PATH`.
    ///
    /// # Errors
    /// helm cannot be built.
    pub fn tools(&self) -> Result<[PathBuf; 2], Error> {
        Ok([self.kubectl.with_file_name(""), binaries::helm()?])
    }

    /// Runs kubectl as an administrator; answers what it printed.
    ///
    /// # Errors
    /// It failed; the error has what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, Error> {
        self.kubectl_with(arguments, "").await
    }

    /// Applies objects, which are YAML or JSON.
    ///
    /// # Errors
    /// The API server refuses them; the error has what it said.
    pub async fn apply(&self, objects: &str) -> Result<String, Error> {
        self.kubectl_with(&["apply", "--server-side", "--filename", "-"], objects).await
    }

    /// Waits until the API server serves these CRDs, or all there are.
    ///
    /// # Errors
    /// [`Error::Timeout`] with what kubectl said.
    pub async fn until_established(&self, crds: &[&str]) -> Result<(), Error> {
        let which = if crds.is_empty() { &["--all"] } else { crds };
        // It fails, and does not wait, where a CRD has no condition yet.
        let wait = [&["wait", "--for=condition=Established", "crd"], which].concat();
        wait::until(format!("{crds:?} to be served"), ESTABLISHED_WITHIN, async || {
            self.kubectl(&wait).await.map(drop)
        })
        .await
    }

    /// Runs kubectl with an input.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String, Error> {
        let kubectl = self.kubectl_command(arguments);
        let (doing, input) = (format!("kubectl {}", arguments.join(" ")), input.to_owned());
        blocking(move || run(kubectl, &doing, &input)).await
    }

    /// Runs helm as an administrator; answers what it printed.
    ///
    /// # Errors
    /// helm cannot be built, or it failed; the error has what it said.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String, Error> {
        let home = self.folder.path().join("helm");
        let (kubeconfig, doing) = (self.kubeconfig.clone(), format!("helm {}", arguments.join(" ")));
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        blocking(move || {
            let mut helm = Command::new(binaries::helm()?.join("helm"));
            helm.args(arguments).env("KUBECONFIG", kubeconfig);
            for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
                helm.env(folder, &home);
            }
            run(helm, &doing, "")
        })
        .await
    }

    fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut kubectl = Command::new(&self.kubectl);
        kubectl
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.folder.path().join("kubectl-cache"));
        kubectl
    }

    /// Lets a namespace take no pods but those that Pod Security calls restricted.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn restrict(&self, namespace: &str) -> Result<(), Error> {
        let label = ["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"];
        self.kubectl(&label).await.map(drop)
    }

    /// A namespace for one test, deleted when it is dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn namespace(&self, purpose: &str) -> Result<Namespace, Error> {
        let name = shared::unique(purpose).replace('_', "-");
        self.kubectl(&["create", "namespace", &name]).await?;
        Ok(Namespace { cluster: self.clone(), name })
    }

    /// What the pods of a service account connect with.
    ///
    /// # Errors
    /// There is no such account.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf, Error> {
        let token = self.kubectl(&["create", "token", account, "--namespace", namespace]).await?;
        let own = self.kubectl(&["config", "view", "--minify", "--flatten", "--raw", "-o", "json"]).await?;
        let path = self.folder.path().join(format!("{namespace}-{account}.kubeconfig"));
        let unreadable = |why: std::io::Error| Error::file("understand", &self.kubeconfig)(why);
        let mut kubeconfig: serde_json::Value =
            serde_json::from_str(&own).map_err(|error| unreadable(error.into()))?;
        // The administrator's own credentials must not stay in it.
        let user = kubeconfig.pointer_mut("/users/0/user");
        *user.ok_or_else(|| unreadable(std::io::ErrorKind::InvalidData.into()))? =
            serde_json::json!({ "token": token.trim() });
        guard::write_for_servers(&path, &kubeconfig.to_string(), PRIVATE)?;
        Ok(path)
    }
}

impl Namespace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Runs kubectl in it.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, Error> {
        self.kubectl_with(arguments, "").await
    }

    /// Runs kubectl in it with an input.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String, Error> {
        self.cluster.kubectl_with(&[&["--namespace", &self.name], arguments].concat(), input).await
    }
}

impl Drop for Namespace {
    /// Best effort: the cluster ends with the test run, or exists for tests.
    fn drop(&mut self) {
        let mut kubectl = self.cluster.kubectl_command(&["delete", "namespace", "--wait=false", &self.name]);
        drop(kubectl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
    }
}

pub(super) fn run(mut command: Command, doing: &str, input: &str) -> Result<String, Error> {
    // A file, because a pipe would need another thread that fills it.
    let folder = Folder::new("input")?;
    let path = folder.path().join("input");
    fs::write(&path, input).map_err(Error::file("write", &path))?;
    let file = fs::File::open(&path).map_err(Error::file("read", &path))?;
    let output = command.stdin(file).output().map_err(Error::file("run", command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Failed { doing: doing.to_owned(), status: output.status, output: said })
}
