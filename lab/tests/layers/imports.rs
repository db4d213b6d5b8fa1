//! What the modules of a crate import, read from their text. Comments and tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lab::build::repository;
use regex::Regex;

/// Modules or folders, and what each of them imports. A parent that only declares and re-exports its children does not
/// import them.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules of the crate in this folder.
pub fn modules(root: &str) -> Graph {
    let mut texts = BTreeMap::new();
    read(&repository().join(root), "", &mut texts);
    let modules: BTreeSet<String> = texts.keys().cloned().collect();
    let imported = |module: &String, text: &String| {
        let paths = paths(module, text);
        let found = paths.iter().filter_map(|path| owner(path, &modules));
        (module.clone(), found.filter(|found| found != module).collect())
    };
    texts.iter().map(|(module, text)| imported(module, text)).collect()
}

/// A folder is a module of the crate's root with everything below it.
pub fn folders(modules: &Graph) -> Graph {
    let folder = |module: &str| module.split("::").next().unwrap().to_owned();
    let mut folders = Graph::new();
    for (module, used) in modules {
        let own = folder(module);
        let used = used.iter().map(|used| folder(used)).filter(|used| *used != own);
        folders.entry(own.clone()).or_default().extend(used);
    }
    folders
}

/// A path of one or more imports.
pub fn path(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut paths = vec![vec![from.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop() {
        for next in graph.get(path.last().unwrap()).into_iter().flatten() {
            let longer = [path.clone(), vec![next.clone()]].concat();
            if next == to {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                paths.push(longer);
            }
        }
    }
    None
}

/// Reads the code of every module below `folder`, the module `parent`.
fn read(folder: &Path, parent: &str, texts: &mut BTreeMap<String, String>) {
    let test_module = Regex::new(r"#\[cfg\(test\)\]\s+mod (\w+);").unwrap();
    let mut tests = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = join(&[parent, &name]);
        if path.is_dir() {
            read(&path, &module, texts);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let is_root = ["lib", "main"].contains(&name.as_str());
        let declared_by = if is_root { "" } else { &module };
        tests.extend(test_module.captures_iter(&text).map(|found| join(&[declared_by, &found[1]])));
        if !is_root {
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = code.lines().map(|line| line.split("//").next().unwrap());
            texts.insert(module, lines.collect::<Vec<_>>().join("\n"));
        }
    }
    texts.retain(|module, _| {
        !tests.iter().any(|test| module == test || module.starts_with(&format!("{test}::")))
    });
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

#[test]
fn imports_are_read_from_every_form_of_a_path() {
    let text = "use super::bus::Bus;\nuse crate::domain::{Basket, events::DomainEvent};\nlet x = super::f();";
    let expected =
        ["domain::Basket", "domain::events::DomainEvent", "application::bus::Bus", "application::f"];
    assert_eq!(paths("application::retry", text), expected);
}
