//! The release workflow and the updates of dependencies name what the repository has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use lab::build::{SHIPPED, repository};
use regex::Regex;
use serde_json::Value;

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&fs::read_to_string(repository().join(path)).unwrap()).unwrap()
}

fn words(text: &Value) -> BTreeSet<String> {
    text.as_str().unwrap().split_whitespace().map(str::to_owned).collect()
}

/// The packages of the workspace, as cargo sees them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .current_dir(repository())
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn the_images_are_those_of_the_dockerfile_and_the_charts_those_of_the_folder() {
    let workflow = yaml(".github/workflows/release.yml");
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let targets = Regex::new(r"(?m)^FROM program AS (\S+)$").unwrap();
    let targets: BTreeSet<String> =
        targets.captures_iter(&dockerfile).map(|found| found[1].to_owned()).collect();
    assert_eq!(words(&workflow["env"]["IMAGES"]), targets);
    assert_eq!(targets, SHIPPED.map(str::to_owned).into());
    let charts = fs::read_dir(repository().join("charts")).unwrap();
    let charts: BTreeSet<String> =
        charts.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(words(&workflow["env"]["CHARTS"]), charts);
    for chart in charts {
        let described = yaml(&format!("charts/{chart}/Chart.yaml"));
        let expected = (chart.as_str(), env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_VERSION"));
        let text = |key: &str| described[key].as_str().unwrap_or_default();
        assert_eq!((text("name"), text("version"), text("appVersion")), expected);
        let registry = &yaml(&format!("charts/{chart}/values.yaml"))["global"]["imageRegistry"];
        assert_eq!(registry, "", "what the workflow sets in the packaged chart {chart}");
    }
}

#[test]
fn every_step_comes_after_what_it_needs_and_may_do_no_more_than_it_has_to() {
    let workflow = yaml(".github/workflows/release.yml");
    assert_eq!(workflow["on"]["push"]["tags"][0], "v*");
    assert_eq!(workflow["defaults"]["run"]["shell"], "bash", "with pipefail");
    let jobs = workflow["jobs"].as_object().unwrap();
    let order: BTreeMap<&str, &str> = [
        ("images", "version"),
        ("plugin", "version"),
        ("sign", "images"),
        ("charts", "sign"),
        ("crates", "charts"),
        ("page", "crates"),
    ]
    .into();
    assert_eq!(jobs.len(), order.len() + 1);
    let rights: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("images", ["packages"].as_slice()),
        ("sign", &["id-token", "packages"]),
        ("charts", &["id-token", "packages"]),
        ("crates", &["id-token"]),
        ("page", &["contents"]),
    ]);
    assert_eq!(workflow["permissions"], serde_json::json!({"contents": "read"}));
    for (name, job) in jobs {
        if let Some(before) = order.get(name.as_str()) {
            let needs = job["needs"].to_string();
            assert!(needs.contains(&format!("\"{before}\"")), "{name} needs {needs}");
        }
        let granted = job["permissions"].as_object().into_iter().flatten();
        let written: BTreeSet<&str> =
            granted.filter(|(_, right)| *right == "write").map(|(what, _)| what.as_str()).collect();
        let expected = rights.get(name.as_str()).copied().unwrap_or_default();
        assert_eq!(written, expected.iter().copied().collect(), "{name} may write");
        assert!(job["timeout-minutes"].is_u64(), "{name} has no time limit");
        for action in job["steps"].as_array().unwrap().iter().filter_map(|step| step["uses"].as_str()) {
            let (_, commit) = action.split_once('@').unwrap();
            assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{action}");
        }
    }
}

#[test]
fn the_plugins_archives_are_those_of_its_krew_manifest() {
    let workflow = yaml(".github/workflows/release.yml");
    let built = workflow["jobs"]["plugin"]["strategy"]["matrix"]["include"].as_array().unwrap();
    let built: BTreeSet<String> = built
        .iter()
        .map(|row| format!("kubectl-outbox-{}.tar.gz", row["target"].as_str().unwrap()))
        .collect();
    let manifest = fs::read_to_string(repository().join(".krew.yaml")).unwrap();
    let archive = Regex::new(r#"/([^/"]+\.tar\.gz)""#).unwrap();
    let named: BTreeSet<String> = archive.captures_iter(&manifest).map(|found| found[1].to_owned()).collect();
    assert_eq!(built, named);
    let steps = workflow["jobs"]["plugin"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["with"]["path"] == "kubectl-outbox-${{ matrix.target }}.tar.gz"));
    assert!(workflow["jobs"]["page"]["steps"].to_string().contains("plugin/*.tar.gz"));
}

