//! The Prometheus operator and a Prometheus as pods.

use super::Cluster;
use crate::prometheus::prometheus_operator_kinds;
use crate::{Error, blocking, images};

const MANIFEST: &str = include_str!("../../images/monitoring.yaml");

/// Where the API of Prometheus is, for this machine.
#[derive(Clone, Debug)]
pub struct Monitoring {
    /// Its address.
    pub url: String,
}

impl Cluster {
    /// Starts them in the namespace `monitoring`: every PodMonitor is scraped, every PrometheusRule is evaluated each second.
    ///
    /// # Errors
    /// There is no real node, they cannot be built, or they do not become ready.
    pub async fn monitoring(&self) -> Result<Monitoring, Error> {
        let kinds = blocking(prometheus_operator_kinds).await?;
        for archive in blocking(images::servers::monitoring).await? {
            self.import(&archive).await?;
        }
        let kinds = kinds.display().to_string();
        self.kubectl(&["apply", "--server-side", "--filename", &kinds]).await?;
        self.until_established(&[]).await?;
        self.apply(MANIFEST).await?;
        let rollout =
            |what: &'static str| ["rollout", "status", what, "--namespace=monitoring", "--timeout=180s"];
        self.kubectl(&rollout("deployment/prometheus-operator")).await?;
        let made = [
            "wait",
            "--for=create",
            "statefulset/prometheus-testbed",
            "--namespace=monitoring",
            "--timeout=180s",
        ];
        self.kubectl(&made).await?;
        self.kubectl(&rollout("statefulset/prometheus-testbed")).await?;
        let service =
            ["get", "service", "prometheus", "--namespace=monitoring", "-o", "jsonpath={.spec.clusterIP}"];
        Ok(Monitoring { url: format!("http://{}:9090", self.kubectl(&service).await?) })
    }
}
