//! Alerts of the chart in a real Prometheus: each fires for its cause, with its durations scaled down, and is silent again after it.

use lab::cluster::prometheus::Prometheus;
use testbed::wait;

use crate::traffic::{PASSWORD, Traffic};
use crate::{SOON, installed, quiet, scale};

const SCALED: &str = "helm upgrade outbox charts/outbox-operator --namespace outbox-system --wait --reuse-values \
    --set podMonitor.interval=2s --set alerts.rules.OutboxRelayLagHigh.for=3s \
    --set alerts.rules.OutboxRelayLagHigh.warningSeconds=5 --set alerts.rules.OutboxResourceNotReady.for=3s \
    --set alerts.rules.OutboxOperatorDown.for=3s";

#[tokio::test(flavor = "multi_thread")]
async fn three_alerts_fire_and_end() {
    let Some((_turn, site)) = installed().await else { return };
    let prometheus = site.monitor(quiet).await.unwrap();
    site.shell(SCALED).await.unwrap();
    let traffic = Traffic::start(&site, "watched").await;
    for metric in ["outbox_relay_lag_seconds", "outbox_operator_leader", "basket_api_http_requests_total"] {
        prometheus.until_known(metric).await.unwrap();
    }
    fires(&prometheus, "OutboxRelayLagHigh", false).await;

    scale(&site, "statefulset/kafka", "servers", 0).await;
    fires(&prometheus, "OutboxRelayLagHigh", true).await;
    scale(&site, "statefulset/kafka", "servers", 1).await;
    traffic.until_ready().await;
    fires(&prometheus, "OutboxRelayLagHigh", false).await;

    traffic.password("wrong-password").await;
    fires(&prometheus, "OutboxResourceNotReady", true).await;
    traffic.password(PASSWORD).await;
    fires(&prometheus, "OutboxResourceNotReady", false).await;

    scale(&site, "deployment/outbox-outbox-operator", "outbox-system", 0).await;
    fires(&prometheus, "OutboxOperatorDown", true).await;
    scale(&site, "deployment/outbox-outbox-operator", "outbox-system", 2).await;
    fires(&prometheus, "OutboxOperatorDown", false).await;
    traffic.end().await;
}

async fn fires(prometheus: &Prometheus, alert: &str, expected: bool) {
    wait::until(format!("{alert} firing: {expected}"), SOON, async || {
        let firing = prometheus.firing().await.map_err(|error| error.to_string())?;
        if firing.iter().any(|name| name == alert) == expected { Ok(()) } else { Err(format!("{firing:?}")) }
    })
    .await
    .unwrap();
}