#[test]
fn published_crates_depend_on_published_crates_only_and_say_what_they_are() {
    let packages = packages();
    let name = |package: &Value| package["name"].as_str().unwrap().to_owned();
    let is_published = |package: &&Value| package["publish"].is_null();
    let published: BTreeSet<String> = packages.iter().filter(is_published).map(name).collect();
    assert_eq!(published, ["outbox", "pg-replication"].map(str::to_owned).into());
    for package in packages.iter().filter(is_published) {
        for key in ["description", "license", "readme"] {
            assert!(package[key].is_string(), "{} has no {key}", package["name"]);
        }
        // Cargo leaves out dependencies of tests that have no version.
        let built =
            package["dependencies"].as_array().unwrap().iter().filter(|needed| needed["kind"] != "dev");
        let ours = built.filter(|needed| needed["path"].is_string()).map(name);
        for needed in ours {
            assert!(
                published.contains(&needed),
                "{} needs {needed}, which is not published",
                package["name"]
            );
        }
    }
}

#[test]
fn the_operators_chart_describes_its_resource() {
    let annotations = yaml("charts/outbox-operator/Chart.yaml")["annotations"].clone();
    let list = |key: &str| -> Value { serde_saphyr::from_str(annotations[key].as_str().unwrap()).unwrap() };
    let crd = yaml("crds/outboxrelays.outbox.dev.yaml");
    let described = &list("artifacthub.io/crds")[0];
    assert_eq!(described["name"], crd["metadata"]["name"]);
    assert_eq!(described["kind"], crd["spec"]["names"]["kind"]);
    let versions = crd["spec"]["versions"].as_array().unwrap();
    let stored = versions.iter().find(|version| version["storage"] == true).unwrap();
    assert_eq!(described["version"], stored["name"]);
    let sample = fs::read_to_string(repository().join("docs/samples/least.yaml")).unwrap();
    let sample: Value = serde_saphyr::from_str(sample.split("---\n").last().unwrap()).unwrap();
    assert_eq!(list("artifacthub.io/crdsExamples")[0], sample);
}

#[test]
fn updates_are_proposed_for_every_manifest() {
    let root = repository();
    let kinds = [
        ("Dockerfile", "docker"),
        ("go.mod", "gomod"),
        ("package.json", "npm"),
        ("pom.xml", "maven"),
        ("requirements.txt", "pip"),
    ];
    let mut manifests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files::below(&root) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let folder = file.parent().unwrap().strip_prefix(&root).unwrap().to_str().unwrap();
        // Members have their versions from the workspace.
        let is_cargo = name == "Cargo.toml" && fs::read_to_string(&file).unwrap().contains("[workspace]");
        let kind = kinds.iter().find(|(manifest, _)| *manifest == name).map(|(_, kind)| *kind);
        if let Some(kind) = kind.or(is_cargo.then_some("cargo")) {
            manifests.entry(kind.to_owned()).or_default().insert(format!("/{folder}"));
        }
    }
    manifests.insert("github-actions".to_owned(), ["/".to_owned()].into());
    let mut proposed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for update in yaml(".github/dependabot.yml")["updates"].as_array().unwrap() {
        let kind = update["package-ecosystem"].as_str().unwrap().to_owned();
        for pattern in update["directories"].as_array().unwrap() {
            let pattern = pattern.as_str().unwrap();
            let pattern = Regex::new(&format!("^{}$", pattern.replace('*', "[^/]+"))).unwrap();
            let known = manifests.get(&kind).into_iter().flatten().filter(|folder| pattern.is_match(folder));
            let found: Vec<String> = known.cloned().collect();
            assert!(!found.is_empty(), "{pattern} has nothing for {kind}");
            proposed.entry(kind.clone()).or_default().extend(found);
        }
    }
    assert_eq!(proposed, manifests);
}
