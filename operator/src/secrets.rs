//! What the resource's Secrets hold, read for each side apart: a Secret for Kafka says nothing about the database. Nothing is written to
//! a disk.

mod reader;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use outbox_relay::config::Secret as Hidden;

pub use self::reader::{ReadError, Reader, SecretError, Values};
use crate::desired::files::{self, KAFKA, POSTGRES, SecretFolder};
use crate::digest::SecretsDigest;
use crate::resource::{CredentialsSecretRef, KafkaSink, PostgresSource, Username};

/// A user name and a password.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Name of the user.
    pub user: String,
    /// Its password.
    pub password: Hidden,
}

/// Contents of files by the paths that pods have them under, and of those that the operator alone has.
// Without Debug, which would show them.
#[derive(Default)]
pub struct Files {
    of_pods: BTreeMap<PathBuf, String>,
    own: BTreeMap<PathBuf, String>,
}

impl Files {
    /// The contents of a file, for [`outbox_relay::config::ReadFile`].
    ///
    /// # Errors
    /// There is no such file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let contents = self.of_pods.get(path).or_else(|| self.own.get(path));
        contents.map(|contents| contents.clone().into_bytes()).ok_or(io::ErrorKind::NotFound.into())
    }

    /// Changes when any of them changes.
    pub fn digest(&self) -> SecretsDigest {
        SecretsDigest::of(self.of_pods.values().chain(self.own.values()).map(String::as_str))
    }
}

/// For PostgreSQL.
pub struct PostgresSecrets {
    /// The relay's role.
    pub user: String,
    /// The administrator's role, where it has a password.
    pub admin: Option<Credentials>,
    /// Passwords and certificates.
    pub files: Files,
}

impl PostgresSecrets {
    /// Reads those that `postgres` names.
    ///
    /// # Errors
    /// Names the Secret, and the key.
    pub async fn read(
        reader: &mut Reader<'_>,
        postgres: &PostgresSource,
    ) -> Result<PostgresSecrets, ReadError> {
        let user = match (&postgres.credentials_secret_ref, &postgres.username) {
            (Some(reference), _) => user(reader, reference).await?,
            (None, Some(username)) => username.clone(),
            (None, None) => return Err(SecretError::NoRole.into()),
        };
        let admin = optional(reader, postgres.admin_credentials_secret_ref.as_ref()).await?;
        let admin_certificate = postgres.admin_certificate_secret_ref.as_ref();
        let own = admin_certificate.map(|reference| POSTGRES.admin_certificate(&reference.certificate));
        let of_pods = contents(reader, &files::of_postgres(postgres)).await?;
        let own = contents(reader, own.as_slice()).await?;
        Ok(PostgresSecrets { user, admin, files: Files { of_pods, own } })
    }
}

/// For Kafka.
pub struct KafkaSecrets {
    /// The administrator's SASL user, where there is one.
    pub admin: Option<Credentials>,
    /// Credentials and certificates.
    pub files: Files,
}

impl KafkaSecrets {
    /// Reads those that `kafka` names.
    ///
    /// # Errors
    /// Names the Secret, and the key.
    pub async fn read(reader: &mut Reader<'_>, kafka: &KafkaSink) -> Result<KafkaSecrets, ReadError> {
        // First: of a user name that is missing it is said how else it can be given.
        if let Some(reference) = kafka.sasl.as_ref().and_then(|sasl| sasl.credentials_secret_ref.as_ref()) {
            user(reader, reference).await?;
        }
        let admin = optional(reader, kafka.admin_credentials_secret_ref.as_ref()).await?;
        let admin_certificate = kafka.admin_certificate_secret_ref.as_ref();
        let own = admin_certificate.map(|reference| KAFKA.admin_certificate(reference));
        let of_pods = contents(reader, &files::of_kafka(kafka)).await?;
        let own = contents(reader, own.as_slice()).await?;
        Ok(KafkaSecrets { admin, files: Files { of_pods, own } })
    }
}

async fn user(reader: &mut Reader<'_>, reference: &CredentialsSecretRef) -> Result<String, ReadError> {
    match reference.user() {
        Username::Text(name) => Ok(name.to_owned()),
        Username::Key(key) => reader.line(&reference.name, key).await.map_err(|error| match error {
            ReadError::Unusable(SecretError::NoKey { secret, key }) => {
                SecretError::NoUsername { secret, key }.into()
            }
            error => error,
        }),
    }
}

async fn optional(
    reader: &mut Reader<'_>,
    reference: Option<&CredentialsSecretRef>,
) -> Result<Option<Credentials>, ReadError> {
    let Some(reference) = reference else { return Ok(None) };
    let user = user(reader, reference).await?;
    let password = Hidden::new(reader.line(&reference.name, &reference.password_key).await?);
    Ok(Some(Credentials { user, password }))
}

async fn contents(
    reader: &mut Reader<'_>,
    folders: &[SecretFolder],
) -> Result<BTreeMap<PathBuf, String>, ReadError> {
    let mut contents = BTreeMap::new();
    for folder in folders {
        for (key, path) in folder.paths() {
            contents.insert(path, reader.value(&folder.secret, key).await?);
        }
    }
    Ok(contents)
}
