//! SASL authentication to Kafka: what is configured for each mechanism, and the credentials read from its files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::access::TlsMode;
use super::files::{self, ReadFile};
use super::load::SINK_PASSWORD_ENV;
use super::{ConfigError, Secret};

/// SASL authentication, by mechanism.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "mechanism")]
pub enum Sasl {
    /// User name and password in clear text: over TLS only.
    #[serde(rename = "PLAIN")]
    Plain(UserPassword),
    /// A proof that the relay knows the password.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256(UserPassword),
    /// A proof that the relay knows the password.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512(UserPassword),
    /// A token (RFC 7628): over TLS only.
    #[serde(rename = "OAUTHBEARER")]
    Oauthbearer(Oauthbearer),
    /// A token for Amazon MSK, signed with the AWS credentials of this process: over TLS only.
    #[serde(rename = "AWS_MSK_IAM")]
    AwsMskIam(AwsMskIam),
}

/// A user name and a password.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserPassword {
    /// Name of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File that holds the name, in place of `username`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_file: Option<PathBuf>,
    /// File that holds the password; the environment variable takes precedence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The password, filled in from the environment.
    #[serde(skip)]
    pub password: Option<Secret>,
}

/// Where tokens come from: exactly one of `tokenFile` and `clientCredentials`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Oauthbearer {
    /// File that another process renews, for example a projected service account token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A token endpoint that issues tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_credentials: Option<ClientCredentials>,
    /// How long a token is valid from when it was read, where neither the token itself (a JWT with `exp`) nor the endpoint says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_lifetime_seconds: Option<u32>,
    /// SASL extensions that the brokers need in addition to the token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
}

/// Access to Amazon MSK by IAM.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwsMskIam {
    /// Region of the cluster.
    pub region: String,
}

/// The client credentials grant (RFC 6749, 4.4), as OpenID Connect providers offer it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCredentials {
    /// URL of the token endpoint: https.
    pub token_endpoint: String,
    /// Allows an endpoint without TLS that is not on this machine: the client secret can be read on the way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_http: bool,
    /// CA certificates that the endpoint's certificate is checked with, PEM; the public root CAs when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Client ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// File that holds the client ID, in place of `clientId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id_file: Option<PathBuf>,
    /// File that holds the client secret; the environment variable takes precedence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// The client secret, filled in from the environment.
    #[serde(skip)]
    pub client_secret: Option<Secret>,
    /// Scope of the tokens, where the provider asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// What clients authenticate with, as the files had it when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaslCredentials {
    /// A user name and a password.
    Password {
        /// Name of the user.
        user: String,
        /// The user's password.
        password: Secret,
    },
    /// Tokens.
    Token(TokenCredentials),
}

/// Everything that tokens are fetched with. Clients with equal ones share their tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenCredentials {
    /// Where tokens come from.
    pub source: TokenSource,
    /// See [`Oauthbearer::token_lifetime_seconds`].
    pub lifetime: Option<Duration>,
    /// SASL extensions.
    pub extensions: BTreeMap<String, String>,
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenSource {
    /// A file, which is read for each token.
    File(PathBuf),
    /// A token endpoint.
    Endpoint(TokenEndpoint),
    /// A signature with AWS credentials.
    AwsMskIam {
        /// Region of the cluster.
        region: String,
    },
}

/// A token endpoint and its client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenEndpoint {
    /// Its address.
    pub url: Url,
    /// CA certificates, PEM; the public root CAs when there are none.
    pub ca: Option<String>,
    /// Client ID.
    pub client_id: String,
    /// Client secret.
    pub client_secret: Secret,
    /// Scope.
    pub scope: Option<String>,
}

