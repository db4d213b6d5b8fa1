//! The alerts of the chart: each fires when it should and is silent when it should be, over metrics that are exported,
//! with a runbook.

use serde_json::Value;
use testbed::alerts::{Alerts, Threshold};
use testbed::kubernetes::shared_cluster;
use testbed::metrics;

use crate::chart::REGISTRY;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outbox-operator");
const TESTS: &str = include_str!("../../../charts/outbox-operator/tests/alerts.yaml");

const THRESHOLDS: [Threshold; 11] = [
    Threshold { path: "OutboxSlotAtRisk.safeShare", deaf: "0.01", nervous: "0.9" },
    Threshold { path: "OutboxRelayLagHigh.warningSeconds", deaf: "9999", nervous: "0" },
    Threshold { path: "OutboxRelayLagHigh.criticalSeconds", deaf: "9999", nervous: "0" },
    Threshold { path: "OutboxRelayLagHigh.criticalFor", deaf: "10h", nervous: "0m" },
    Threshold { path: "OutboxProduceErrors.perSecond", deaf: "9999", nervous: "0" },
    Threshold { path: "OutboxProduceErrors.rebuilds", deaf: "9999", nervous: "0" },
    Threshold { path: "OutboxRetainedWalHigh.warningBytes", deaf: "900000000000", nervous: "0" },
    Threshold { path: "OutboxRetainedWalHigh.criticalBytes", deaf: "900000000000", nervous: "0" },
    Threshold { path: "OutboxRetainedWalHigh.criticalFor", deaf: "10h", nervous: "0m" },
    Threshold { path: "OutboxRetentionBehind.hours", deaf: "9999", nervous: "1" },
    Threshold { path: "OutboxReconcileErrors.share", deaf: "0.9", nervous: "0" },
];

/// The alerts with these values beside the chart's own.
pub async fn alerts(values: &[&str]) -> Alerts {
    let cluster = shared_cluster().await.unwrap();
    let template = ["template", "outbox", CHART, "--show-only", "templates/prometheusrule.yaml"];
    let values = values.iter().flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> = template
        .into_iter()
        .chain(["--set", REGISTRY, "--set", "alerts.enabled=true"])
        .chain(values)
        .collect();
    let rendered: Value = serde_saphyr::from_str(&cluster.helm(&arguments).await.unwrap()).unwrap();
    Alerts::of(&rendered)
}

#[tokio::test]
async fn each_fires_when_it_should_and_is_silent_when_it_should() {
    let alerts = alerts(&[]).await;
    alerts.check().await.unwrap();
    alerts.test(TESTS).await.unwrap();
}

#[tokio::test]
async fn the_tests_fail_when_an_alert_is_missing_late_deaf_or_nervous() {
    for value in alerts(&[]).await.broken(&THRESHOLDS) {
        let passed = alerts(&[&value]).await.test(TESTS).await.is_ok();
        assert!(!passed, "no test notices {value}");
    }
}

#[tokio::test]
async fn each_has_a_test_a_runbook_and_exported_metrics() {
    let alerts = alerts(&[]).await;
    assert_eq!(alerts.flaws(TESTS, "Outbox").unwrap(), [""; 0]);
    for expression in alerts.expressions() {
        assert_eq!(metrics::unknown(expression), [""; 0], "{expression}");
    }
}
