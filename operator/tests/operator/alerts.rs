//! The alerts of the chart: each fires when it should and is silent when it should be, over metrics that there are, with a page for the person
//! it wakes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::shared_cluster;
use testbed::prometheus::promtool;

use crate::chart::REGISTRY;
use crate::metrics;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outbox-operator");
const TESTS: &str = include_str!("../../../charts/outbox-operator/tests/alerts.yaml");

/// The rules with these values beside the chart's own.
pub async fn groups(values: &[&str]) -> Value {
    let cluster = shared_cluster().await.unwrap();
    let template = ["template", "outbox", CHART, "--show-only", "templates/prometheusrule.yaml"];
    let values = values.iter().flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> = template
        .into_iter()
        .chain(["--set", REGISTRY, "--set", "alerts.enabled=true"])
        .chain(values)
        .collect();
    let rendered: Value = serde_saphyr::from_str(&cluster.helm(&arguments).await.unwrap()).unwrap();
    json!({"groups": rendered["spec"]["groups"]})
}

fn rules(groups: &Value) -> impl Iterator<Item = &Value> {
    groups["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
}

fn names(groups: &Value) -> BTreeSet<String> {
    rules(groups).map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect()
}

/// Runs the tests of the chart against rules, without their annotations; what promtool says where one fails.
async fn tested(mut groups: Value) -> Result<(), String> {
    for group in groups["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            rule.as_object_mut().unwrap().remove("annotations");
        }
    }
    let folder = Folder::new("alerts").unwrap();
    fs::write(folder.path().join("rules.yaml"), groups.to_string()).unwrap();
    fs::write(folder.path().join("alerts.yaml"), TESTS).unwrap();
    let tested = promtool(folder.path(), &["test", "rules", "alerts.yaml"]).await;
    tested.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn each_fires_when_it_should_and_is_silent_when_it_should() {
    let groups = groups(&[]).await;
    let folder = Folder::new("rules").unwrap();
    fs::write(folder.path().join("rules.yaml"), groups.to_string()).unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yaml"]).await.unwrap();
    tested(groups).await.unwrap();
}

/// A test that passes whatever the threshold is would be none.
#[tokio::test]
async fn the_tests_fail_when_an_alert_is_missing_late_deaf_or_nervous() {
    let mut broken: Vec<String> = Vec::new();
    for name in names(&groups(&[]).await) {
        broken.push(format!("{name}.enabled=false"));
        broken.push(format!("{name}.for=10h"));
    }
    let thresholds = [
        ("OutboxSlotAtRisk.safeShare", "0.01", "0.9"),
        ("OutboxRelayLagHigh.warningSeconds", "9999", "0"),
        ("OutboxRelayLagHigh.criticalSeconds", "9999", "0"),
        ("OutboxRelayLagHigh.criticalFor", "10h", "0m"),
        ("OutboxProduceErrors.perSecond", "9999", "0"),
        ("OutboxProduceErrors.rebuilds", "9999", "0"),
        ("OutboxRetainedWalHigh.warningBytes", "900000000000", "0"),
        ("OutboxRetainedWalHigh.criticalBytes", "900000000000", "0"),
        ("OutboxRetainedWalHigh.criticalFor", "10h", "0m"),
        ("OutboxRetentionBehind.hours", "9999", "1"),
        ("OutboxReconcileErrors.share", "0.9", "0"),
    ];
    broken.extend(
        thresholds
            .iter()
            .flat_map(|(name, deaf, nervous)| [format!("{name}={deaf}"), format!("{name}={nervous}")]),
    );
    for value in broken {
        let value = format!("alerts.rules.{value}");
        assert!(
            tested(groups(&[&value]).await).await.is_err(),
            "{value} changes nothing that a test would see"
        );
    }
}

#[tokio::test]
async fn each_has_a_test_a_page_and_metrics_that_there_are() {
    let groups = groups(&[]).await;
    let names = names(&groups);
    let tests: BTreeSet<String> = TESTS
        .lines()
        .filter_map(|line| line.strip_prefix("- name: "))
        .map(|name| name.split(',').next().unwrap().to_owned())
        .collect();
    assert_eq!(tests, names);
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    let pages: Vec<PathBuf> = fs::read_dir(pages).unwrap().map(|page| page.unwrap().path()).collect();
    let page_of = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    // Others are of the chart of the basket API.
    let pages: Vec<PathBuf> = pages.into_iter().filter(|page| page_of(page).starts_with("Outbox")).collect();
    let of_alerts: BTreeSet<String> = pages.iter().map(page_of).collect();
    assert_eq!(of_alerts, names);
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for part in ["## What it means", "## Impact", "## Diagnosis", "## Mitigation"] {
            assert!(text.contains(part), "{}: no part '{part}'", page.display());
        }
    }
    for rule in rules(&groups) {
        metrics::are_exported(rule["expr"].as_str().unwrap());
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{rule}");
    }
}
