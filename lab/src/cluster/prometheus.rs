//! A client of Prometheus' API.

use std::time::Duration;

use serde_json::Value;
use testbed::wait;

use crate::Failure;

/// Targets are found and scraped for the first time within a minute or two.
const KNOWN_WITHIN: Duration = Duration::from_secs(180);

/// See the module's text.
pub struct Prometheus {
    client: reqwest::Client,
    url: String,
}

impl Prometheus {
    /// Where its API is.
    pub fn at(url: String) -> Prometheus {
        Prometheus { client: reqwest::Client::new(), url }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The value of an expression that gives one series; `None` where it gives none.
    pub async fn value(&self, expression: &str) -> Result<Option<f64>, Failure> {
        let url =
            reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url), [("query", expression)])?;
        let answer: Value = self.client.get(url).send().await?.error_for_status()?.json().await?;
        let value = answer.pointer("/data/result/0/value/1").and_then(Value::as_str);
        Ok(value.map(str::parse).transpose()?)
    }

    /// The same once it gives one.
    pub async fn until_known(&self, expression: &str) -> Result<f64, Failure> {
        let known = wait::until(format!("{expression} in Prometheus"), KNOWN_WITHIN, async || {
            let value = self.value(expression).await.map_err(|error| error.to_string())?;
            value.ok_or_else(|| "no series".to_owned())
        });
        Ok(known.await?)
    }

    /// Names of the alerts that fire now.
    pub async fn firing(&self) -> Result<Vec<String>, Failure> {
        let answer = self.client.get(format!("{}/api/v1/alerts", self.url)).send().await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        let alerts = answer.pointer("/data/alerts").and_then(Value::as_array).cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert.get("state").is_some_and(|state| state == "firing"));
        let names = firing.filter_map(|alert| alert.pointer("/labels/alertname")?.as_str());
        Ok(names.map(str::to_owned).collect())
    }
}
