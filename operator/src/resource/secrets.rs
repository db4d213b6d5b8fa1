//! References to Secrets, and how connections are protected.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A user name and a password in a Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the user name.
    #[serde(default = "username_key")]
    #[schemars(length(min = 1, max = 253))]
    pub username_key: String,
    /// Key of the password.
    #[serde(default = "password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub password_key: String,
}

/// Certificates of authorities in a Secret of the same namespace.
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

/// A certificate with its key in a Secret of the same namespace, of type `kubernetes.io/tls`: keys `tls.crt` and `tls.key`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
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
    /// What is demanded of the server: nothing (disable, no encryption), encryption (require), a certificate of a trusted
    /// authority (verify-ca), or one for the name that is connected to (verify-full).
    #[serde(default)]
    pub mode: TlsMode,
    /// Authorities that are trusted. Without it, those that the relay's image trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// The relay's own certificate, for servers that ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_secret_ref: Option<CertificateSecretRef>,
}

/// What is demanded of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No encryption.
    Disable,
    /// Encryption; anybody may answer.
    Require,
    /// A certificate of a trusted authority.
    VerifyCa,
    /// A certificate of a trusted authority for the name that is connected to.
    #[default]
    VerifyFull,
}

fn username_key() -> String {
    "username".into()
}

fn password_key() -> String {
    "password".into()
}

/// As cert-manager and Strimzi name it.
fn ca_key() -> String {
    "ca.crt".into()
}
