//! Who may talk to the API server, and how: a CA of the cluster, a token for each user, and kubeconfigs.

use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use serde_json::json;
use uuid::Uuid;

use super::network::Network;
use crate::certificates::Authority;
use crate::{Error, guard};

/// Only the servers' user may read it.
pub(super) const PRIVATE: u32 = 0o600;

pub(super) const AUTHORITY: &str = "ca.crt";
pub(super) const SERVER_CERTIFICATE: &str = "apiserver.crt";
pub(super) const SERVER_KEY: &str = "apiserver.key";
pub(super) const ACCOUNT_KEY: &str = "accounts.key";
pub(super) const ACCOUNT_PUBLIC_KEY: &str = "accounts.pub";
/// By which the API server is known to kubelets, as the user [`KUBELET_CLIENT`].
pub(super) const CLIENT_CERTIFICATE: &str = "kubelet-client.crt";
pub(super) const CLIENT_KEY: &str = "kubelet-client.key";
pub(super) const TOKENS: &str = "tokens.csv";

pub(super) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
pub(super) const DNS: &str = "dns";

/// How pods reach the API server, besides its addresses.
const SERVER_NAMES: [&str; 4] = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// May do everything.
    Admin,
    ControllerManager,
    Scheduler,
    /// Of the only node there can be.
    Kubelet,
    Proxy,
    Dns,
}

impl User {
    const ALL: [User; 6] =
        [User::Admin, User::ControllerManager, User::Scheduler, User::Kubelet, User::Proxy, User::Dns];

    /// Name and group, which the API server's own roles are bound to.
    fn identity(self) -> (&'static str, &'static str) {
        match self {
            User::Admin => ("admin", "system:masters"),
            User::ControllerManager => ("system:kube-controller-manager", ""),
            User::Scheduler => ("system:kube-scheduler", ""),
            User::Kubelet => ("system:node:node", "system:nodes"),
            User::Proxy => ("system:kube-proxy", ""),
            User::Dns => (DNS, ""),
        }
    }
}

/// Files in the cluster's folder.
pub(super) struct Access {
    folder: PathBuf,
    server: String,
    kubeconfigs: Vec<(User, PathBuf)>,
}

impl Access {
    pub(super) fn new(folder: &Path, network: &Network, port: u16) -> Result<Access, Error> {
        let authority = Authority::new("testbed")?;
        let addresses = [network.api_server.as_str(), network.first_service.as_str()];
        let server = authority.server(&[&addresses[..], &SERVER_NAMES].concat())?;
        let client = authority.client(KUBELET_CLIENT)?;
        let accounts = KeyPair::generate().map_err(|error| {
            Error::system("make the key of service accounts")(std::io::Error::other(error))
        })?;
        let users = User::ALL.map(|user| (user, Uuid::new_v4().simple().to_string()));
        let lines = users.iter().map(|(user, token)| {
            let (name, group) = user.identity();
            format!("{token},{name},{name},{group}\n")
        });
        for (name, content) in [
            (AUTHORITY, authority.pem().to_owned()),
            (SERVER_CERTIFICATE, server.pem),
            (SERVER_KEY, server.key),
            (CLIENT_CERTIFICATE, client.pem),
            (CLIENT_KEY, client.key),
            (ACCOUNT_KEY, accounts.serialize_pem()),
            (ACCOUNT_PUBLIC_KEY, accounts.public_key_pem()),
            (TOKENS, lines.collect()),
        ] {
            guard::write_for_servers(&folder.join(name), &content, PRIVATE)?;
        }
        let server = format!("https://{}:{port}", network.api_server);
        let mut access = Access { folder: folder.to_owned(), server, kubeconfigs: Vec::new() };
        for (user, token) in users {
            let path = folder.join(format!("{user:?}.kubeconfig"));
            guard::write_for_servers(&path, &access.kubeconfig_with(&token), PRIVATE)?;
            access.kubeconfigs.push((user, path));
        }
        Ok(access)
    }

    pub(super) fn kubeconfig(&self, user: User) -> &Path {
        let found = self.kubeconfigs.iter().find(|(owner, _)| *owner == user);
        found.map_or(&self.folder, |(_, path)| path)
    }

    /// With a token of the API server's own. JSON is YAML.
    fn kubeconfig_with(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "testbed", "cluster": {
                "server": self.server,
                "certificate-authority": self.path(AUTHORITY),
            }}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user"}}],
            "current-context": "testbed",
        })
        .to_string()
    }

    /// One of the files.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// A command line flag with one of the files.
    pub(super) fn flag(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.path(file).display())
    }
}
