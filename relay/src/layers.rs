//! Checks that the folders use each other without a cycle, and that docs/ARCHITECTURE.md draws the present imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Any folder may use these; they use none.
const EVERYWHERE: [&str; 2] = ["error", "failpoint"];
/// Programs and tests are above the folders.
const NO_FOLDER: [&str; 3] = ["lib", "main", "layers"];
const BEGIN: &str = "<!-- layers: begin -->\n";
const END: &str = "<!-- layers: end -->";

#[test]
fn folders_have_no_cycle_and_the_drawing_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let graph = imports(&root.join("src"));
    for (folder, used) in &graph {
        for other in used {
            assert!(!reaches(&graph, other, folder), "{folder} and {other} use each other");
        }
    }
    let drawing = format!("```mermaid\ngraph TD\n{}```\n", arrows(&graph));
    let path = root.join("../docs/ARCHITECTURE.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the drawing has a beginning");
    let (drawn, after) = rest.split_once(END).expect("the drawing has an end");
    if std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{drawing}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(drawn, drawing, "docs/ARCHITECTURE.md differs; OUTBOX_TEST_WRITE=1 rewrites it");
}

/// The folders that the code of each folder imports. Tests may import any.
fn imports(src: &Path) -> Graph {
    let path = Regex::new(r"\bcrate::(\w+)").unwrap();
    let mut graph = Graph::new();
    for file in files(src) {
        let relative = file.strip_prefix(src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let folder = first.trim_end_matches(".rs");
        if is_test(relative) || NO_FOLDER.contains(&folder) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
        let used = graph.entry(folder.to_owned()).or_default();
        for line in code.lines().map(|line| line.split("//").next().unwrap()) {
            let names = path.captures_iter(line).map(|found| found[1].to_owned());
            used.extend(names.filter(|name| name != folder && !EVERYWHERE.contains(&name.as_str())));
        }
    }
    for folder in EVERYWHERE {
        let used = graph.remove(folder).unwrap_or_default();
        assert!(used.is_empty(), "{folder} uses {used:?}");
    }
    graph
}

/// `tests.rs`, and the models of delivery.
fn is_test(file: &Path) -> bool {
    file.ends_with("tests.rs") || file.starts_with("delivery/model") || file.ends_with("delivery/model.rs")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, own): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    own.into_iter().chain(folders.iter().flat_map(|folder| files(folder))).collect()
}

fn reaches(graph: &Graph, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(folder) = next.pop() {
        if folder == to {
            return true;
        }
        if seen.insert(folder) {
            next.extend(graph.get(folder).into_iter().flatten().map(String::as_str));
        }
    }
    false
}

/// Without the arrows that follow from others.
fn arrows(graph: &Graph) -> String {
    let mut lines = String::new();
    for (folder, used) in graph {
        for other in used {
            let follows = used.iter().any(|between| between != other && reaches(graph, between, other));
            if !follows {
                lines += &format!("  {folder} --> {other}\n");
            }
        }
    }
    lines
}
