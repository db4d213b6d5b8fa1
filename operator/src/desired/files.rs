//! Where the relay's pods find what is in Secrets: each Secret in a separate folder, mounted read-only. The relay reads the files
//! again when it connects, so what is rotated is used without a new pod. The operator, which has the contents in memory, knows them by
//! the same paths.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};

use crate::resource::{
    CaSecretRef, CertificateSecretRef, CredentialsSecretRef, KafkaSink, OutboxRelaySpec, PostgresSource,
    Sasl, Username,
};

/// Where pods have the folders.
pub const POD_ROOT: &str = "/etc/outbox-relay/secrets";

/// Pods run as another user than the one that owns the files: readable by the group they are given.
const READABLE: i32 = 0o440;

const PASSWORD: &str = "password";
const USERNAME: &str = "username";
const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// A Secret as a folder with some of its keys as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFolder {
    /// Name of folder and volume.
    pub folder: &'static str,
    /// Name of the Secret.
    pub secret: String,
    /// Keys of the Secret, and the file that each of them is.
    pub files: Vec<(String, &'static str)>,
}

/// The folders of one side.
pub struct Side {
    credentials: &'static str,
    ca: &'static str,
    certificate: &'static str,
    /// No pod has it.
    admin_certificate: &'static str,
}

/// PostgreSQL.
pub const POSTGRES: Side = Side {
    credentials: "postgres",
    ca: "postgres-ca",
    certificate: "postgres-tls",
    admin_certificate: "postgres-admin-tls",
};
/// Kafka.
pub const KAFKA: Side = Side {
    credentials: "kafka",
    ca: "kafka-ca",
    certificate: "kafka-tls",
    admin_certificate: "kafka-admin-tls",
};

/// Folder of the CA certificates for the token endpoint.
const TOKEN_ENDPOINT_CA: &str = "kafka-token-endpoint-ca";

/// The file with the CA certificates for the token endpoint.
pub fn token_endpoint_ca_file() -> PathBuf {
    path(TOKEN_ENDPOINT_CA, CA)
}

impl Side {
    /// The file with the password.
    pub fn password_file(&self) -> PathBuf {
        path(self.credentials, PASSWORD)
    }

    /// The file with the user name.
    pub fn username_file(&self) -> PathBuf {
        path(self.credentials, USERNAME)
    }

    /// The file with the trusted CAs, where there is a reference to them.
    pub fn ca_file(&self, reference: Option<&CaSecretRef>) -> Option<PathBuf> {
        reference.map(|_| path(self.ca, CA))
    }

    /// The files with the relay's certificate and its private key, where there is a reference to them.
    pub fn certificate_files(&self, reference: Option<&CertificateSecretRef>) -> [Option<PathBuf>; 2] {
        [CERTIFICATE, KEY].map(|file| reference.map(|_| path(self.certificate, file)))
    }

    /// The files with the administrator's certificate and its private key.
    pub fn admin_certificate_files(&self) -> [Option<PathBuf>; 2] {
        [CERTIFICATE, KEY].map(|file| Some(path(self.admin_certificate, file)))
    }

    /// What the operator alone reads.
    pub fn admin_certificate(&self, reference: &CertificateSecretRef) -> SecretFolder {
        certificate(self.admin_certificate, reference)
    }

    fn credentials(
        &self,
        reference: &CredentialsSecretRef,
        files: Vec<(String, &'static str)>,
    ) -> SecretFolder {
        SecretFolder { folder: self.credentials, secret: reference.name.clone(), files }
    }

    fn ca(&self, reference: &CaSecretRef) -> SecretFolder {
        ca(self.ca, reference)
    }
}

/// What pods see of the Secrets for PostgreSQL. The role's name is in the relay's configuration.
pub fn of_postgres(postgres: &PostgresSource) -> Vec<SecretFolder> {
    let tls = &postgres.tls.tls;
    let credentials = postgres
        .credentials_secret_ref
        .iter()
        .map(|reference| POSTGRES.credentials(reference, vec![(reference.password_key.clone(), PASSWORD)]));
    let ca = tls.ca_secret_ref.iter().map(|reference| POSTGRES.ca(reference));
    let own = tls.certificate_secret_ref.iter().map(|own| certificate(POSTGRES.certificate, own));
    credentials.chain(ca).chain(own).collect()
}

/// What pods see of the Secrets for Kafka. A user name that is a text of the resource is in the relay's configuration.
pub fn of_kafka(kafka: &KafkaSink) -> Vec<SecretFolder> {
    let sasl = kafka.sasl.as_ref();
    let credentials =
        sasl.and_then(|sasl| sasl.credentials_secret_ref.as_ref()).into_iter().map(|reference| {
            let username = match reference.user() {
                Username::Text(_) => None,
                Username::Key(key) => Some((key.to_owned(), USERNAME)),
            };
            let password = (reference.password_key.clone(), PASSWORD);
            KAFKA.credentials(reference, username.into_iter().chain([password]).collect())
        });
    let ca = kafka.tls.ca_secret_ref.iter().map(|reference| KAFKA.ca(reference));
    let own = kafka.tls.certificate_secret_ref.iter().map(|own| certificate(KAFKA.certificate, own));
    let token_endpoint_ca = sasl.and_then(token_endpoint_ca);
    credentials.chain(ca).chain(own).chain(token_endpoint_ca).collect()
}

fn token_endpoint_ca(sasl: &Sasl) -> Option<SecretFolder> {
    let endpoint = sasl.oauthbearer.as_ref()?.token_endpoint.as_ref()?;
    endpoint.ca_secret_ref.as_ref().map(|reference| ca(TOKEN_ENDPOINT_CA, reference))
}

/// Every Secret that pods see. The administrators' are not among them.
pub fn mounted(spec: &OutboxRelaySpec) -> Vec<SecretFolder> {
    [of_postgres(&spec.source.postgres), of_kafka(&spec.sink.kafka)].concat()
}

fn ca(folder: &'static str, reference: &CaSecretRef) -> SecretFolder {
    SecretFolder { folder, secret: reference.name.clone(), files: vec![(reference.key.clone(), CA)] }
}

fn certificate(folder: &'static str, reference: &CertificateSecretRef) -> SecretFolder {
    SecretFolder {
        folder,
        secret: reference.name.clone(),
        files: vec![
            (reference.certificate_key.clone(), CERTIFICATE),
            (reference.private_key_key.clone(), KEY),
        ],
    }
}

fn path(folder: &str, file: &str) -> PathBuf {
    Path::new(POD_ROOT).join(folder).join(file)
}

impl SecretFolder {
    /// The files, each with its key in the Secret.
    pub fn paths(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.files.iter().map(|(key, file)| (key.as_str(), path(self.folder, file)))
    }

    /// The volume of a pod.
    pub fn volume(&self) -> Volume {
        let item = |(key, path): &(String, &str)| KeyToPath {
            key: key.clone(),
            path: (*path).to_owned(),
            mode: None,
        };
        Volume {
            name: self.folder.to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(self.secret.clone()),
                items: Some(self.files.iter().map(item).collect()),
                default_mode: Some(READABLE),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        }
    }

    /// Where the container sees it.
    pub fn mount(&self) -> VolumeMount {
        VolumeMount {
            name: self.folder.to_owned(),
            mount_path: format!("{POD_ROOT}/{}", self.folder),
            read_only: Some(true),
            ..VolumeMount::default()
        }
    }
}
