//! The diffs of docs/EXTENDING.md apply to this version. With `--all` they are built, too, and the tests of the basket
//! pass with them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use lab::build::repository;
use testbed::guard::Folder;

/// A section of the page: its title and its diff.
struct Change {
    title: String,
    diff: String,
}

fn changes() -> Vec<Change> {
    let page = fs::read_to_string(repository().join("docs/EXTENDING.md")).unwrap();
    let mut changes = Vec::new();
    for section in page.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap().to_owned();
        let diff = section.split("```diff\n").nth(1).unwrap_or_else(|| panic!("{title}: no diff"));
        let diff = diff.split("```").next().unwrap().to_owned();
        changes.push(Change { title, diff });
    }
    changes
}

/// The tracked files, as they are in the working tree.
fn copy() -> Folder {
    let folder = Folder::new("extending").unwrap();
    let listed = Command::new("git").current_dir(repository()).args(["ls-files", "-z"]).output().unwrap();
    assert!(listed.status.success());
    for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
        let (from, to) = (repository().join(name), folder.path().join(name));
        if from.is_file() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
    }
    folder
}

fn apply(folder: &Path, change: &Change) {
    let mut git = Command::new("git")
        .current_dir(folder)
        .args(["apply", "--whitespace=error-all", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin.take().unwrap().write_all(change.diff.as_bytes()).unwrap();
    let output = git.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}", change.title, String::from_utf8_lossy(&output.stderr));
}

/// In a separate target folder: cargo takes the packages of two copies of a workspace for the same.
fn cargo(folder: &Path, title: &str, arguments: &[&str]) {
    let output = testbed::rust::cargo()
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", repository().join("target/extending"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{title}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_diff_applies_and_builds() {
    let changes = changes();
    let titles: Vec<&str> = changes.iter().map(|change| change.title.as_str()).collect();
    let expected =
        ["Add a command", "Add an event", "Add a read model", "Add a reaction that writes a table"];
    assert_eq!(titles, expected);
    for change in &changes {
        let folder = copy();
        apply(folder.path(), change);
        if testbed::long_matrix() {
            cargo(folder.path(), &change.title, &["test", "--locked", "--offline", "-p", "basket"]);
            let check = ["check", "--locked", "--offline", "-p", "basket-api", "--all-targets"];
            cargo(folder.path(), &change.title, &check);
        }
    }
}

#[test]
fn adding_a_command_touches_at_most_five_files() {
    let changes = changes();
    let touched: Vec<&str> = changes[0].diff.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect();
    let is_test = |file: &str| file.contains("/tests/") || file.ends_with("/tests.rs");
    let code: Vec<&&str> = touched.iter().filter(|file| !is_test(file)).collect();
    assert!((1..=5).contains(&code.len()), "{code:?}");
}
