//! No folder of a crate is in a cycle of imports: a reader can start anywhere and only follows imports downwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod drawing;
mod imports;

use std::collections::BTreeSet;

use imports::{Graph, folders, modules, path};

const CRATES: [&str; 8] = [
    "api/basket/src",
    "api/src",
    "crates/kafka-admin/src",
    "crates/outbox/src",
    "crates/pg-replication/src",
    "crates/process/src",
    "operator/src",
    "relay/src",
];
/// In these, files of one folder may use each other.
const BY_FOLDER: [&str; 2] = ["operator/src", "relay/src"];

fn cycles(graph: &Graph) -> Vec<Vec<String>> {
    graph.keys().filter_map(|module| path(graph, module, module)).collect()
}

#[test]
fn no_folder_is_in_a_cycle() {
    for root in CRATES {
        let found = cycles(&folders(&modules(root)));
        assert!(found.is_empty(), "{root}: {found:#?}");
    }
}

#[test]
fn no_file_is_in_a_cycle() {
    for root in CRATES.into_iter().filter(|root| !BY_FOLDER.contains(root)) {
        let modules = modules(root);
        assert!(modules.values().any(|used| !used.is_empty()), "{root}: nothing was read");
        let found = cycles(&modules);
        assert!(found.is_empty(), "{root}: {found:#?}");
    }
}

#[test]
fn a_cycle_is_found() {
    let uses = |module: &str, used: &[&str]| {
        (module.to_owned(), used.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>())
    };
    let graph: Graph = [uses("a", &["b"]), uses("b", &["c"]), uses("c", &["a"]), uses("d", &["a"])].into();
    assert_eq!(path(&graph, "a", "a").unwrap(), ["a", "b", "c", "a"]);
    assert_eq!(path(&graph, "d", "d"), None);
    assert_eq!(cycles(&graph).len(), 3);
    let graph: Graph = [uses("a::x", &["b::x"]), uses("b::x", &[]), uses("b::y", &["a::x"])].into();
    assert!(cycles(&graph).is_empty());
    assert_eq!(cycles(&folders(&graph)).len(), 2);
}
