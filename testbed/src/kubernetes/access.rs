//! Who may talk to the API server, and how: an authority of the cluster's own, a token for each user, and kubeconfigs.

use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use serde_json::json;
use uuid::Uuid;

use crate::certificates::Authority;
use crate::{Error, guard};

/// Only the servers' user may read it.
pub(super) const PRIVATE: u32 = 0o600;

pub(super) const AUTHORITY: &str = "ca.crt";
pub(super) const SERVER_CERTIFICATE: &str = "apiserver.crt";
pub(super) const SERVER_KEY: &str = "apiserver.key";
pub(super) const ACCOUNT_KEY: &str = "accounts.key";
pub(super) const ACCOUNT_PUBLIC_KEY: &str = "accounts.pub";
pub(super) const TOKENS: &str = "tokens.csv";

/// How clients reach the API server: by address, and pods by the names of its service.
const SERVER_NAMES: [&str; 6] =
    ["127.0.0.1", "10.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// May do everything.
    Admin,
    ControllerManager,
    Scheduler,
}

impl User {
    const ALL: [User; 3] = [User::Admin, User::ControllerManager, User::Scheduler];

    /// Name and group, which the API server's own roles are bound to.
    fn identity(self) -> (&'static str, &'static str) {
        match self {
            User::Admin => ("admin", "system:masters"),
            User::ControllerManager => ("system:kube-controller-manager", ""),
            User::Scheduler => ("system:kube-scheduler", ""),
        }
    }
}

/// Files in the cluster's folder.
pub(super) struct Access {
    folder: PathBuf,
    kubeconfigs: Vec<(User, PathBuf)>,
}

impl Access {
    pub(super) fn new(folder: &Path, port: u16) -> Result<Access, Error> {
        let authority = Authority::new("testbed")?;
        let server = authority.server(&SERVER_NAMES)?;
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
            (ACCOUNT_KEY, accounts.serialize_pem()),
            (ACCOUNT_PUBLIC_KEY, accounts.public_key_pem()),
            (TOKENS, lines.collect()),
        ] {
            guard::write_for_servers(&folder.join(name), &content, PRIVATE)?;
        }
        let mut kubeconfigs = Vec::new();
        for (user, token) in users {
            let path = folder.join(format!("{user:?}.kubeconfig"));
            guard::write_for_servers(&path, &kubeconfig(&folder.join(AUTHORITY), port, &token), PRIVATE)?;
            kubeconfigs.push((user, path));
        }
        Ok(Access { folder: folder.to_owned(), kubeconfigs })
    }

    pub(super) fn kubeconfig(&self, user: User) -> &Path {
        let found = self.kubeconfigs.iter().find(|(owner, _)| *owner == user);
        found.map_or(&self.folder, |(_, path)| path)
    }

    /// With a token of the API server's own.
    pub(super) fn kubeconfig_with(&self, port: u16, token: &str) -> String {
        kubeconfig(&self.folder.join(AUTHORITY), port, token)
    }

    /// A command line flag with one of the files.
    pub(super) fn flag(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.folder.join(file).display())
    }
}

/// JSON is YAML.
fn kubeconfig(authority: &Path, port: u16, token: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": authority,
        }}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user"}}],
        "current-context": "testbed",
    })
    .to_string()
}
