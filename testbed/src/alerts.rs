//! The alerts of a chart: promtool runs their tests, with the rules as they are and with each rule broken.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::guard::Folder;
use crate::prometheus::{check_rules, promtool, write};
use crate::{Error, cache};

const RUNBOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/runbooks");
/// The parts of a runbook.
const PARTS: [&str; 5] = ["## What it means", "## Impact", "## Diagnosis", "## Mitigation", "## Done when"];

/// The alerting rules of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Alerts {
    groups: Value,
}

/// A value of a chart, as a path below `alerts.rules`, that an alert's threshold is, and two that are wrong.
#[derive(Clone, Copy, Debug)]
pub struct Threshold {
    /// The path.
    pub path: &'static str,
    /// With this one the alert never fires.
    pub deaf: &'static str,
    /// With this one the alert always fires.
    pub nervous: &'static str,
}

impl Alerts {
    /// The rules of a `PrometheusRule`.
    pub fn of(object: &Value) -> Alerts {
        Alerts { groups: json!({"groups": object.pointer("/spec/groups")}) }
    }

    /// What a file of rules contains.
    pub fn file(&self) -> &Value {
        &self.groups
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &Value> {
        let groups = self.groups.get("groups").and_then(Value::as_array);
        groups.into_iter().flatten().flat_map(|group| group["rules"].as_array().into_iter().flatten())
    }

    /// The names of the alerts.
    pub fn names(&self) -> BTreeSet<String> {
        self.rules().filter_map(|rule| rule["alert"].as_str()).map(str::to_owned).collect()
    }

    /// The expressions of the rules.
    pub fn expressions(&self) -> impl Iterator<Item = &str> {
        self.rules().filter_map(|rule| rule["expr"].as_str())
    }

    /// Whether Prometheus can read the rules.
    ///
    /// # Errors
    /// It cannot, or promtool cannot be built.
    pub async fn check(&self) -> Result<(), Error> {
        check_rules(&self.groups).await
    }

    /// Runs `tests`, a file for promtool that names the rules `rules.yaml`. The annotations are left out: the tests
    /// would have to repeat them.
    ///
    /// # Errors
    /// A test fails; the error has promtool's output.
    pub async fn test(&self, tests: &str) -> Result<(), Error> {
        let mut groups = self.groups.clone();
        for group in members(&mut groups, "groups") {
            for rule in members(group, "rules") {
                if let Some(rule) = rule.as_object_mut() {
                    rule.remove("annotations");
                }
            }
        }
        let folder = Folder::new("alerts")?;
        write(folder.path(), "rules.yaml", &groups.to_string())?;
        write(folder.path(), "alerts.yaml", tests)?;
        promtool(folder.path(), &["test", "rules", "alerts.yaml"]).await.map(drop)
    }

    /// Values of the chart that break one rule each: without the alert, too late, deaf or nervous. The tests of the
    /// chart have to notice each.
    pub fn broken(&self, thresholds: &[Threshold]) -> Vec<String> {
        let of_all = self.names().into_iter();
        let of_all = of_all.flat_map(|name| [format!("{name}.enabled=false"), format!("{name}.for=10h")]);
        let wrong = thresholds.iter().flat_map(|Threshold { path, deaf, nervous }| {
            [format!("{path}={deaf}"), format!("{path}={nervous}")]
        });
        of_all.chain(wrong).map(|value| format!("alerts.rules.{value}")).collect()
    }

    /// What is wrong beside the rules: an alert without a test, a runbook or a severity, and the reverse. The chart's
    /// runbooks begin with `prefix`.
    ///
    /// # Errors
    /// A runbook cannot be read.
    pub fn flaws(&self, tests: &str, prefix: &str) -> Result<Vec<String>, Error> {
        let names = self.names();
        let tested = tests.lines().filter_map(|line| line.strip_prefix("- name: "));
        let tested = tested.filter_map(|name| name.split(',').next()).map(str::to_owned).collect();
        let mut flaws = difference("test", &names, &tested);
        let (mut described, mut index) = (BTreeSet::new(), String::new());
        for page in cache::files(Path::new(RUNBOOKS))? {
            let text = std::fs::read_to_string(&page).map_err(Error::file("read", &page))?;
            let name = page.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match name.as_str() {
                "README" => index = text,
                other if other.starts_with(prefix) => {
                    let lacks = PARTS.iter().filter(|part| !text.contains(**part));
                    flaws.extend(lacks.map(|part| format!("{name}: its runbook has no '{part}'")));
                    described.insert(name);
                }
                _ => {}
            }
        }
        flaws.extend(difference("runbook", &names, &described));
        let unlisted = names.iter().filter(|name| !index.contains(&format!("[{name}]({name}.md)")));
        flaws.extend(unlisted.map(|name| format!("{name} is not in the list of runbooks")));
        let is_known = |rule: &Value| {
            let severity = rule.pointer("/labels/severity").and_then(Value::as_str);
            matches!(severity, Some("warning" | "critical"))
        };
        let unknown = self.rules().filter(|rule| !is_known(rule));
        flaws.extend(unknown.map(|rule| format!("{}: its severity is unknown", rule["alert"])));
        Ok(flaws)
    }
}

fn members<'a>(of: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    of.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

fn difference(what: &str, alerts: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<String> {
    let missing = alerts.difference(found).map(|name| format!("{name} has no {what}"));
    let extra = found.difference(alerts).map(|name| format!("the {what} {name} has no alert"));
    missing.chain(extra).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alerts(name: &str) -> Alerts {
        let rule = json!({"alert": name, "labels": {"severity": "warning"}, "expr": "up == 0"});
        Alerts::of(&json!({"spec": {"groups": [{"name": "g", "rules": [rule]}]}}))
    }

    #[test]
    fn each_rule_is_broken_in_every_way() {
        let thresholds = [Threshold { path: "Down.share", deaf: "1", nervous: "0" }];
        let broken = ["Down.enabled=false", "Down.for=10h", "Down.share=1", "Down.share=0"];
        assert_eq!(alerts("Down").broken(&thresholds), broken.map(|value| format!("alerts.rules.{value}")));
    }

    #[test]
    fn an_alert_without_a_test_or_a_runbook_is_found() {
        let flaws = alerts("OutboxDown").flaws("- name: OutboxUp, and more\n", "OutboxDow").unwrap();
        let expected = [
            "OutboxDown has no test",
            "the test OutboxUp has no alert",
            "OutboxDown has no runbook",
            "OutboxDown is not in the list of runbooks",
        ];
        assert_eq!(flaws, expected);
    }
}
