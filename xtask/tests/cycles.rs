//! No module of the API or the operator is in a cycle: a reader can start anywhere and only follows imports downwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use xtask::build::repository;

/// The modules of a crate, and which modules each of them names. A parent that only declares and re-exports its children
/// does not name them.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn uses(root: &Path) -> Uses {
    let mut texts = BTreeMap::new();
    read(root, "", &mut texts);
    let modules: BTreeSet<String> = texts.keys().cloned().collect();
    let named = |module: &String, text: &String| {
        let paths = paths(module, text);
        let found = paths.iter().filter_map(|path| owner(path, &modules));
        (module.clone(), found.filter(|found| found != module).collect())
    };
    texts.iter().map(|(module, text)| named(module, text)).collect()
}

/// Reads every file but tests, without comments and test modules.
fn read(folder: &Path, parent: &str, texts: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = if parent.is_empty() { name.clone() } else { format!("{parent}::{name}") };
        if path.is_dir() {
            read(&path, &module, texts);
        } else if !["lib", "main", "tests"].contains(&name.as_str()) {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            texts.insert(module, lines.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The paths that begin with `crate` or `super`, from the root of the crate.
fn paths(module: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (keyword, base) in [("crate::", ""), ("super::", parent(module))] {
        for (at, _) in text.match_indices(keyword) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &text[at + keyword.len()..];
            let end =
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            let (prefix, group) = (rest[..end].trim_end_matches(':'), &rest[end..]);
            let members: Vec<&str> = match group.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap().split(',').map(str::trim).collect(),
                None => vec![""],
            };
            found.extend(members.iter().map(|member| join(&[base, prefix, member])));
        }
    }
    found
}

fn join(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("::")
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// The module that a path leads to: the longest part of it that is a file.
fn owner(path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut path = path;
    loop {
        if modules.contains(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// A way from `module` back to itself.
fn cycle(uses: &Uses, module: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![module.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in &uses[way.last().unwrap()] {
            let longer = [way.clone(), vec![next.clone()]].concat();
            if next == module {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

fn assert_no_cycle(folder: &str) {
    let uses = uses(&repository().join(folder));
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 20, "nothing was read: {uses:?}");
    let cycles: Vec<Vec<String>> = uses.keys().filter_map(|module| cycle(&uses, module)).collect();
    assert!(cycles.is_empty(), "{folder}: {cycles:#?}");
}

#[test]
fn no_module_of_the_basket_is_in_a_cycle() {
    assert_no_cycle("api/basket/src");
}

#[test]
fn no_module_of_the_service_is_in_a_cycle() {
    assert_no_cycle("api/src");
}

#[test]
fn no_module_of_the_operator_is_in_a_cycle() {
    assert_no_cycle("operator/src");
}

#[test]
fn a_cycle_is_found() {
    let uses = |module: &str, named: &[&str]| {
        (module.to_owned(), named.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>())
    };
    let graph: Uses = [uses("a", &["b"]), uses("b", &["c"]), uses("c", &["a"]), uses("d", &["a"])].into();
    assert_eq!(cycle(&graph, "a").unwrap(), ["a", "b", "c", "a"]);
    assert_eq!(cycle(&graph, "d"), None);
    let text = "use super::bus::Bus;\nuse crate::domain::{Basket, events::DomainEvent};\nlet x = super::f();";
    let expected =
        ["domain::Basket", "domain::events::DomainEvent", "application::bus::Bus", "application::f"];
    assert_eq!(paths("application::retry", text), expected);
}
