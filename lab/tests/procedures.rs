//! Procedures in the documents find the relay, the pod and the row that their reader means, and are complete.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::fs;
use std::path::PathBuf;

use lab::build::repository;
use regex::Regex;
use testbed::documents::below;

/// The operator names a relay `<namespace>/<resource>`, so a literal name finds no row of it.
#[test]
fn no_statement_names_a_relay() {
    let name = Regex::new(r"WHERE relay =\s*'([^']*)'").unwrap();
    let allowed = |name: &str| name == "hold" || name.starts_with('<');
    let without_operator = ("OPERATOR.md", "shop");
    let (mut named, mut seen) = (Vec::new(), 0);
    for document in documents() {
        let file = document.file_name().unwrap().to_str().unwrap();
        for found in name.captures_iter(&fs::read_to_string(&document).unwrap()) {
            let (_, [relay]) = found.extract();
            seen += 1;
            // The name that the sample without the operator has in its configuration.
            if !allowed(relay) && (file, relay) != without_operator {
                named.push(format!("{file}: {relay}"));
            }
        }
    }
    assert!(seen > 3, "the statements were not found: {seen}");
    assert!(named.is_empty(), "under the operator they find no row: {named:?}");
}

/// Otherwise nothing is dropped again, and the table grows.
#[test]
fn a_procedure_that_pauses_retention_resumes_it() {
    let text = fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    let sections =
        text.split("\n## ").filter(|section| section.contains("ause retention](#pause-retention)"));
    let sections: Vec<&str> = sections.filter(|section| section.contains("**Do.**")).collect();
    assert!(sections.len() > 4, "the procedures were not found: {}", sections.len());
    for section in sections {
        let resumed = section.contains("[Resume retention](#pause-retention)");
        assert!(resumed, "it only pauses: {}", section.lines().next().unwrap());
    }
}

/// `kubectl` chooses any pod of a Deployment, and with two replicas one of them stands by.
#[test]
fn no_command_asks_an_arbitrary_pod_of_a_relay() {
    let any = Regex::new(r"kubectl (logs|port-forward|exec)[^`\n]*deploy(ment)?/[^\s`]*relay").unwrap();
    let asking: Vec<String> = documents()
        .iter()
        .flat_map(|document| matches(&any, &fs::read_to_string(document).unwrap()))
        .collect();
    assert!(asking.is_empty(), "{asking:?}");
    let former = "kubectl logs deployment/<name>-relay";
    assert_eq!(matches(&any, former), [former]);
}

/// `--reuse-values` leaves out the defaults of new values.
#[test]
fn upgrades_keep_the_defaults_of_new_values() {
    let upgrade = Regex::new(r"(?s)helm upgrade .*?[^\\]\n").unwrap();
    let commands: Vec<String> = documents()
        .iter()
        .flat_map(|document| matches(&upgrade, &fs::read_to_string(document).unwrap()))
        .collect();
    assert!(commands.len() > 3, "the commands were not found: {commands:?}");
    for command in commands {
        assert!(!command.contains("--reuse-values"), "{command}");
    }
}

fn matches(pattern: &Regex, text: &str) -> Vec<String> {
    pattern.find_iter(text).map(|found| found.as_str().to_owned()).collect()
}

fn documents() -> Vec<PathBuf> {
    let files = below(&repository()).unwrap();
    assert!(files.len() > 40, "the documents were not found: {}", files.len());
    files
}