impl Sasl {
    /// The mechanism by its name on the wire.
    pub fn wire_name(&self) -> &'static str {
        match self {
            Sasl::Plain(_) => "PLAIN",
            Sasl::ScramSha256(_) => "SCRAM-SHA-256",
            Sasl::ScramSha512(_) => "SCRAM-SHA-512",
            Sasl::Oauthbearer(_) | Sasl::AwsMskIam(_) => "OAUTHBEARER",
        }
    }

    /// Sets the password or client secret of the environment.
    pub fn set_secret(&mut self, secret: Option<Secret>) {
        match self {
            Sasl::Plain(user) | Sasl::ScramSha256(user) | Sasl::ScramSha512(user) => user.password = secret,
            Sasl::Oauthbearer(Oauthbearer { client_credentials: Some(client), .. }) => {
                client.client_secret = secret;
            }
            Sasl::Oauthbearer(_) | Sasl::AwsMskIam(_) => {}
        }
    }

    /// The same mechanism with another user or client; `None` where it has neither.
    #[must_use]
    pub fn with_user(mut self, name: &str, secret: &Secret) -> Option<Sasl> {
        let (name, secret) = (Some(name.to_owned()), Some(secret.clone()));
        match &mut self {
            Sasl::Plain(user) | Sasl::ScramSha256(user) | Sasl::ScramSha512(user) => {
                (user.username, user.username_file, user.password) = (name, None, secret);
            }
            Sasl::Oauthbearer(Oauthbearer { client_credentials: Some(client), .. }) => {
                (client.client_id, client.client_id_file, client.client_secret) = (name, None, secret);
            }
            Sasl::Oauthbearer(_) | Sasl::AwsMskIam(_) => return None,
        }
        Some(self)
    }

    pub(super) fn credentials(
        &self,
        read: ReadFile<'_>,
        tls: TlsMode,
    ) -> Result<SaslCredentials, ConfigError> {
        let shows_secret = matches!(self, Sasl::Plain(_) | Sasl::Oauthbearer(_) | Sasl::AwsMskIam(_));
        if shows_secret && tls == TlsMode::Disable {
            let problem = format!(
                "{} shows the password or token to anyone on the network path: use TLS, or SCRAM-SHA-256 or SCRAM-SHA-512",
                self.wire_name()
            );
            return Err(ConfigError::field("sink.sasl.mechanism", problem));
        }
        match self {
            Sasl::Plain(user) | Sasl::ScramSha256(user) | Sasl::ScramSha512(user) => user.credentials(read),
            Sasl::Oauthbearer(oauth) => oauth.credentials(read).map(SaslCredentials::Token),
            Sasl::AwsMskIam(msk) => msk.credentials().map(SaslCredentials::Token),
        }
    }
}

impl AwsMskIam {
    fn credentials(&self) -> Result<TokenCredentials, ConfigError> {
        let region = &self.region;
        let is_region = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if region.is_empty() || !region.bytes().all(is_region) {
            let problem = format!("'{region}' is not an AWS region, such as eu-central-1");
            return Err(ConfigError::field("sink.sasl.region", problem));
        }
        let source = TokenSource::AwsMskIam { region: region.clone() };
        Ok(TokenCredentials { source, lifetime: None, extensions: BTreeMap::new() })
    }
}

impl UserPassword {
    fn credentials(&self, read: ReadFile<'_>) -> Result<SaslCredentials, ConfigError> {
        let user = either(
            read,
            ["sink.sasl.username", "sink.sasl.usernameFile"],
            &self.username,
            &self.username_file,
        )?;
        let password = secret(read, "sink.sasl.passwordFile", &self.password, &self.password_file)?;
        Ok(SaslCredentials::Password { user, password })
    }
}

impl Oauthbearer {
    fn credentials(&self, read: ReadFile<'_>) -> Result<TokenCredentials, ConfigError> {
        let source = match (&self.token_file, &self.client_credentials) {
            (Some(file), None) => {
                files::line(read, "sink.sasl.tokenFile", file)?;
                TokenSource::File(file.clone())
            }
            (None, Some(client)) => TokenSource::Endpoint(client.endpoint(read)?),
            _ => {
                let problem = "OAUTHBEARER needs either tokenFile or clientCredentials";
                return Err(ConfigError::field("sink.sasl", problem));
            }
        };
        check_extensions(&self.extensions)?;
        let lifetime = self.token_lifetime_seconds.map(|seconds| Duration::from_secs(seconds.into()));
        if lifetime.is_some_and(|lifetime| lifetime.is_zero()) {
            return Err(ConfigError::field("sink.sasl.tokenLifetimeSeconds", "0 is less than 1"));
        }
        Ok(TokenCredentials { source, lifetime, extensions: self.extensions.clone() })
    }
}

