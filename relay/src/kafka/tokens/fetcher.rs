//! Fetches a token, and finds out until when it is valid and whose it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kafka_admin::Token;
use serde::Deserialize;
use serde_json::Value;

use super::aws::{AwsError, Msk};
use super::endpoint::{Endpoint, EndpointError};
use crate::config::{TokenCredentials, TokenSource};

/// Why there is no token. Nothing secret is in it, and the same failure has the same text each time.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the token file {} cannot be read: {error}", path.display())]
    File { path: PathBuf, error: Arc<io::Error> },
    #[error("the token file {} is empty", path.display())]
    Empty { path: PathBuf },
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error(
        "{origin} gave a token that does not say when it expires: it is not a JWT with the claim exp; set sink.sasl.tokenLifetimeSeconds"
    )]
    NoExpiry { origin: String },
    #[error(
        "{origin} gave a token that has expired; check the process that renews it, and the clocks on both sides"
    )]
    Expired { origin: String },
    #[error("{origin} gave a token with characters that are not allowed in one")]
    NotAToken { origin: String },
}

/// Fetches tokens with one set of credentials.
pub(super) struct Fetcher {
    credentials: TokenCredentials,
    method: Method,
}

enum Method {
    File(PathBuf),
    Endpoint(Endpoint),
    Msk(Msk),
}

/// A token as it was issued.
struct Issued {
    value: String,
    /// When it was issued.
    at: SystemTime,
    /// How long it is valid from then, if the issuer says so.
    valid_for: Option<Duration>,
}

impl Fetcher {
    pub(super) fn new(credentials: &TokenCredentials) -> Result<Fetcher, TokenError> {
        let method = match &credentials.source {
            TokenSource::File(path) => Method::File(path.clone()),
            TokenSource::Endpoint(endpoint) => Method::Endpoint(Endpoint::new(endpoint)?),
            TokenSource::AwsMskIam { region } => Method::Msk(Msk::new(region)?),
        };
        Ok(Fetcher { credentials: credentials.clone(), method })
    }

    /// Whether fetching is as cheap as reading a file.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.method, Method::File(_))
    }

    /// Blocks, for a limited time.
    pub(super) fn fetch(&self) -> Result<Token, TokenError> {
        let (issued, origin) = match &self.method {
            Method::File(path) => (read(path)?, format!("the file {}", path.display())),
            Method::Endpoint(endpoint) => {
                let at = SystemTime::now();
                let answer = endpoint.ask()?;
                let valid_for = answer.expires_in.map(Duration::from_secs);
                (Issued { value: answer.access_token, at, valid_for }, endpoint.to_string())
            }
            Method::Msk(msk) => {
                let at = SystemTime::now();
                let signed = msk.token()?;
                let valid_for = Some(signed.valid_for);
                (Issued { value: signed.token, at, valid_for }, "AWS".to_owned())
            }
        };
        self.examine(issued, origin)
    }

    fn examine(&self, issued: Issued, origin: String) -> Result<Token, TokenError> {
        let Issued { value, at, valid_for } = issued;
        if value.is_empty() || !value.bytes().all(|byte| matches!(byte, b'!'..=b'~')) {
            return Err(TokenError::NotAToken { origin });
        }
        let claims = Claims::of(&value).unwrap_or_default();
        // A duration given with the token does not depend on clocks that agree; the claim `exp` does.
        let expires_at = match (valid_for, claims.exp, self.credentials.lifetime) {
            (Some(valid_for), _, _) | (None, None, Some(valid_for)) => at + valid_for,
            (None, Some(exp), _) => UNIX_EPOCH + Duration::from_secs(exp),
            (None, None, None) => return Err(TokenError::NoExpiry { origin }),
        };
        if expires_at <= SystemTime::now() {
            return Err(TokenError::Expired { origin });
        }
        let expires_at = expires_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Ok(Token {
            value,
            expires_at: i64::try_from(expires_at).unwrap_or(i64::MAX / 1_000),
            principal: claims.principal(),
            extensions: self.credentials.extensions.clone().into_iter().collect(),
        })
    }
}

