//! AWS credentials from the places where AWS' own clients look for them in a pod, in this order: keys in the environment; a role for the
//! service account's token (IRSA); the container credentials endpoint (EKS Pod Identity, ECS).

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::config::{Secret, is_loopback};
use crate::error::excerpt;
use crate::kafka::tokens::https::{Client, HttpsError};

/// Value of a variable.
pub(super) type Environment = Box<dyn Fn(&str) -> Option<String> + Send>;

/// Where relative addresses of container credentials are (ECS).
const CONTAINER_HOST: &str = "http://169.254.170.2";
/// Hosts of container credentials without TLS, beside loopback addresses, as AWS' own clients allow them.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];

/// Why there are no credentials. Nothing secret is in it.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::kafka::tokens) enum AwsError {
    #[error(
        "no AWS credentials in the environment: give the pod's service account a role (IRSA or EKS Pod Identity), or set AWS_ACCESS_KEY_ID \
         and AWS_SECRET_ACCESS_KEY"
    )]
    None,
    #[error("{path}, the file that {variable} names, cannot be read: {error}")]
    File { variable: &'static str, path: String, error: Arc<io::Error> },
    #[error("AWS credentials from {url}: {error}")]
    Request { url: String, error: HttpsError },
    #[error("AWS credentials from {url}: refused with {said}; check the role and its trust policy")]
    Refused { url: String, said: String },
    #[error("AWS credentials from {url}: the response has no credentials")]
    NotAnAnswer { url: String },
    #[error("{variable} leads to {url}, which is neither https nor an address of this node")]
    Unsafe { variable: &'static str, url: String },
}

/// Keys and their expiry.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Secret,
    pub(super) session_token: Option<Secret>,
    pub(super) expires_at: Option<SystemTime>,
}

/// See the module's text. Nothing is cached from one token to the next: files and what they lead to are renewed.
pub(super) struct Provider {
    region: String,
    environment: Environment,
    client: Client,
}

impl Provider {
    pub(super) fn new(region: &str, environment: Environment) -> Result<Provider, AwsError> {
        let client = Client::new(None);
        let client = client.map_err(|error| AwsError::Request { url: "AWS".to_owned(), error })?;
        Ok(Provider { region: region.to_owned(), environment, client })
    }

