//! Requests a token from a token endpoint, with client credentials (RFC 6749, 4.4).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request};
use serde::Deserialize;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::fetcher::seconds;
use super::https::{Client, HttpsError};
use crate::config::TokenEndpoint;
use crate::error::excerpt;

/// Why an endpoint issued no token.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("the token endpoint {url}: {error}")]
    Request { url: String, error: HttpsError },
    #[error("the token endpoint {url} refused: {said}; check client ID, client secret and scope")]
    Refused { url: String, said: String },
    #[error("the response of the token endpoint {url} has no token; check the URL")]
    NotAnAnswer { url: String },
}

pub(super) struct Endpoint {
    endpoint: TokenEndpoint,
    client: Client,
}

/// A token response (RFC 6749, 5.1).
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) access_token: String,
    #[serde(default, deserialize_with = "seconds")]
    pub(super) expires_in: Option<u64>,
}

/// An error response (RFC 6749, 5.2).
#[derive(Deserialize)]
struct ErrorResponse {
    error: String,
    #[serde(default)]
    error_description: Option<String>,
}

impl Endpoint {
    pub(super) fn new(endpoint: &TokenEndpoint) -> Result<Endpoint, EndpointError> {
        let client = Client::new(endpoint.ca.as_deref());
        let client =
            client.map_err(|error| EndpointError::Request { url: endpoint.url.to_string(), error })?;
        Ok(Endpoint { endpoint: endpoint.clone(), client })
    }

    /// Blocks, for a limited time.
    pub(super) fn ask(&self) -> Result<Answer, EndpointError> {
        let url = self.endpoint.url.to_string();
        let failed = |error| EndpointError::Request { url: url.clone(), error };
        let (status, body) = self.client.send(self.request().map_err(failed)?).map_err(failed)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| EndpointError::NotAnAnswer { url });
        }
        let refusal: Option<ErrorResponse> = serde_json::from_slice(&body).ok();
        let said = refusal.map(|refusal| match refusal.error_description {
            Some(description) => format!(" ({}: {})", refusal.error, description),
            None => format!(" ({})", refusal.error),
        });
        let said = format!("{}{}", status.as_u16(), excerpt(&said.unwrap_or_default()).escape_debug());
        Err(EndpointError::Refused { url, said })
    }

    fn request(&self) -> Result<Request<Bytes>, HttpsError> {
        let TokenEndpoint { url, client_id, client_secret, scope, .. } = &self.endpoint;
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = scope {
            form.append_pair("scope", scope);
        }
        // Both are form-encoded before they are joined (RFC 6749, 2.3.1): either may have a colon.
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let credentials = format!("{}:{}", encoded(client_id), encoded(client_secret.reveal()));
        let request = Request::builder()
            .method(Method::POST)
            .uri(url.as_str())
            .header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(credentials)))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json");
        request.body(form.finish().into()).map_err(|error| HttpsError::Request(Arc::new(error)))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the token endpoint {}", self.endpoint.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lifetime_may_be_a_number_or_text_and_one_that_is_no_time_is_ignored() {
        for (given, lifetime) in [
            ("300", Some(300)),
            (r#""3599""#, Some(3_599)),
            ("299.9", Some(299)),
            ("18446744073709551615", None),
            ("-1", None),
            (r#""soon""#, None),
            ("null", None),
        ] {
            let body = format!(r#"{{"access_token": "t", "token_type": "Bearer", "expires_in": {given}}}"#);
            let answer: Answer = serde_json::from_str(&body).unwrap();
            assert_eq!(answer.expires_in, lifetime, "{given}");
        }
        let answer: Answer = serde_json::from_str(r#"{"access_token": "t"}"#).unwrap();
        assert_eq!(answer.expires_in, None);
    }
}
