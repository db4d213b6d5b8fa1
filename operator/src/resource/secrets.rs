//! References to Secrets, in the forms in which other operators make them, and how connections are protected.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key of a user name where the reference names none.
const USERNAME_KEY: &str = "username";

/// A user name and a password. The password is in a Secret of the same namespace; the user name is in the same Secret, or here.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.username) || !has(self.usernameKey)")
        .message("give either username, which is the user name itself, or usernameKey, which is a key of the Secret"),
)]
pub struct CredentialsSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The user name itself, for a Secret without one. In Strimzi's Secret of a KafkaUser it is the name of the KafkaUser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub username: Option<String>,
    /// Key of the user name in the Secret. `username`, when neither this field nor `username` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub username_key: Option<String>,
    /// Key of the password in the Secret.
    #[serde(default = "password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub password_key: String,
}

impl CaSecretRef {
    /// A Secret with the usual key.
    pub fn of(name: String) -> CaSecretRef {
        CaSecretRef { name, key: ca_key() }
    }
}

/// Where a user name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Username<'a> {
    /// In the resource.
    Text(&'a str),
    /// In the Secret, under this key.
    Key(&'a str),
}

impl CredentialsSecretRef {
    /// A Secret with the usual keys; with the user name itself, where that is known.
    pub fn of(name: String, username: Option<String>) -> CredentialsSecretRef {
        CredentialsSecretRef { name, username, username_key: None, password_key: password_key() }
    }

    /// Where the user name is.
    pub fn user(&self) -> Username<'_> {
        match (&self.username, &self.username_key) {
            (Some(text), _) => Username::Text(text),
            (None, Some(key)) => Username::Key(key),
            (None, None) => Username::Key(USERNAME_KEY),
        }
    }
}

/// CA certificates in a Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the certificates, PEM.
    #[serde(default = "ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A client certificate and its private key in a Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the certificate, PEM. cert-manager and CloudNativePG write `tls.crt`, Strimzi writes `user.crt`.
    #[serde(default = "certificate_key")]
    #[schemars(length(min = 1, max = 253))]
    pub certificate_key: String,
    /// Key of the private key, PEM, not encrypted. cert-manager and CloudNativePG write `tls.key`, Strimzi writes `user.key`.
    #[serde(default = "private_key_key")]
    #[schemars(length(min = 1, max = 253))]
    pub private_key_key: String,
}

/// A role, and the client certificate that it logs in with, in a Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleCertificateSecretRef {
    /// The role.
    #[schemars(length(min = 1, max = 63))]
    pub username: String,
    /// The Secret.
    #[serde(flatten)]
    pub certificate: CertificateSecretRef,
}

/// How connections are protected.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.caSecretRef) || self.mode == 'verify-ca' || self.mode == 'verify-full'")
        .message("caSecretRef is not used in this mode: set mode to verify-full or verify-ca, or leave it out"),
    validation = Rule::new("!has(self.certificateSecretRef) || self.mode != 'disable'")
        .message("certificateSecretRef is not used without TLS: set another mode, or leave it out"),
)]
pub struct Tls {
    /// What is required of the server: nothing (disable, no encryption), encryption (require), a certificate of a trusted CA
    /// (verify-ca), or one for the name that is connected to (verify-full).
    #[serde(default)]
    pub mode: TlsMode,
    /// Trusted CAs. Without it, the public root CAs that the relay's image contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// The relay's client certificate, for servers that ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_secret_ref: Option<CertificateSecretRef>,
}

/// What is required of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No encryption.
    Disable,
    /// Encryption; the server's certificate is not verified.
    Require,
    /// A certificate of a trusted CA.
    VerifyCa,
    /// A certificate of a trusted CA for the name that is connected to.
    #[default]
    VerifyFull,
}

fn password_key() -> String {
    "password".into()
}

/// As cert-manager and Strimzi name it.
fn ca_key() -> String {
    "ca.crt".into()
}

/// As Secrets of type `kubernetes.io/tls` have it.
fn certificate_key() -> String {
    "tls.crt".into()
}

/// As Secrets of type `kubernetes.io/tls` have it.
fn private_key_key() -> String {
    "tls.key".into()
}