    /// Blocks, for a limited time.
    pub(super) fn fetch(&self) -> Result<Credentials, AwsError> {
        let variable = |name| (self.environment)(name);
        if let (Some(access_key_id), Some(secret)) =
            (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
        {
            return Ok(Credentials {
                access_key_id,
                secret_access_key: Secret::new(secret),
                session_token: variable("AWS_SESSION_TOKEN").map(Secret::new),
                expires_at: None,
            });
        }
        if let (Some(role), Some(file)) = (variable("AWS_ROLE_ARN"), variable(WEB_IDENTITY_FILE)) {
            return self.role_session(&role, &file);
        }
        match (variable(CONTAINER_RELATIVE_URI), variable(CONTAINER_FULL_URI)) {
            (Some(path), _) => {
                self.container_keys(&safe(CONTAINER_RELATIVE_URI, format!("{CONTAINER_HOST}{path}"))?)
            }
            (None, Some(url)) => self.container_keys(&safe(CONTAINER_FULL_URI, url)?),
            (None, None) => Err(AwsError::None),
        }
    }

    /// A session of a role, for the token of the service account (AssumeRoleWithWebIdentity).
    fn role_session(&self, role: &str, file: &str) -> Result<Credentials, AwsError> {
        let variable = |name| (self.environment)(name);
        let url = safe(STS_ENDPOINT, variable(STS_ENDPOINT).unwrap_or_else(|| sts(&self.region)))?;
        let session = variable("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "outbox-relay".to_owned());
        let form = Serializer::new(String::new())
            .append_pair("Action", "AssumeRoleWithWebIdentity")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", role)
            .append_pair("RoleSessionName", &session)
            .append_pair("WebIdentityToken", &read(WEB_IDENTITY_FILE, file)?)
            .finish();
        let request = Request::builder()
            .method(Method::POST)
            .uri(&url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.into());
        let answer = self.send(&url, request)?;
        let text = String::from_utf8_lossy(&answer);
        let keys = || {
            Some(Credentials {
                access_key_id: element(&text, "AccessKeyId")?.to_owned(),
                secret_access_key: Secret::new(element(&text, "SecretAccessKey")?),
                session_token: Some(Secret::new(element(&text, "SessionToken")?)),
                expires_at: Some(element(&text, "Expiration")?.parse::<DateTime<Utc>>().ok()?.into()),
            })
        };
        keys().ok_or(AwsError::NotAnAnswer { url })
    }

    fn container_keys(&self, url: &str) -> Result<Credentials, AwsError> {
        let authorization = match (self.environment)(CONTAINER_TOKEN_FILE) {
            Some(file) => Some(read(CONTAINER_TOKEN_FILE, &file)?),
            None => (self.environment)("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        let mut request = Request::builder().uri(url);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = self.send(url, request.body(Bytes::new()))?;
        let keys: ContainerKeys =
            serde_json::from_slice(&answer).map_err(|_| AwsError::NotAnAnswer { url: url.to_owned() })?;
        Ok(Credentials {
            access_key_id: keys.access_key_id,
            secret_access_key: Secret::new(keys.secret_access_key),
            session_token: keys.token.map(Secret::new),
            expires_at: keys.expiration.map(SystemTime::from),
        })
    }

    fn send(
        &self,
        url: &str,
        request: Result<Request<Bytes>, hyper::http::Error>,
    ) -> Result<Bytes, AwsError> {
        let failed = |error| AwsError::Request { url: url.to_owned(), error };
        let request = request.map_err(|error| failed(HttpsError::Request(Arc::new(error))))?;
        let (status, body) = self.client.send(request).map_err(failed)?;
        if status.is_success() {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        let said = [element(&text, "Code"), element(&text, "Message")].into_iter().flatten();
        let said: String = said.map(|part| format!(": {}", excerpt(part).escape_debug())).collect();
        Err(AwsError::Refused { url: url.to_owned(), said: format!("{}{said}", status.as_u16()) })
    }
}

const STS_ENDPOINT: &str = "AWS_ENDPOINT_URL_STS";
const WEB_IDENTITY_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const CONTAINER_RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const CONTAINER_FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const CONTAINER_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// The regional endpoint of STS; China has a separate domain.
fn sts(region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://sts.{region}.{domain}/")
}

/// The response of a container credentials endpoint.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerKeys {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    expiration: Option<DateTime<Utc>>,
}

fn read(variable: &'static str, path: &str) -> Result<String, AwsError> {
    let text = fs::read_to_string(path);
    let text =
        text.map_err(|error| AwsError::File { variable, path: path.to_owned(), error: Arc::new(error) })?;
    Ok(text.trim().to_owned())
}

/// The text of an element of STS' answers, whose values have no characters that XML escapes.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// A token is sent there, or keys are received: only over TLS, or on this node.
fn safe(variable: &'static str, url: String) -> Result<String, AwsError> {
    if is_safe(&url) { Ok(url) } else { Err(AwsError::Unsafe { variable, url }) }
}

fn is_safe(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let is_of_node = is_loopback(&url) || url.host_str().is_some_and(|host| CONTAINER_HOSTS.contains(&host));
    url.scheme() == "https" || url.scheme() == "http" && is_of_node
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use super::*;

    /// Answers one request; returns its address, and the request.
    fn server(status: &'static str, body: &'static str) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut piece = [0; 4096];
            while !is_whole(&request) {
                let read = stream.read(&mut piece).unwrap();
                request.push_str(&String::from_utf8_lossy(&piece[..read]));
            }
            let head =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            request
        });
        (url, answering)
    }

    fn is_whole(request: &str) -> bool {
        let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        body.len() >= length.unwrap_or(0)
    }

    fn provider(variables: &[(&str, &str)]) -> Provider {
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Provider::new("eu-central-1", Box::new(move |name| variables.get(name).cloned())).unwrap()
    }

    fn token_file() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"the-token\n").unwrap();
        file
    }

    #[test]
    fn a_role_is_assumed_with_the_token_of_the_service_account() {
        let body = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
            <AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>se/cr+et</SecretAccessKey><SessionToken>session=</SessionToken>
            <Expiration>2126-11-29T12:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
        let (url, answering) = server("200 OK", body);
        let file = token_file();
        let role = "arn:aws:iam::1:role/relay";
        let path = file.path().to_str().unwrap();
        let provider = provider(&[("AWS_ROLE_ARN", role), (WEB_IDENTITY_FILE, path), (STS_ENDPOINT, &url)]);
        let credentials = provider.fetch().unwrap();
        assert_eq!(credentials.access_key_id, "ASIA1");
        assert_eq!(credentials.secret_access_key.reveal(), "se/cr+et");
        assert_eq!(credentials.session_token.unwrap().reveal(), "session=");
        assert!(credentials.expires_at.unwrap() > SystemTime::now() + Duration::from_secs(3_600));
        let request = answering.join().unwrap();
        assert!(request.starts_with("POST / "), "{request}");
        assert!(
            request.ends_with(
                "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Frelay\
                 &RoleSessionName=outbox-relay&WebIdentityToken=the-token"
            ),
            "{request}"
        );
    }

    #[test]
    fn a_role_that_may_not_be_assumed_is_reported_in_the_words_of_aws() {
        let body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized</Message></Error></ErrorResponse>";
        let (url, _answering) = server("403 Forbidden", body);
        let file = token_file();
        let path = file.path().to_str().unwrap();
        let provider = provider(&[("AWS_ROLE_ARN", "r"), (WEB_IDENTITY_FILE, path), (STS_ENDPOINT, &url)]);
        let text = provider.fetch().unwrap_err().to_string();
        assert!(text.contains("refused with 403: AccessDenied: Not authorized"), "{text}");
        assert!(!text.contains("the-token"), "{text}");
    }

    #[test]
    fn a_container_asks_its_node() {
        let body = r#"{"AccessKeyId": "ASIA2", "SecretAccessKey": "s", "Token": "t", "Expiration": "2126-11-29T12:00:00Z"}"#;
        let (url, answering) = server("200 OK", body);
        let file = token_file();
        let path = file.path().to_str().unwrap();
        let provider = provider(&[(CONTAINER_FULL_URI, &url), (CONTAINER_TOKEN_FILE, path)]);
        let credentials = provider.fetch().unwrap();
        assert_eq!(credentials.access_key_id, "ASIA2");
        assert!(credentials.expires_at.is_some());
        let request = answering.join().unwrap().to_lowercase();
        assert!(request.contains("authorization: the-token\r\n"), "{request}");
    }

    #[test]
    fn keys_of_the_environment_come_first_and_an_unsafe_or_missing_source_is_named() {
        let keys = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ROLE_ARN", "r")];
        let credentials = provider(&keys).fetch().unwrap();
        assert!(credentials.session_token.is_none() && credentials.expires_at.is_none());
        let problem = |variables: &[(&str, &str)]| provider(variables).fetch().unwrap_err().to_string();
        assert!(problem(&[]).contains("IRSA or EKS Pod Identity"));
        let missing = problem(&[("AWS_ROLE_ARN", "r"), (WEB_IDENTITY_FILE, "/nowhere/token")]);
        assert!(
            missing
                .contains("/nowhere/token, the file that AWS_WEB_IDENTITY_TOKEN_FILE names, cannot be read"),
            "{missing}"
        );
        let file = token_file();
        let path = file.path().to_str().unwrap();
        for variables in [
            &[(CONTAINER_FULL_URI, "http://credentials.test/")][..],
            &[(CONTAINER_RELATIVE_URI, "@credentials.test/")],
            &[("AWS_ROLE_ARN", "r"), (WEB_IDENTITY_FILE, path), (STS_ENDPOINT, "http://sts.test/")],
        ] {
            let elsewhere = problem(variables);
            assert!(elsewhere.contains("neither https nor an address of this node"), "{elsewhere}");
        }
        for safe in [
            "https://credentials.test/",
            "http://127.0.0.1/",
            "http://169.254.170.23/v1",
            "http://[fd00:ec2::23]/v1",
        ] {
            assert!(is_safe(safe), "{safe}");
        }
    }
}