fn read(path: &Path) -> Result<Issued, TokenError> {
    let unreadable = |error| TokenError::File { path: path.to_owned(), error: Arc::new(error) };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let at = fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(unreadable)?;
    match text.trim() {
        "" => Err(TokenError::Empty { path: path.to_owned() }),
        value => Ok(Issued { value: value.to_owned(), at, valid_for: None }),
    }
}

/// The claims of a JWT that are used. Brokers verify the token; the relay does not.
#[derive(Default, Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "seconds")]
    exp: Option<u64>,
    sub: Option<String>,
    azp: Option<String>,
    client_id: Option<String>,
}

/// A number of seconds: it may have a fraction (RFC 7519), and some providers send it as text. Any other value counts as missing, also one
/// that is too large for the arithmetic of times.
pub(super) fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
    Ok(number.filter(|seconds| (0.0..1e12).contains(seconds)).map(|seconds| seconds as u64))
}

impl Claims {
    fn of(token: &str) -> Option<Claims> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?).ok()
    }

    /// Shown by librdkafka, which takes no NUL.
    fn principal(self) -> String {
        let name = self.sub.or(self.azp).or(self.client_id).unwrap_or_else(|| "unknown".to_owned());
        name.replace(char::is_control, "")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(lifetime: Option<u64>) -> Fetcher {
        let extensions = BTreeMap::from([("logicalCluster".to_owned(), "lkc-1".to_owned())]);
        let lifetime = lifetime.map(Duration::from_secs);
        Fetcher::new(&TokenCredentials { source: TokenSource::File("/t".into()), lifetime, extensions })
            .unwrap()
    }

    fn examined(lifetime: Option<u64>, value: &str, valid_for: Option<u64>) -> Result<Token, String> {
        let valid_for = valid_for.map(Duration::from_secs);
        let issued = Issued { value: value.to_owned(), at: SystemTime::now(), valid_for };
        source(lifetime).examine(issued, "the issuer".to_owned()).map_err(|error| error.to_string())
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    /// In seconds, rounded up.
    fn valid(token: &Token) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        (token.expires_at - i64::try_from(now).unwrap() + 999) / 1_000
    }

    #[test]
    fn a_token_says_until_when_it_is_valid_and_whose_it_is() {
        let far = 4_000_000_000_u64;
        let token = examined(None, &jwt(&format!(r#"{{"exp": {far}.5, "sub": "shipper"}}"#)), None).unwrap();
        assert_eq!((token.expires_at, token.principal.as_str()), (4_000_000_000_000, "shipper"));
        assert_eq!(token.extensions, [("logicalCluster".to_owned(), "lkc-1".to_owned())]);
        let by_issuer =
            examined(None, &jwt(&format!(r#"{{"exp": {far}, "azp": "client"}}"#)), Some(300)).unwrap();
        assert_eq!((valid(&by_issuer), by_issuer.principal.as_str()), (300, "client"));
        let opaque = examined(Some(60), "opaque", None).unwrap();
        assert_eq!((valid(&opaque), opaque.principal.as_str()), (60, "unknown"));
        let odd = examined(Some(60), &jwt(r#"{"sub": "ship\u0000per"}"#), None).unwrap();
        assert_eq!(odd.principal, "shipper");
    }

    #[test]
    fn a_token_that_is_of_no_use_is_refused_and_not_shown() {
        let cases = [
            (examined(None, "opaque-secret", None), "does not say when it expires"),
            (examined(None, &jwt(r#"{"exp": "soon"}"#), None), "does not say when it expires"),
            (examined(None, &jwt(r#"{"exp": 1e300}"#), None), "does not say when it expires"),
            (examined(Some(60), &jwt(r#"{"exp": 1}"#), None), "has expired"),
            (examined(None, "two secrets", Some(60)), "characters that are not allowed"),
            (examined(None, "", Some(60)), "characters that are not allowed"),
        ];
        for (outcome, said) in cases {
            let text = outcome.unwrap_err();
            assert!(text.starts_with("the issuer gave") && text.contains(said), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
