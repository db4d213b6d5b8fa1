//! Bearer tokens, with an issuer of our own.

mod claims;
mod issuer;
mod keys;
mod principals;

use reqwest::Response;

use crate::service::Service;

async fn list(service: &Service, token: &str) -> Response {
    service
        .client
        .get(format!("http://{}/v1/baskets", service.address()))
        .bearer_auth(token)
        .send()
        .await
        .unwrap()
}
