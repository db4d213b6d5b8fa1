//! How clients connect to Kafka: TLS and credentials. Files are checked at the start and read again when sessions begin, so that what is
//! rotated is used without a restart.

use std::path::PathBuf;

use pg_replication::{ClientIdentity, Pem};
use rdkafka::config::ClientConfig;
use serde::{Deserialize, Serialize};

use super::access::TlsMode;
use super::files::{self, ReadFile, TlsFields, TlsFiles};
use super::sasl::{SaslCredentials, TokenCredentials, TokenSource};
use super::{ConfigError, Secret, Sink};

/// How the connections to Kafka are protected.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SinkTls {
    /// What is demanded of the brokers.
    pub mode: TlsMode,
    /// Trusted CAs, PEM; those of the machine when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate, PEM, for brokers that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM, not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

const FIELDS: TlsFields = TlsFields {
    mode: "sink.tls.mode",
    ca: "sink.tls.caFile",
    cert: "sink.tls.certFile",
    key: "sink.tls.keyFile",
};

/// What clients connect with, as the files had it when they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkAccess {
    ca: Option<String>,
    certificate: Option<(String, Secret)>,
    credentials: Option<SaslCredentials>,
}

impl SinkAccess {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the field whose file cannot be used, or that would be ignored.
    pub fn read(sink: &Sink) -> Result<SinkAccess, ConfigError> {
        SinkAccess::read_files(sink, &files::from_disk)
    }

    /// As [`SinkAccess::read`], from files that `read` knows. For a program that acts for others, as the operator does: it must not show its own
    /// files or AWS credentials to brokers that others have named, so tokens that come from there are refused.
    ///
    /// # Errors
    /// Names the field whose file cannot be used, that would be ignored, or that names credentials that only the relay has.
    pub fn read_with(sink: &Sink, read: ReadFile<'_>) -> Result<SinkAccess, ConfigError> {
        let access = SinkAccess::read_files(sink, read)?;
        match access.token_credentials().map(|credentials| &credentials.source) {
            None | Some(TokenSource::Endpoint(_)) => Ok(access),
            Some(TokenSource::File(_) | TokenSource::AwsMskIam { .. }) => {
                Err(ConfigError::field("sink.sasl", "only the relay itself has these credentials"))
            }
        }
    }

    fn read_files(sink: &Sink, read: ReadFile<'_>) -> Result<SinkAccess, ConfigError> {
        let SinkTls { mode, ca_file: ca, cert_file: cert, key_file: key } = &sink.tls;
        let files = TlsFiles { fields: &FIELDS, mode: *mode, ca, cert, key };
        files.check()?;
        let ca = ca.as_deref().map(|file| files::pem(read, FIELDS.ca, file, "CERTIFICATE")).transpose()?;
        let certificate = match files.identity()? {
            Some((cert, key)) => {
                let certificate = files::pem(read, FIELDS.cert, cert, "CERTIFICATE")?;
                let key = files::pem(read, FIELDS.key, key, "PRIVATE KEY")?;
                check_identity(&certificate, &key)?;
                Some((certificate, Secret::new(key)))
            }
            None => None,
        };
        let credentials = sink.sasl.as_ref().map(|sasl| sasl.credentials(read, sink.tls.mode)).transpose()?;
        Ok(SinkAccess { ca, certificate, credentials })
    }

    /// What tokens are fetched with, where clients authenticate with tokens.
    pub fn token_credentials(&self) -> Option<&TokenCredentials> {
        match &self.credentials {
            Some(SaslCredentials::Token(credentials)) => Some(credentials),
            _ => None,
        }
    }
}

/// OpenSSL, which librdkafka uses, says of an encrypted key that it is not PEM, and of nothing which field it is about.
fn check_identity(certificate: &str, key: &str) -> Result<(), ConfigError> {
    let identity = ClientIdentity { certificates: Pem::new(certificate), key: Pem::new(key) };
    identity.check().map_err(|problem| ConfigError::field(FIELDS.cert, problem.to_string()))
}

