//! Links between the documents lead to files and headings that exist.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::fs;
use std::path::Path;

use lab::build::repository;
use regex::Regex;
use testbed::documents::below;

#[test]
fn links_lead_to_existing_files_and_headings() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let (mut broken, mut checked) = (Vec::new(), 0);
    for document in below(&repository()).unwrap() {
        let text = without_blocks(&document);
        for target in link.captures_iter(&text).map(|found| found.extract::<1>().1[0]) {
            if target.starts_with("https://") || target.starts_with("http://") {
                continue;
            }
            checked += 1;
            if !leads_somewhere(&document, target) {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(checked > 300, "the links were not found: {checked}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn leads_somewhere(document: &Path, target: &str) -> bool {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
    let is_document = file.extension().is_some_and(|extension| extension == "md");
    file.exists()
        && (anchor.is_empty() || !is_document || headings(&file).iter().any(|heading| heading == anchor))
}

/// The anchors of a document's headings, as GitHub makes them: lower case, without punctuation, hyphens for blanks.
fn headings(document: &Path) -> Vec<String> {
    let text = without_blocks(document);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}

/// A document's text without its blocks of code.
fn without_blocks(document: &Path) -> String {
    let text = fs::read_to_string(document).unwrap();
    text.split("```").step_by(2).collect()
}

#[test]
fn fields_of_the_resource_that_procedures_name_exist() {
    let folder = repository().join("docs");
    let fields = fs::read_to_string(folder.join("OPERATOR-FIELDS.md")).unwrap();
    let text = fs::read_to_string(folder.join("OPERATIONS.md")).unwrap();
    let named = Regex::new(r"`(spec\.[A-Za-z.]+[A-Za-z])").unwrap();
    let named: Vec<&str> = named.captures_iter(&text).map(|found| found.extract::<1>().1[0]).collect();
    assert!(named.len() > 10, "the fields were not found: {named:?}");
    for field in named {
        assert!(fields.contains(&format!("| `{field}`")), "OutboxRelay has no field {field}");
    }
}
