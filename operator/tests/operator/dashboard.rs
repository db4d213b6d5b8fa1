//! The dashboard of the chart shows what there is.

use std::collections::BTreeSet;

use serde_json::Value;
use testbed::guard::Folder;
use testbed::kubernetes::shared_cluster;
use testbed::prometheus::promtool;

use crate::chart::REGISTRY;
use crate::metrics;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outbox-operator");

/// As it is installed.
async fn dashboard() -> Value {
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

fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// Every expression is one that Prometheus reads, over metrics that are exported.
#[tokio::test]
async fn every_panel_shows_metrics_that_there_are() {
    let dashboard = dashboard().await;
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 30, "{}", expressions.len());
    let folder = Folder::new("dashboard").unwrap();
    let rules: Vec<Value> = expressions
        .iter()
        .enumerate()
        .map(|(number, expression)| {
            let expression = expression.replace("$__rate_interval", "5m");
            serde_json::json!({"record": format!("panel:{number}"), "expr": expression})
        })
        .collect();
    let file = serde_json::json!({"groups": [{"name": "panels", "rules": rules}]}).to_string();
    std::fs::write(folder.path().join("rules.yaml"), file).unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yaml"]).await.unwrap();
    for expression in &expressions {
        metrics::are_exported(expression);
    }
}

/// No panel lies on another, and none has the number of another: Grafana would show one of the two.
#[tokio::test]
async fn panels_do_not_overlap() {
    let dashboard = dashboard().await;
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut numbers, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
    }
}
