//! What the resource's Secrets hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use outbox_relay::config::Secret as Hidden;
use tempfile::TempDir;

use crate::desired::files::{MountedSecret, mounted, path};
use crate::desired::workload::digest;
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
#[derive(Debug)]
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
}

impl Secrets {
    /// Reads all of them.
    ///
    /// # Errors
    /// Names the Secret, and the key.
    pub async fn read(
        client: &Client,
        namespace: &str,
        spec: &OutboxRelaySpec,
    ) -> Result<Secrets, SecretError> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let folder = tempfile::tempdir()?;
        let mut values = Vec::new();
        for secret in mounted(spec) {
            let data = data(&api, &secret.secret).await?;
            values.extend(keep(folder.path(), &secret, &data)?);
        }
        let postgres = &spec.source.postgres;
        Ok(Secrets {
            postgres: login(&api, &postgres.credentials_secret_ref).await?,
            postgres_admin: optional(&api, postgres.admin_credentials_secret_ref.as_ref()).await?,
            kafka_admin: optional(&api, spec.sink.kafka.admin_credentials_secret_ref.as_ref()).await?,
            digest: digest(values.iter().map(String::as_str)),
            folder,
        })
    }

    /// Where the pods' files are for this process.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }
}

async fn data(api: &Api<Secret>, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SecretError> {
    let secret = api.get_opt(name).await;
    let secret = secret.map_err(|error| SecretError::Unreadable { name: name.to_owned(), error })?;
    let secret = secret.ok_or_else(|| SecretError::Missing(name.to_owned()))?;
    Ok(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect())
}

fn text(secret: &str, key: &str, data: &BTreeMap<String, Vec<u8>>) -> Result<String, SecretError> {
    let (secret, key) = (secret.to_owned(), key.to_owned());
    let Some(value) = data.get(&key) else { return Err(SecretError::NoKey { secret, key }) };
    String::from_utf8(value.clone()).map_err(|_| SecretError::NotText { secret, key })
}

/// Writes a Secret's files as the pods see them; answers what is in them.
fn keep(
    root: &Path,
    secret: &MountedSecret,
    data: &BTreeMap<String, Vec<u8>>,
) -> Result<Vec<String>, SecretError> {
    fs::create_dir_all(path(root, secret.folder, ""))?;
    let mut values = Vec::new();
    for (key, file) in &secret.files {
        let value = text(&secret.secret, key, data)?;
        fs::write(path(root, secret.folder, file), &value)?;
        values.push(value);
    }
    Ok(values)
}

async fn login(api: &Api<Secret>, reference: &CredentialsSecretRef) -> Result<Login, SecretError> {
    let data = data(api, &reference.name).await?;
    let value = |key: &str| {
        let value = text(&reference.name, key, &data)?;
        // Editors and `base64` add the end of a line, and no secret has one.
        Ok::<_, SecretError>(value.trim_end_matches(['\r', '\n']).to_owned())
    };
    Ok(Login {
        user: value(&reference.username_key)?,
        password: Hidden::new(value(&reference.password_key)?),
    })
}

async fn optional(
    api: &Api<Secret>,
    reference: Option<&CredentialsSecretRef>,
) -> Result<Option<Login>, SecretError> {
    match reference {
        Some(reference) => Ok(Some(login(api, reference).await?)),
        None => Ok(None),
    }
}