impl ClientCredentials {
    fn endpoint(&self, read: ReadFile<'_>) -> Result<TokenEndpoint, ConfigError> {
        const URL: &str = "sink.sasl.clientCredentials.tokenEndpoint";
        const CA: &str = "sink.sasl.clientCredentials.caFile";
        const ID: [&str; 2] =
            ["sink.sasl.clientCredentials.clientId", "sink.sasl.clientCredentials.clientIdFile"];
        const SECRET: &str = "sink.sasl.clientCredentials.clientSecretFile";
        let shown = &self.token_endpoint;
        let url = Url::parse(shown)
            .map_err(|error| ConfigError::field(URL, format!("'{shown}' is not a URL: {error}")))?;
        let is_allowed =
            url.scheme() == "https" || url.scheme() == "http" && (self.allow_http || is_loopback(&url));
        if !is_allowed {
            let problem = format!(
                "'{shown}' is not https: the client secret could be read on the way. Use https, or set allowHttp on a network you trust"
            );
            return Err(ConfigError::field(URL, problem));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ConfigError::field(URL, "a URL in this file must not hold credentials"));
        }
        Ok(TokenEndpoint {
            url,
            ca: self.ca_file.as_deref().map(|file| files::pem(read, CA, file, "CERTIFICATE")).transpose()?,
            client_id: either(read, ID, &self.client_id, &self.client_id_file)?,
            client_secret: secret(read, SECRET, &self.client_secret, &self.client_secret_file)?,
            scope: self.scope.clone(),
        })
    }
}

/// A value that is given as text or in a file.
fn either(
    read: ReadFile<'_>,
    [field, file_field]: [&'static str; 2],
    text: &Option<String>,
    file: &Option<PathBuf>,
) -> Result<String, ConfigError> {
    match (text, file) {
        (Some(text), None) => Ok(text.clone()),
        (None, Some(file)) => files::line(read, file_field, file),
        _ => {
            let (_, name) = field.rsplit_once('.').unwrap_or_default();
            Err(ConfigError::field(field, format!("give either {name} or {name}File")))
        }
    }
}

/// A value from the environment or a file.
fn secret(
    read: ReadFile<'_>,
    field: &'static str,
    given: &Option<Secret>,
    file: &Option<PathBuf>,
) -> Result<Secret, ConfigError> {
    match (given, file) {
        (Some(secret), _) => Ok(secret.clone()),
        (None, Some(file)) => files::line(read, field, file).map(Secret::new),
        (None, None) => {
            let problem = format!("is missing; give it, or set the environment variable {SINK_PASSWORD_ENV}");
            Err(ConfigError::field(field, problem))
        }
    }
}

/// By RFC 7628 (3.1); `auth` is the token itself.
fn check_extensions(extensions: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    for (key, value) in extensions {
        let field = format!("sink.sasl.extensions.{key}");
        if key.is_empty() || key == "auth" || !key.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(ConfigError::field(
                &field,
                "the name of an extension must have only letters, and must not be auth",
            ));
        }
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(ConfigError::field(
                &field,
                "the value of an extension must have only printable ASCII characters",
            ));
        }
    }
    Ok(())
}

