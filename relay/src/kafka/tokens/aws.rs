//! Tokens for Amazon MSK (IAM): a URL for the action `kafka-cluster:Connect` that is signed with AWS credentials, in base64. Brokers have AWS
//! verify it.
//!
//! The AWS SDK is not used: one signature of a fixed URL and two requests for credentials are needed, and the SDK's crates for them
//! (aws-config, aws-sigv4) add a second HTTP stack to each build. Tests compare the signature with AWS' published examples.

mod provider;
mod signature;

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};

pub(super) use self::provider::AwsError;
use self::provider::Provider;
use self::signature::{Scope, presign};

/// As AWS' own MSK clients have it, and the longest that brokers accept.
const VALID_FOR: Duration = Duration::from_secs(900);
/// SHA-256 of an empty body, in hexadecimal.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(super) struct Msk {
    region: String,
    provider: Provider,
}

/// A token, and how long it is valid from now.
pub(super) struct Signed {
    pub(super) token: String,
    pub(super) valid_for: Duration,
}

impl Msk {
    /// With the AWS credentials of this process.
    pub(super) fn new(region: &str) -> Result<Msk, AwsError> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Msk::within(region, Box::new(environment))
    }

    fn within(region: &str, environment: provider::Environment) -> Result<Msk, AwsError> {
        Ok(Msk { region: region.to_owned(), provider: Provider::new(region, environment)? })
    }

    /// Blocks, for a limited time.
    pub(super) fn token(&self) -> Result<Signed, AwsError> {
        let credentials = self.provider.fetch()?;
        let now = SystemTime::now();
        // A signature is void once the session of its keys has ended.
        let of_session = credentials.expires_at.map(|at| at.duration_since(now).unwrap_or_default());
        let valid_for = of_session.map_or(VALID_FOR, |of_session| of_session.min(VALID_FOR));
        let host = format!("kafka.{}.amazonaws.com", self.region);
        let scope = Scope { region: &self.region, service: "kafka-cluster", now: DateTime::<Utc>::from(now) };
        let action = [("Action", "kafka-cluster:Connect")];
        let query = presign(&credentials, &scope, &host, "/", &action, VALID_FOR, EMPTY_SHA256);
        // Not signed; it is for the brokers' log.
        let url = format!("https://{host}/?{query}&User-Agent=outbox-relay");
        Ok(Signed { token: URL_SAFE_NO_PAD.encode(url), valid_for })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use url::Url;

    use super::*;

    #[test]
    fn a_token_is_a_signed_url_that_aws_can_verify() {
        let environment = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("AKIAEXAMPLE".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("secret-key".to_owned()),
            "AWS_SESSION_TOKEN" => Some("a+b/c=".to_owned()),
            _ => None,
        };
        let signed = Msk::within("eu-central-1", Box::new(environment)).unwrap().token().unwrap();
        assert_eq!(signed.valid_for, Duration::from_secs(900));
        let url = String::from_utf8(URL_SAFE_NO_PAD.decode(signed.token).unwrap()).unwrap();
        assert!(!url.contains("secret-key"));
        let url = Url::parse(&url).unwrap();
        assert_eq!((url.host_str(), url.path()), (Some("kafka.eu-central-1.amazonaws.com"), "/"));
        let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
        assert_eq!(query["Action"], "kafka-cluster:Connect");
        assert_eq!(query["X-Amz-Algorithm"], "AWS4-HMAC-SHA256");
        assert_eq!(query["X-Amz-Expires"], "900");
        assert_eq!(query["X-Amz-SignedHeaders"], "host");
        assert_eq!(query["X-Amz-Security-Token"], "a+b/c=");
        let date = query["X-Amz-Date"].get(..8).unwrap();
        let credential = format!("AKIAEXAMPLE/{date}/eu-central-1/kafka-cluster/aws4_request");
        assert_eq!(query["X-Amz-Credential"], credential);
        assert_eq!(query["X-Amz-Signature"].len(), 64);
    }
}
