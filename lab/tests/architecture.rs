//! The dependency rules that the compiler does not know.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod files;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::build::repository;

/// Everything `package` is built from.
fn tree(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(repository())
        .args([
            "tree",
            "--locked",
            "--offline",
            "-p",
            package,
            "-e",
            "normal",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn the_basket_has_no_io_in_its_tree() {
    let tree = tree("basket");
    assert!(tree.contains(&"serde".to_owned()), "the tree was not read: {tree:?}");
    for io in ["sqlx", "sqlx-core", "warp", "hyper", "tokio", "reqwest", "rdkafka"] {
        assert!(!tree.contains(&io.to_owned()), "basket depends on {io}");
    }
}

#[test]
fn the_checker_shares_no_code_with_what_it_checks() {
    let tree = tree("testbed");
    for product in
        ["outbox", "outbox-relay", "outbox-operator", "pg-replication", "basket", "basket-api", "process"]
    {
        assert!(!tree.contains(&product.to_owned()), "testbed depends on {product}");
    }
}

#[test]
fn the_replication_client_and_the_contract_stand_alone() {
    for (package, others) in
        [("pg-replication", ["outbox", "outbox-relay"]), ("outbox", ["outbox-relay", "rdkafka"])]
    {
        let tree = tree(package);
        assert!(others.iter().all(|other| !tree.contains(&(*other).to_owned())), "{package}: {tree:?}");
    }
}

#[test]
fn the_relay_knows_nothing_of_kubernetes() {
    let tree = tree("outbox-relay");
    assert!(
        ["kube", "k8s-openapi", "outbox-operator"].iter().all(|name| !tree.contains(&(*name).to_owned()))
    );
}

#[test]
fn the_domain_does_not_name_the_application() {
    let files = files::below(&repository().join("api/basket/src/domain"));
    for file in &files {
        assert!(!names_application(file), "{} names the application", file.display());
    }
    assert!(files.len() > 5);
}

fn names_application(path: &Path) -> bool {
    fs::read_to_string(path).unwrap().contains("application::")
}

#[test]
fn documents_name_no_file_that_is_not_there() {
    let root = repository();
    let folders = ["api", "crates", "e2e", "examples", "lab", "operator", "relay", "testbed", "xtask"];
    let files: Vec<PathBuf> = folders.iter().flat_map(|folder| files::below(&root.join(folder))).collect();
    let mut named = 0;
    for document in documents(&root) {
        let text = fs::read_to_string(&document).unwrap();
        // What a diff adds is not there yet.
        let text: String = text.split("```").filter(|block| !block.starts_with("diff\n")).collect();
        for name in text.split(|c: char| !(c.is_ascii_alphanumeric() || "_-/.".contains(c))) {
            let name = name.trim_start_matches("../");
            if name.ends_with(".rs") && name.len() > 3 {
                let there = files.iter().any(|file| file.ends_with(name));
                assert!(there, "{} names {name}", document.display());
                named += 1;
            }
        }
    }
    assert!(named > 50, "the documents were not read: {named}");
}

#[test]
fn the_threat_model_names_existing_tests() {
    let folders = ["api", "crates", "operator", "relay"];
    let mut files: Vec<PathBuf> =
        folders.iter().flat_map(|folder| files::below(&repository().join(folder))).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let code: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let text = fs::read_to_string(repository().join("docs/THREAT-MODEL.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2).map(|word| word.rsplit("::").next().unwrap());
    let tests: Vec<&str> =
        quoted.filter(|word| word.matches('_').count() > 2 && !word.contains('.')).collect();
    for test in &tests {
        assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
    }
    assert!(tests.len() > 30, "the names were not found: {tests:?}");
}

fn documents(root: &Path) -> Vec<PathBuf> {
    let mut files = testbed::documents::below(&root.join("docs")).unwrap();
    files.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root.join(name)));
    files
}
