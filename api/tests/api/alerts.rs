//! The alerts of the chart: each fires when it should and is silent when it should be, over metrics that the service exports, with a page for
//! the person on call. The dashboard shows the same metrics.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::shared_cluster;
use testbed::prometheus::promtool;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/basket-api");
const TESTS: &str = include_str!("../../../charts/basket-api/tests/alerts.yaml");
const METRICS: &str = include_str!("../../../docs/METRICS.md");
const REQUIRED: &str = "global.imageRegistry=registry.example,database.secret=s,auth.mode=static-token,auth.staticToken.secret=s";

/// One template of the chart with these values beside its own.
async fn rendered(template: &str, values: &[&str]) -> Value {
    let cluster = shared_cluster().await.unwrap();
    let arguments =
        ["template", "shop", CHART, "--namespace", "shop", "--show-only", template, "--set", REQUIRED];
    let values = values.iter().flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> = arguments.into_iter().chain(values).collect();
    serde_saphyr::from_str(&cluster.helm(&arguments).await.unwrap()).unwrap()
}

async fn groups(values: &[&str]) -> Value {
    let values = [&["alerts.enabled=true"], values].concat();
    let rule = rendered("templates/prometheusrule.yaml", &values).await;
    json!({"groups": rule["spec"]["groups"]})
}

fn rules(groups: &Value) -> impl Iterator<Item = &Value> {
    groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten())
}

fn names(groups: &Value) -> BTreeSet<String> {
    rules(groups).map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect()
}

/// Runs the tests of the chart against rules, without their annotations; what promtool says where one fails.
async fn tested(mut groups: Value) -> Result<(), String> {
    for group in groups["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().into_iter().flatten() {
            rule.as_object_mut().unwrap().remove("annotations");
        }
    }
    let folder = Folder::new("alerts").unwrap();
    fs::write(folder.path().join("rules.yaml"), groups.to_string()).unwrap();
    fs::write(folder.path().join("alerts.yaml"), TESTS).unwrap();
    let tested = promtool(folder.path(), &["test", "rules", "alerts.yaml"]).await;
    tested.map(drop).map_err(|error| error.to_string())
}

/// Whether Prometheus reads the expressions.
async fn are_read(groups: &Value) {
    let folder = Folder::new("rules").unwrap();
    fs::write(folder.path().join("rules.yaml"), groups.to_string()).unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yaml"]).await.unwrap();
}

/// Every metric of an expression is in the table of metrics.
fn is_exported(expression: &str) {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics: Vec<&str> =
        words.filter(|word| word.starts_with("basket_api_") || word.starts_with("process_")).collect();
    assert!(!metrics.is_empty(), "{expression}");
    for metric in metrics {
        let of_any_process = ["process_cpu_seconds_total", "process_resident_memory_bytes"].contains(&metric);
        let family = metric.trim_end_matches("_bucket");
        assert!(of_any_process || METRICS.contains(&format!("| `{family}` |")), "nothing exports {metric}");
    }
}

#[tokio::test]
async fn each_fires_when_it_should_and_is_silent_when_it_should() {
    let groups = groups(&[]).await;
    are_read(&groups).await;
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
    for (name, deaf, nervous) in [
        ("BasketApiErrors.share", "0.9", "0.01"),
        ("BasketApiSlow.seconds", "9", "0.1"),
        ("BasketApiHousekeepingBehind.seconds", "99999", "1"),
    ] {
        broken.extend([format!("{name}={deaf}"), format!("{name}={nervous}")]);
    }
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
    let groups = groups(&["alerts.runbookUrl=https://wiki.example/runbooks"]).await;
    let names = names(&groups);
    let tests = TESTS.lines().filter_map(|line| line.strip_prefix("- name: ").map(str::to_owned));
    assert_eq!(tests.collect::<BTreeSet<String>>(), names);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    let pages = fs::read_dir(&folder).unwrap().map(|page| page.unwrap().path());
    let page_of = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    let of_the_api = pages.filter(|page| page_of(page).starts_with("BasketApi"));
    assert_eq!(of_the_api.map(|page| page_of(&page)).collect::<BTreeSet<String>>(), names);
    let list = fs::read_to_string(folder.join("README.md")).unwrap();
    for name in &names {
        assert!(list.contains(&format!("[{name}]({name}.md)")), "{name} is not in the list of runbooks");
        let page = fs::read_to_string(folder.join(format!("{name}.md"))).unwrap();
        for part in ["## What it means", "## Impact", "## Diagnosis", "## Mitigation"] {
            assert!(page.contains(part), "{name}: no part '{part}'");
        }
    }
    for rule in rules(&groups) {
        is_exported(rule["expr"].as_str().unwrap());
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{rule}");
        let name = rule["alert"].as_str().unwrap();
        assert_eq!(rule["annotations"]["runbook_url"], format!("https://wiki.example/runbooks/{name}.md"));
    }
}

#[tokio::test]
async fn the_dashboard_shows_existing_metrics_in_panels_that_do_not_overlap() {
    let map = rendered("templates/dashboard.yaml", &["dashboard.enabled=true"]).await;
    let dashboard: Value = serde_json::from_str(map["data"]["basket-api.json"].as_str().unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<String> =
        targets.map(|target| target["expr"].as_str().unwrap().replace("$__rate_interval", "5m")).collect();
    assert!(expressions.len() > 15, "{}", expressions.len());
    expressions.iter().for_each(|expression| is_exported(expression));
    let rules: Vec<Value> =
        (0..).zip(&expressions).map(|(n, e)| json!({"record": format!("panel:{n}"), "expr": e})).collect();
    are_read(&json!({"groups": [{"name": "panels", "rules": rules}]})).await;
    let (mut numbers, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && cells.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
    }
}
