//! Where the relay's pods find what is in Secrets: each Secret in a folder of its own, mounted read-only. The programs
//! read the files again when they connect, so what is rotated is used without a new pod.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};

use crate::resource::{CredentialsSecretRef, OutboxRelaySpec, Tls};

/// Where pods have the folders.
pub const POD_ROOT: &str = "/etc/outbox-relay/secrets";

/// Pods run as another user than the one that owns the files: readable by the group they are given.
const READABLE: i32 = 0o440;

/// A Secret that pods see, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedSecret {
    /// Name of folder and volume.
    pub folder: &'static str,
    /// Name of the Secret.
    pub secret: String,
    /// Its keys that are seen, and the file each is seen as.
    pub files: Vec<(String, &'static str)>,
}

/// The password of a login.
pub const PASSWORD: &str = "password";
/// The user name of a login.
pub const USERNAME: &str = "username";
const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Path of a file in a folder below `root`.
pub fn path(root: &Path, folder: &str, file: &str) -> PathBuf {
    root.join(folder).join(file)
}

/// The files a side's TLS settings name: authorities, certificate, key.
pub fn tls(root: &Path, side: &Side, tls: &Tls) -> [Option<PathBuf>; 3] {
    let certificate = tls.certificate_secret_ref.as_ref();
    [
        tls.ca_secret_ref.as_ref().map(|_| path(root, side.ca, CA)),
        certificate.map(|_| path(root, side.certificate, CERTIFICATE)),
        certificate.map(|_| path(root, side.certificate, KEY)),
    ]
}

/// The folders of one side.
pub struct Side {
    /// Of the login.
    pub login: &'static str,
    ca: &'static str,
    certificate: &'static str,
}

/// Postgres.
pub const POSTGRES: Side = Side { login: "postgres", ca: "postgres-ca", certificate: "postgres-tls" };
/// Kafka.
pub const KAFKA: Side = Side { login: "kafka", ca: "kafka-ca", certificate: "kafka-tls" };

/// Every Secret that pods see. The administrators' are not among them.
pub fn mounted(spec: &OutboxRelaySpec) -> Vec<MountedSecret> {
    let (postgres, kafka) = (&spec.source.postgres, &spec.sink.kafka);
    let mut mounted = vec![login(&POSTGRES, &postgres.credentials_secret_ref)];
    mounted.extend(certificates(&POSTGRES, &postgres.tls));
    mounted.extend(kafka.sasl.iter().map(|sasl| login(&KAFKA, &sasl.credentials_secret_ref)));
    mounted.extend(certificates(&KAFKA, &kafka.tls));
    mounted
}

fn login(side: &Side, credentials: &CredentialsSecretRef) -> MountedSecret {
    MountedSecret {
        folder: side.login,
        secret: credentials.name.clone(),
        files: vec![
            (credentials.username_key.clone(), USERNAME),
            (credentials.password_key.clone(), PASSWORD),
        ],
    }
}

fn certificates(side: &Side, tls: &Tls) -> Vec<MountedSecret> {
    let ca = tls.ca_secret_ref.iter().map(|reference| MountedSecret {
        folder: side.ca,
        secret: reference.name.clone(),
        files: vec![(reference.key.clone(), CA)],
    });
    let certificate = tls.certificate_secret_ref.iter().map(|reference| MountedSecret {
        folder: side.certificate,
        secret: reference.name.clone(),
        files: vec![(CERTIFICATE.into(), CERTIFICATE), (KEY.into(), KEY)],
    });
    ca.chain(certificate).collect()
}

impl MountedSecret {
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
