//! The site has every document. With `--all` it is built, and its links are followed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use lab::build::repository;
use lab::site;
use testbed::documents::below;

#[test]
fn every_document_is_in_the_summary_once() {
    let root = repository();
    let listed = site::listed(&root).unwrap();
    let once: BTreeSet<PathBuf> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a document is listed twice: {listed:#?}");
    let documents: BTreeSet<PathBuf> = below(&root.join("docs")).unwrap().into_iter().collect();
    let of_docs: BTreeSet<PathBuf> =
        once.iter().filter(|path| path.starts_with("docs")).map(|path| root.join(path)).collect();
    assert_eq!(of_docs, documents, "docs/SUMMARY.md, and the documents");
    let others = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    assert!(others.iter().all(|other| once.contains(&PathBuf::from(other))), "{once:#?}");
}

#[test]
fn the_site_is_built_and_its_links_lead_somewhere() {
    if !testbed::long_matrix() {
        return;
    }
    let index = site::build_site().unwrap();
    assert!(std::fs::read_to_string(index).unwrap().contains("transactional outbox"));
}
