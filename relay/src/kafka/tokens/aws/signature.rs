//! Signature Version 4 in a query string, as AWS documents it ("Authenticating Requests: Using Query Parameters").

use std::time::Duration;

use chrono::{DateTime, Utc};
use ring::{digest, hmac};

use super::provider::Credentials;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Where and when a signature is valid.
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) now: DateTime<Utc>,
}

impl Scope<'_> {
    fn date(&self) -> String {
        self.now.format("%Y%m%d").to_string()
    }

    fn time(&self) -> String {
        self.now.format("%Y%m%dT%H%M%SZ").to_string()
    }

    fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date(), self.region, self.service)
    }

    /// The signing key that is derived from a secret key for this scope.
    fn key(&self, secret: &str) -> Vec<u8> {
        let secret = format!("AWS4{secret}").into_bytes();
        [self.date().as_str(), self.region, self.service, "aws4_request"]
            .iter()
            .fold(secret, |key, part| mac(&key, part))
    }
}

/// The query string of a presigned GET.
pub(super) fn presign(
    credentials: &Credentials,
    scope: &Scope<'_>,
    host: &str,
    path: &str,
    parameters: &[(&str, &str)],
    valid_for: Duration,
    payload_hash: &str,
) -> String {
    let credential = format!("{}/{}", credentials.access_key_id, scope.text());
    let (time, expires) = (scope.time(), valid_for.as_secs().to_string());
    let session = credentials.session_token.as_ref().map(|token| ("X-Amz-Security-Token", token.reveal()));
    let mut query: Vec<String> = parameters
        .iter()
        .copied()
        .chain([
            ("X-Amz-Algorithm", ALGORITHM),
            ("X-Amz-Credential", credential.as_str()),
            ("X-Amz-Date", time.as_str()),
            ("X-Amz-Expires", expires.as_str()),
            ("X-Amz-SignedHeaders", "host"),
        ])
        .chain(session)
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    query.sort();
    let query = query.join("&");
    let request = format!("GET\n{path}\n{query}\nhost:{host}\n\nhost\n{payload_hash}");
    let hash = hexadecimal(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
    let to_sign = format!("{ALGORITHM}\n{time}\n{}\n{hash}", scope.text());
    let signature = mac(&scope.key(credentials.secret_access_key.reveal()), &to_sign);
    format!("{query}&X-Amz-Signature={}", hexadecimal(&signature))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;
    use crate::config::Secret;

    /// "Deriving the signing key", with AWS' example key.
    #[test]
    fn the_signing_key_is_that_of_the_published_example() {
        let now = Utc.with_ymd_and_hms(2012, 2, 15, 0, 0, 0).unwrap();
        let scope = Scope { region: "us-east-1", service: "iam", now };
        assert_eq!(
            hexadecimal(&scope.key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")),
            "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"
        );
    }

    /// "Authenticating Requests: Using Query Parameters", an example of a presigned URL.
    #[test]
    fn the_signature_is_that_of_the_published_example() {
        let credentials = Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
            expires_at: None,
        };
        let now = Utc.with_ymd_and_hms(2013, 5, 24, 0, 0, 0).unwrap();
        let scope = Scope { region: "us-east-1", service: "s3", now };
        let (host, valid_for) = ("examplebucket.s3.amazonaws.com", Duration::from_secs(86_400));
        let query = presign(&credentials, &scope, host, "/test.txt", &[], valid_for, "UNSIGNED-PAYLOAD");
        assert_eq!(
            query,
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
             &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }
}
