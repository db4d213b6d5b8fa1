//! The rules that code and tests name by a code are explained in docs/RELIABILITY.md, and every test named there exists.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod files;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use lab::build::repository;
use regex::Regex;

fn reliability() -> String {
    fs::read_to_string(repository().join("docs/RELIABILITY.md")).unwrap()
}

/// The Rust files of these folders.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let files = folders.iter().flat_map(|folder| files::below(&repository().join(folder)));
    files.filter(|file| file.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn every_code_of_a_rule_is_in_the_table_and_every_row_is_used() {
    let row = Regex::new(r"(?m)^\| (R\d+) \|").unwrap();
    let explained: BTreeSet<String> =
        row.captures_iter(&reliability()).map(|found| found[1].to_owned()).collect();
    let named = Regex::new(r"\bR\d{1,2}\b|\bfn r\d{1,2}_").unwrap();
    let mut used = BTreeSet::new();
    for file in sources(&["relay", "crates/pg-replication", "crates/outbox"]) {
        let text = fs::read_to_string(file).unwrap();
        let codes = named.find_iter(&text).map(|found| found.as_str().trim_start_matches("fn "));
        used.extend(codes.map(|code| code.trim_end_matches('_').to_uppercase()));
    }
    assert!(used.len() > 10, "the codes were not found: {used:?}");
    assert_eq!(used, explained, "codes in the code, and in the table of docs/RELIABILITY.md");
}

#[test]
fn every_test_that_the_document_names_exists() {
    let files = sources(&["relay", "e2e"]);
    let name = Regex::new(r"`(?:\w+::)*?(\w+)::(?:tests::)?(\w*)(\*?)`").unwrap();
    let (text, mut checked) = (reliability(), 0);
    for found in name.captures_iter(&text) {
        let [module, prefix, any] = found.extract().1;
        let wanted = if any.is_empty() { format!("fn {prefix}(") } else { format!("fn {prefix}") };
        let exists = files.iter().any(|file| {
            file.file_stem().is_some_and(|stem| stem == module)
                && fs::read_to_string(file).unwrap().contains(&wanted)
        });
        assert!(exists, "there is no test {}", &found[0]);
        checked += 1;
    }
    assert!(checked > 100, "the names were not found: {checked}");
}
