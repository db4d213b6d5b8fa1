//! What the resource's Secrets hold.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use outbox_relay::config::Secret as Hidden;
use tempfile::TempDir;

use crate::desired::files::{MountedSecret, mounted, path};
use crate::desired::workload::digest;
use crate::metrics::Metrics;
use crate::resource::{CredentialsSecretRef, OutboxRelaySpec};

/// A Secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is none of that name.
    #[error("Secret {0} does not exist in this namespace: create it")]
    Missing(String),
    /// It lacks a key.
    #[error("Secret {secret} has no key '{key}': add it, or name the key in the reference")]
    NoKey {
        /// Its name.
        secret: String,
        /// The key.
        key: String,
    },
    /// What it holds is no text.
    #[error("Secret {secret}: the value of '{key}' is not UTF-8")]
    NotText {
        /// Its name.
        secret: String,
        /// The key.
        key: String,
    },
    /// The API server did not give it.
    #[error("Secret {name}: {error}")]
    Unreadable {
        /// Its name.
        name: String,
        /// Why.
        error: kube::Error,
    },
    /// The operator's own disk.
    #[error("cannot keep Secrets for the connection: {0}")]
    Files(#[from] std::io::Error),
}

/// A login.
#[derive(Clone, Debug)]
pub struct Login {
    /// Name of the user.
    pub user: String,
    /// Its password.
    pub password: Hidden,
}

/// What the resource's Secrets hold. Those of the pods are files as the pods see them, below a folder of this process's own that goes
/// with this value; so the operator connects as the relay does.
// Without Debug, which would show them.
pub struct Secrets {
    folder: TempDir,
    /// The relay's role.
    pub postgres: Login,
    /// The administrator's role, where there is one.
    pub postgres_admin: Option<Login>,
    /// The administrator's login to Kafka, where there is one.
    pub kafka_admin: Option<Login>,
    /// Changes when anything the pods see changes.
    pub digest: String,
    /// What all of them hold, as it was read.
    pub values: Arc<Values>,
}

/// What Secrets hold, by their names.
pub type Values = BTreeMap<String, Data>;

impl Secrets {
    /// Reads all of them; `api` leads to those of the resource's namespace. Those that are gone are as they were in `before`: when a
    /// namespace is deleted, they may go before the resource that needs them for its end.
    ///
    /// # Errors
    /// Names the Secret, and the key.
    pub async fn read(
        api: Api<Secret>,
        spec: &OutboxRelaySpec,
        metrics: &Metrics,
        before: Option<&Values>,
    ) -> Result<Secrets, SecretError> {
        let mut reader = Reader { api, metrics, before, read: BTreeMap::new() };
        let folder = tempfile::tempdir()?;
        let mut values = Vec::new();
        for secret in mounted(spec) {
            values.extend(keep(folder.path(), &secret, reader.data(&secret.secret).await?)?);
        }
        let postgres = &spec.source.postgres;
        Ok(Secrets {
            postgres: reader.login(&postgres.credentials_secret_ref).await?,
            postgres_admin: reader.optional(postgres.admin_credentials_secret_ref.as_ref()).await?,
            kafka_admin: reader.optional(spec.sink.kafka.admin_credentials_secret_ref.as_ref()).await?,
            digest: digest(values.iter().map(String::as_str)),
            values: Arc::new(reader.read),
            folder,
        })
    }

    /// Where the pods' files are for this process.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }
}

type Data = BTreeMap<String, ByteString>;

/// Reads each Secret once, however many references lead to it.
struct Reader<'a> {
    api: Api<Secret>,
    metrics: &'a Metrics,
    before: Option<&'a Values>,
    read: Values,
}

impl Reader<'_> {
    async fn data(&mut self, name: &str) -> Result<&Data, SecretError> {
        match self.read.entry(name.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let reading = self.api.get_opt(name);
                let secret = self.metrics.request("kubernetes", "read_secret", reading).await;
                let secret =
                    secret.map_err(|error| SecretError::Unreadable { name: name.to_owned(), error })?;
                let data = match secret {
                    Some(secret) => secret.data.unwrap_or_default(),
                    None => {
                        let before = self.before.and_then(|before| before.get(name));
                        before.cloned().ok_or_else(|| SecretError::Missing(name.to_owned()))?
                    }
                };
                Ok(unknown.insert(data))
            }
        }
    }

    async fn login(&mut self, reference: &CredentialsSecretRef) -> Result<Login, SecretError> {
        let data = self.data(&reference.name).await?;
        let value = |key: &str| {
            let value = text(&reference.name, key, data)?;
            // Editors and `base64` add the end of a line, and no secret has one.
            Ok::<_, SecretError>(value.trim_end_matches(['\r', '\n']).to_owned())
        };
        Ok(Login {
            user: value(&reference.username_key)?,
            password: Hidden::new(value(&reference.password_key)?),
        })
    }

    async fn optional(
        &mut self,
        reference: Option<&CredentialsSecretRef>,
    ) -> Result<Option<Login>, SecretError> {
        match reference {
            Some(reference) => Ok(Some(self.login(reference).await?)),
            None => Ok(None),
        }
    }
}

fn text(secret: &str, key: &str, data: &Data) -> Result<String, SecretError> {
    let (secret, key) = (secret.to_owned(), key.to_owned());
    let Some(value) = data.get(&key) else { return Err(SecretError::NoKey { secret, key }) };
    String::from_utf8(value.0.clone()).map_err(|_| SecretError::NotText { secret, key })
}

/// Writes a Secret's files as the pods see them; answers what is in them.
fn keep(root: &Path, secret: &MountedSecret, data: &Data) -> Result<Vec<String>, SecretError> {
    fs::create_dir_all(path(root, secret.folder, ""))?;
    let mut values = Vec::new();
    for (key, file) in &secret.files {
        let value = text(&secret.secret, key, data)?;
        fs::write(path(root, secret.folder, file), &value)?;
        values.push(value);
    }
    Ok(values)
}