/// Whether a URL leads to this machine or pod.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn credentials(sasl: &Value, tls: TlsMode) -> Result<SaslCredentials, ConfigError> {
        let read = |file: &Path| match file.to_str() {
            Some("/m/id") => Ok(b"shipper\n".to_vec()),
            Some("/m/secret") => Ok(b"hunter2\n".to_vec()),
            Some("/m/ca") => Ok(b"-----BEGIN CERTIFICATE-----".to_vec()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        serde_json::from_value::<Sasl>(sasl.clone()).unwrap().credentials(&read, tls)
    }

    fn client(more: &Value) -> Value {
        let mut client = json!({"tokenEndpoint": "https://issuer.test/token", "clientIdFile": "/m/id",
            "clientSecretFile": "/m/secret"});
        client.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"mechanism": "OAUTHBEARER", "clientCredentials": client})
    }

    #[test]
    fn client_credentials_are_read_from_their_files() {
        let sasl = client(&json!({"caFile": "/m/ca", "scope": "kafka"}));
        let SaslCredentials::Token(token) = credentials(&sasl, TlsMode::VerifyFull).unwrap() else {
            panic!("a password")
        };
        assert!(!format!("{token:?}").contains("hunter2"));
        let TokenSource::Endpoint(endpoint) = token.source else { panic!("a file") };
        assert_eq!(endpoint.client_id, "shipper");
        assert_eq!(endpoint.client_secret, Secret::new("hunter2"));
        assert_eq!(endpoint.scope.as_deref(), Some("kafka"));
        assert!(endpoint.ca.is_some());
    }

    #[test]
    fn what_cannot_be_used_or_would_show_a_secret_is_refused_by_its_field() {
        let oauth = |more: Value| {
            let mut oauth = json!({"mechanism": "OAUTHBEARER", "tokenFile": "/m/secret"});
            oauth.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            oauth
        };
        let both = json!({"clientCredentials": client(&json!({}))["clientCredentials"]});
        let http = "http://issuer.test/token";
        let cases = [
            (json!({"mechanism": "PLAIN"}), "sink.sasl.username: give either username or usernameFile"),
            (json!({"mechanism": "OAUTHBEARER"}), "sink.sasl: OAUTHBEARER needs either"),
            (
                json!({"mechanism": "AWS_MSK_IAM", "region": "eu/1"}),
                "sink.sasl.region: 'eu/1' is not an AWS region",
            ),
            (oauth(both), "sink.sasl: OAUTHBEARER needs either"),
            (oauth(json!({"tokenFile": "/m/nowhere"})), "cannot read sink.sasl.tokenFile /m/nowhere"),
            (oauth(json!({"tokenLifetimeSeconds": 0})), "sink.sasl.tokenLifetimeSeconds: 0"),
            (oauth(json!({"extensions": {"auth": "x"}})), "sink.sasl.extensions.auth: "),
            (oauth(json!({"extensions": {"pool-1": "x"}})), "sink.sasl.extensions.pool-1: "),
            (oauth(json!({"extensions": {"pool": "\u{1}"}})), "sink.sasl.extensions.pool: "),
            (
                client(&json!({"tokenEndpoint": http})),
                "sink.sasl.clientCredentials.tokenEndpoint: 'http://issuer.test/token' is not https",
            ),
            (
                client(&json!({"tokenEndpoint": "issuer"})),
                "sink.sasl.clientCredentials.tokenEndpoint: 'issuer' is not a URL",
            ),
            (
                client(&json!({"tokenEndpoint": "https://u:hunter2@issuer.test"})),
                "sink.sasl.clientCredentials.tokenEndpoint: a URL in this file",
            ),
            (
                client(&json!({"clientId": "two"})),
                "sink.sasl.clientCredentials.clientId: give either clientId or clientIdFile",
            ),
            (client(&json!({"caFile": "/m/secret"})), "sink.sasl.clientCredentials.caFile: "),
        ];
        for (sasl, said) in cases {
            let text = credentials(&sasl, TlsMode::VerifyFull).unwrap_err().to_string();
            assert!(text.starts_with(said) && !text.contains("hunter2"), "{sasl}: {text}");
        }
        let text = credentials(&oauth(json!({})), TlsMode::Disable).unwrap_err().to_string();
        assert!(text.starts_with("sink.sasl.mechanism: OAUTHBEARER shows"), "{text}");
        for endpoint in ["http://127.0.0.1:8080/token", "http://[::1]/token", "http://localhost/token"] {
            assert!(
                credentials(&client(&json!({"tokenEndpoint": endpoint})), TlsMode::Require).is_ok(),
                "{endpoint}"
            );
        }
        let allowed = client(&json!({"tokenEndpoint": http, "allowHttp": true}));
        assert!(credentials(&allowed, TlsMode::Require).is_ok());
    }

    #[test]
    fn a_field_of_another_mechanism_is_refused() {
        for sasl in [
            json!({"mechanism": "PLAIN", "username": "u", "tokenFile": "/m/secret"}),
            json!({"mechanism": "OAUTHBEARER", "tokenFile": "/m/secret", "username": "u"}),
            json!({"mechanism": "GSSAPI"}),
        ] {
            assert!(serde_json::from_value::<Sasl>(sasl.clone()).is_err(), "{sasl}");
        }
    }
}
