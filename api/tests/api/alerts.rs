//! The alerts of the chart: each fires when it should and is silent when it should be, over metrics that are exported,
//! with a runbook. The dashboard shows the same metrics.

use serde_json::Value;
use testbed::alerts::{Alerts, Threshold};
use testbed::kubernetes::shared_cluster;
use testbed::prometheus::check_expressions;
use testbed::{dashboard, metrics};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/basket-api");
const TESTS: &str = include_str!("../../../charts/basket-api/tests/alerts.yaml");
const REQUIRED: &str = "global.imageRegistry=registry.example,database.secret=s,auth.mode=static-token,auth.staticToken.secret=s";

const THRESHOLDS: [Threshold; 3] = [
    Threshold { path: "BasketApiErrors.share", deaf: "0.9", nervous: "0.01" },
    Threshold { path: "BasketApiSlow.seconds", deaf: "9", nervous: "0.1" },
    Threshold { path: "BasketApiHousekeepingBehind.seconds", deaf: "99999", nervous: "1" },
];

/// One template of the chart with these values beside its own.
async fn rendered(template: &str, values: &[&str]) -> Value {
    let cluster = shared_cluster().await.unwrap();
    let arguments =
        ["template", "shop", CHART, "--namespace", "shop", "--show-only", template, "--set", REQUIRED];
    let values = values.iter().flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> = arguments.into_iter().chain(values).collect();
    serde_saphyr::from_str(&cluster.helm(&arguments).await.unwrap()).unwrap()
}

async fn alerts(values: &[&str]) -> Alerts {
    let values = [&["alerts.enabled=true"], values].concat();
    Alerts::of(&rendered("templates/prometheusrule.yaml", &values).await)
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
    let alerts = alerts(&["alerts.runbookUrl=https://wiki.example/runbooks"]).await;
    assert_eq!(alerts.flaws(TESTS, "BasketApi").unwrap(), [""; 0]);
    for expression in alerts.expressions() {
        assert_eq!(metrics::unknown(expression), [""; 0], "{expression}");
    }
    for rule in alerts.rules() {
        let name = rule["alert"].as_str().unwrap();
        assert_eq!(rule["annotations"]["runbook_url"], format!("https://wiki.example/runbooks/{name}.md"));
    }
}

#[tokio::test]
async fn the_dashboard_shows_exported_metrics_in_panels_that_do_not_overlap() {
    let map = rendered("templates/dashboard.yaml", &["dashboard.enabled=true"]).await;
    let shown: Value = serde_json::from_str(map["data"]["basket-api.json"].as_str().unwrap()).unwrap();
    let expressions = dashboard::expressions(&shown);
    assert!(expressions.len() > 15, "{}", expressions.len());
    for expression in &expressions {
        assert_eq!(metrics::unknown(expression), [""; 0], "{expression}");
    }
    check_expressions(&expressions).await.unwrap();
    assert_eq!(dashboard::misplaced(&shown), [""; 0]);
}
