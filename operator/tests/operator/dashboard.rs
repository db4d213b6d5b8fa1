//! The dashboard of the chart shows what there is.

use serde_json::Value;
use testbed::kubernetes::shared_cluster;
use testbed::prometheus::check_expressions;
use testbed::{dashboard, metrics};

use crate::chart::REGISTRY;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outbox-operator");

/// The dashboard as it is installed.
async fn shown() -> Value {
    let cluster = shared_cluster().await.unwrap();
    let template = [
        "template",
        "outbox",
        CHART,
        "--show-only",
        "templates/dashboard.yaml",
        "--set",
        REGISTRY,
        "--set",
        "dashboard.enabled=true",
    ];
    let rendered: Value = serde_saphyr::from_str(&cluster.helm(&template).await.unwrap()).unwrap();
    serde_json::from_str(rendered["data"]["outbox.json"].as_str().unwrap()).unwrap()
}

/// Prometheus can read every expression, and every metric is exported.
#[tokio::test]
async fn every_panel_shows_exported_metrics() {
    let expressions = dashboard::expressions(&shown().await);
    assert!(expressions.len() > 30, "{}", expressions.len());
    check_expressions(&expressions).await.unwrap();
    for expression in &expressions {
        assert_eq!(metrics::unknown(expression), [""; 0], "{expression}");
    }
}

#[tokio::test]
async fn panels_do_not_overlap() {
    assert_eq!(dashboard::misplaced(&shown().await), [""; 0]);
}
