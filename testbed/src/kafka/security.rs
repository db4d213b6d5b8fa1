//! A listener that demands proof of its clients, beside the plain one that the testbed itself uses.

use std::fs;
use std::path::Path;

use crate::certificates::Certificate;
use crate::{Error, guard};

/// How clients of the listener prove who they are.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// TLS; none is offered without.
    pub tls: Option<BrokerTls>,
    /// Users of PLAIN and SCRAM; without, no authentication is required.
    pub logins: Vec<Login>,
    /// Whose tokens are accepted (OAUTHBEARER).
    pub tokens: Option<TokenCheck>,
    /// Whether users of this listener may do nothing but what `super_users` says.
    pub authorize: bool,
    /// Users who may do everything.
    pub super_users: Vec<String>,
}

/// How brokers speak TLS.
#[derive(Clone, Debug)]
pub struct BrokerTls {
    /// What they present.
    pub certificate: Certificate,
    /// The CA (PEM) of client certificates, which are then demanded of every client.
    pub client_authority: Option<String>,
}

/// How brokers check tokens. A connection ends when the token expires that it was authenticated with, unless the client shows another.
#[derive(Clone, Debug)]
pub struct TokenCheck {
    /// The issuer's keys, a JSON Web Key Set.
    pub keys: String,
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` of tokens for these brokers.
    pub audience: String,
}

/// A user with a password.
#[derive(Clone, Debug)]
pub struct Login {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

const LISTENER: &str = "listener.name.secure";
const KEYS: &str = "keys.json";
const MODULE: &str = "org.apache.kafka.common.security";
/// Longer than tokens are valid in any test; a token that expires sooner ends its connection then.
const LONGEST_LOGIN_MS: u32 = 3_600_000;

/// The one address that a broker may read keys from: it has to be told to the virtual machine, too.
pub(super) fn keys_argument(folder: &Path) -> String {
    format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={}", keys_url(folder))
}

fn keys_url(folder: &Path) -> String {
    format!("file://{}", folder.join(KEYS).display())
}

impl Security {
    /// Kafka's name for the combination.
    pub(super) fn protocol(&self) -> &'static str {
        match (&self.tls, self.logins.is_empty() && self.tokens.is_none()) {
            (Some(_), true) => "SSL",
            (Some(_), false) => "SASL_SSL",
            (None, true) => "PLAINTEXT",
            (None, false) => "SASL_PLAINTEXT",
        }
    }

    /// Lines of `server.properties`; certificates are written into `folder`.
    pub(super) fn properties(&self, folder: &Path) -> Result<String, Error> {
        let mut lines = Vec::new();
        if let Some(tls) = &self.tls {
            let store =
                write(folder, "broker.pem", &format!("{}{}", tls.certificate.key, tls.certificate.pem))?;
            lines.push(format!("{LISTENER}.ssl.keystore.type=PEM"));
            lines.push(format!("{LISTENER}.ssl.keystore.location={store}"));
            if let Some(authority) = &tls.client_authority {
                let trusted = write(folder, "clients.pem", authority)?;
                lines.push(format!("{LISTENER}.ssl.truststore.type=PEM"));
                lines.push(format!("{LISTENER}.ssl.truststore.location={trusted}"));
                lines.push(format!("{LISTENER}.ssl.client.auth=required"));
            }
        }
        let mut mechanisms = Vec::new();
        if !self.logins.is_empty() {
            let users: String = self
                .logins
                .iter()
                .map(|login| format!(" user_{}=\"{}\"", login.user, login.password))
                .collect();
            mechanisms.extend(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]);
            lines.push(format!(
                "{LISTENER}.plain.sasl.jaas.config={MODULE}.plain.PlainLoginModule required{users};"
            ));
            for mechanism in ["scram-sha-256", "scram-sha-512"] {
                lines.push(format!(
                    "{LISTENER}.{mechanism}.sasl.jaas.config={MODULE}.scram.ScramLoginModule required;"
                ));
            }
        }
        if let Some(tokens) = &self.tokens {
            mechanisms.push("OAUTHBEARER");
            write(folder, KEYS, &tokens.keys)?;
            let prefix = format!("{LISTENER}.oauthbearer");
            let oauth = format!("{MODULE}.oauthbearer.OAuthBearer");
            let (keys, TokenCheck { issuer, audience, .. }) = (keys_url(folder), tokens);
            lines.extend([
                format!("{prefix}.sasl.jaas.config={oauth}LoginModule required;"),
                format!("{prefix}.sasl.server.callback.handler.class={oauth}ValidatorCallbackHandler"),
                format!("{prefix}.sasl.oauthbearer.jwks.endpoint.url={keys}"),
                format!("{prefix}.sasl.oauthbearer.expected.issuer={issuer}"),
                format!("{prefix}.sasl.oauthbearer.expected.audience={audience}"),
                format!("{prefix}.connections.max.reauth.ms={LONGEST_LOGIN_MS}"),
            ]);
        }
        if !mechanisms.is_empty() {
            lines.push(format!("{LISTENER}.sasl.enabled.mechanisms={}", mechanisms.join(",")));
        }
        if self.authorize {
            // The testbed's own listener has no users: every client there is ANONYMOUS.
            let users = ["ANONYMOUS".to_owned()].into_iter().chain(self.super_users.iter().cloned());
            let users: Vec<String> = users.map(|user| format!("User:{user}")).collect();
            lines.push(
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
            );
            lines.push(format!("super.users={}", users.join(";")));
        }
        Ok(lines.join("\n") + "\n")
    }

    /// Arguments for the formatting of storage, which is where SCRAM's users are kept.
    pub(super) fn format_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for Login { user, password } in &self.logins {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                arguments.push("--add-scram".to_owned());
                arguments.push(format!("{mechanism}=[name={user},password={password}]"));
            }
        }
        arguments
    }
}

fn write(folder: &Path, name: &str, content: &str) -> Result<String, Error> {
    let path = folder.join(name);
    fs::write(&path, content).map_err(Error::file("write", &path))?;
    guard::give_away(&path)?;
    Ok(path.display().to_string())
}
