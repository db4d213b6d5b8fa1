//! SASL authentication to Kafka.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secrets::{CaSecretRef, CredentialsSecretRef};

/// SASL authentication of the relay.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mechanism in ['OAUTHBEARER', 'AWS_MSK_IAM'] || has(self.credentialsSecretRef)")
        .message("PLAIN and SCRAM need credentialsSecretRef, with user name and password"),
    validation = Rule::new("has(self.region) == (self.mechanism == 'AWS_MSK_IAM')")
        .message("mechanism AWS_MSK_IAM needs the region of the cluster, and no other mechanism uses it"),
    validation = Rule::new("self.mechanism != 'AWS_MSK_IAM' || !has(self.credentialsSecretRef)")
        .message("AWS_MSK_IAM uses the AWS credentials of the relay's pods: leave credentialsSecretRef out"),
    validation = Rule::new("has(self.oauthbearer) == (self.mechanism == 'OAUTHBEARER')")
        .message("mechanism OAUTHBEARER needs the field oauthbearer, and no other mechanism uses it"),
    validation = Rule::new("!has(self.oauthbearer) || has(self.oauthbearer.tokenEndpoint) == has(self.credentialsSecretRef)")
        .message("oauthbearer.tokenEndpoint needs credentialsSecretRef, with client ID and client secret; oauthbearer.tokenFile needs none"),
)]
pub struct Sasl {
    /// SASL mechanism.
    pub mechanism: SaslMechanism,
    /// User name and password. With `oauthbearer.tokenEndpoint` the client ID and the client secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<CredentialsSecretRef>,
    /// Where the tokens of OAUTHBEARER come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauthbearer: Option<Oauthbearer>,
    /// AWS region of the cluster, for AWS_MSK_IAM. The relay's pods need AWS credentials: a role of their service account (IRSA or EKS Pod
    /// Identity). The operator does not use its own, and so neither checks nor creates topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9-]+$"))]
    pub region: Option<String>,
}

/// SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SaslMechanism {
    /// User name and password in clear text: over TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// A proof that the relay knows the password.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A proof that the relay knows the password.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token: over TLS only.
    #[serde(rename = "OAUTHBEARER")]
    Oauthbearer,
    /// A token for Amazon MSK, signed with AWS credentials: over TLS only.
    #[serde(rename = "AWS_MSK_IAM")]
    AwsMskIam,
}

/// Where tokens come from: a token endpoint, or a file of the relay's pods.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.tokenEndpoint) != has(self.tokenFile)")
        .message("give either tokenEndpoint or tokenFile"),
    validation = Rule::new("!has(self.extensions) || self.extensions.all(name, name != 'auth' && name.matches('^[A-Za-z]+$'))")
        .message("the name of a SASL extension must have only letters, and must not be auth"),
)]
pub struct Oauthbearer {
    /// Token endpoint of an OpenID Connect provider: tokens are requested with the client credentials grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_endpoint: Option<TokenEndpoint>,
    /// Path of a token file in the relay's pods that another process renews: a projected service account token, or the file of a sidecar, which
    /// `relay.podTemplate` adds. The operator does not have the file, and so neither checks nor creates topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024), regex(pattern = "^/"))]
    pub token_file: Option<String>,
    /// How long a token is valid after it was issued, in seconds, where neither the token (a JWT with `exp`) nor the endpoint says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub token_lifetime_seconds: Option<i32>,
    /// SASL extensions that the brokers need in addition to the token, for example `logicalCluster` and `identityPoolId` for Confluent Cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 16))]
    pub extensions: Option<BTreeMap<String, Extension>>,
}

/// The value of a SASL extension.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Extension(#[schemars(length(max = 1024), regex(pattern = "^[ -~]*$"))] pub String);

/// A token endpoint.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.url.startsWith('https://') || self.allowHttp")
        .message("the client secret could be read on the way: use https, or set allowHttp on a network you trust"),
)]
pub struct TokenEndpoint {
    /// URL of the token endpoint. Where `relay.networkPolicy.egress` is restricted, allow it there.
    #[schemars(length(min = 8, max = 1024), regex(pattern = "^https?://[^/@]+(/.*)?$"))]
    pub url: String,
    /// Scope of the tokens, where the provider asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub scope: Option<String>,
    /// CA certificates that the endpoint's certificate is verified with. Without it, the public root CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// Allows an endpoint without TLS, where the client secret is sent in clear text.
    #[serde(default)]
    pub allow_http: bool,
}

impl Sasl {
    /// Whether only the relay's pods have the credentials.
    pub fn is_held_by_pods(&self) -> bool {
        self.mechanism == SaslMechanism::AwsMskIam
            || self.oauthbearer.as_ref().is_some_and(|oauth| oauth.token_file.is_some())
    }
}