impl Sink {
    /// Sets how clients of this sink connect.
    pub fn protect(&self, config: &mut ClientConfig) {
        let encrypted = self.tls.mode != TlsMode::Disable;
        let protocol = match (encrypted, &self.sasl) {
            (true, Some(_)) => "sasl_ssl",
            (true, None) => "ssl",
            (false, Some(_)) => "sasl_plaintext",
            (false, None) => "plaintext",
        };
        config.set("security.protocol", protocol);
        if encrypted {
            let verifies = self.tls.mode != TlsMode::Require;
            let name = if self.tls.mode == TlsMode::VerifyFull { "https" } else { "none" };
            config.set("enable.ssl.certificate.verification", verifies.to_string());
            config.set("ssl.endpoint.identification.algorithm", name);
        }
        let SinkAccess { ca, certificate, credentials } = &self.access;
        if let Some(ca) = ca {
            config.set("ssl.ca.pem", ca);
        }
        if let Some((certificate, key)) = certificate {
            config.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key.reveal());
        }
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanism", sasl.wire_name());
        }
        if let Some(SaslCredentials::Password { user, password }) = credentials {
            config.set("sasl.username", user).set("sasl.password", password.reveal());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use serde_json::{Value, json};

    fn sink(more: &Value) -> Sink {
        let mut sink = json!({"bootstrapServers": "k:1"});
        sink.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(sink).unwrap()
    }

    fn problem(more: &Value) -> String {
        SinkAccess::read(&sink(more)).unwrap_err().to_string()
    }

    fn settings(more: &Value) -> ClientConfig {
        let sink = sink(more);
        let sink = Sink { access: SinkAccess::read(&sink).unwrap(), ..sink };
        let mut config = ClientConfig::new();
        sink.protect(&mut config);
        config
    }

    #[test]
    fn brokers_are_verified_by_name_unless_told_otherwise() {
        let by_default = settings(&json!({}));
        assert_eq!(by_default.get("security.protocol"), Some("ssl"));
        assert_eq!(by_default.get("enable.ssl.certificate.verification"), Some("true"));
        assert_eq!(by_default.get("ssl.endpoint.identification.algorithm"), Some("https"));
        let by_authority = settings(&json!({"tls": {"mode": "verify-ca"}}));
        assert_eq!(by_authority.get("ssl.endpoint.identification.algorithm"), Some("none"));
        assert_eq!(by_authority.get("enable.ssl.certificate.verification"), Some("true"));
        let plain = settings(&json!({"tls": {"mode": "disable"}}));
        assert_eq!(plain.get("security.protocol"), Some("plaintext"));
    }

    #[test]
    fn what_would_be_ignored_or_cannot_be_used_is_refused_by_its_field() {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let cases = [
            (json!({"tls": {"mode": "require", "caFile": here}}), "sink.tls.caFile: is not used"),
            (json!({"tls": {"mode": "disable", "certFile": here}}), "sink.tls.certFile: is not used"),
            (json!({"tls": {"certFile": here}}), "sink.tls.keyFile: is missing"),
            (json!({"tls": {"keyFile": here}}), "sink.tls.certFile: is missing"),
            (json!({"tls": {"caFile": here}}), "sink.tls.caFile: "),
            (json!({"tls": {"caFile": "/nowhere/ca.pem"}}), "cannot read sink.tls.caFile /nowhere/ca.pem"),
            (
                json!({"tls": {"mode": "disable"}, "sasl": {"mechanism": "PLAIN", "username": "u"}}),
                "sink.sasl.mechanism: PLAIN shows the password",
            ),
            (json!({"sasl": {"mechanism": "PLAIN"}}), "sink.sasl.username: give either"),
            (
                json!({"sasl": {"mechanism": "SCRAM-SHA-512", "username": "u"}}),
                "sink.sasl.passwordFile: is missing",
            ),
        ];
        for (more, said) in cases {
            let text = problem(&more);
            assert!(text.starts_with(said), "{more}: {text}");
        }
    }

    #[test]
    fn a_key_that_openssl_cannot_use_is_described() {
        let own = testbed::certificates::Certificate::self_signed("relay").unwrap();
        let other = testbed::certificates::Certificate::self_signed("other").unwrap();
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let sink = sink(&json!({"tls": {"certFile": "/m/cert", "keyFile": "/m/key"}}));
        let problem = |key: &str| {
            let file = |file: &Path| if file == "/m/cert" { own.pem.clone() } else { key.to_owned() };
            let access = SinkAccess::read_with(&sink, &|path| Ok(file(path).into_bytes()));
            access.err().map(|problem| problem.to_string())
        };
        assert_eq!(problem(&own.key), None);
        for (key, said) in
            [(encrypted, "encrypted; remove the passphrase"), (&other.key, "another certificate")]
        {
            let problem = problem(key).unwrap();
            assert!(problem.starts_with("sink.tls.certFile: ") && problem.contains(said), "{problem}");
        }
    }

    /// As the operator has them: no disk is looked at.
    #[test]
    fn files_may_be_in_memory() {
        let sasl =
            json!({"mechanism": "SCRAM-SHA-512", "usernameFile": "/m/user", "passwordFile": "/m/password"});
        let sink = sink(&json!({"tls": {"caFile": "/m/ca"}, "sasl": sasl}));
        let read = |file: &Path| match file.to_str() {
            Some("/m/user") => Ok(b"shipper\n".to_vec()),
            Some("/m/password") => Ok(b"hunter2".to_vec()),
            Some("/m/ca") => Ok(b"-----BEGIN CERTIFICATE-----".to_vec()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        let access = SinkAccess::read_with(&sink, &read).unwrap();
        let expected =
            SaslCredentials::Password { user: "shipper".to_owned(), password: Secret::new("hunter2") };
        assert_eq!(access.credentials, Some(expected));
        assert!(access.ca.is_some() && SinkAccess::read(&sink).is_err());
    }

    #[test]
    fn a_program_that_acts_for_others_does_not_use_its_own_files_and_aws_credentials() {
        let read = |_: &Path| Ok(b"token".to_vec());
        for sasl in [
            json!({"mechanism": "AWS_MSK_IAM", "region": "eu-central-1"}),
            json!({"mechanism": "OAUTHBEARER", "tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}),
        ] {
            let refused =
                SinkAccess::read_with(&sink(&json!({"sasl": sasl})), &read).unwrap_err().to_string();
            assert!(refused.starts_with("sink.sasl: only the relay itself"), "{refused}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let sasl = json!({"sasl": {"mechanism": "PLAIN", "username": "u"}});
        let mut sink = sink(&sasl);
        sink.sasl.as_mut().unwrap().set_secret(Some(Secret::new("hunter2")));
        sink.access = SinkAccess::read(&sink).unwrap();
        assert!(!format!("{sink:?}").contains("hunter2"));
    }
}
