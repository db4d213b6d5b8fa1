//! What `cargo xtask sbom` writes is true, and what tools read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use lab::build::{SHIPPED, repository};
use lab::sbom::document;
use serde_json::Value;
use testbed::python;

/// Name in the cache: the version in `requirements.txt`.
const SCHEMAS: &str = "cyclonedx-python-lib-11.12.0";

/// Name and version of everything that a program is built from, itself included.
fn listed(document: &Value) -> BTreeSet<(String, String)> {
    let components = document["components"].as_array().unwrap().iter();
    let all = components.chain([&document["metadata"]["component"]]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|component| (text(&component["name"]), text(&component["version"]))).collect()
}

#[test]
fn they_are_valid_by_the_schema_of_cyclonedx() {
    let requirements = repository().join("lab/cyclonedx/requirements.txt");
    let folder = python::packages(SCHEMAS, &requirements).unwrap().join("cyclonedx/schema/_res");
    let schema = |name: &str| -> Value {
        serde_json::from_str(
            &fs::read_to_string(folder.join(format!("{name}.SNAPSHOT.schema.json"))).unwrap(),
        )
        .unwrap()
    };
    let registry = ["spdx", "jsf-0.82"].into_iter().fold(jsonschema::Registry::new(), |registry, name| {
        registry
            .add(format!("http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json"), schema(name))
            .unwrap()
    });
    let registry = registry.prepare().unwrap();
    let schema = schema("bom-1.6");
    let validator = jsonschema::options().with_registry(&registry).build(&schema).unwrap();
    for program in SHIPPED {
        let document = document(program).unwrap();
        let wrong: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{program}: {wrong:?}");
    }
    assert!(!validator.is_valid(&serde_json::json!({"bomFormat": "CycloneDX", "components": 1})));
}

#[test]
fn what_a_program_is_built_from_is_listed_and_nothing_else() {
    for program in SHIPPED {
        let tree = Command::new(env!("CARGO"))
            .current_dir(repository())
            .args(["tree", "--locked", "-p", program, "-e", "normal,build", "--prefix", "none"])
            .args(["--target", "x86_64-unknown-linux-gnu"])
            .output()
            .unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8(tree.stdout).unwrap();
        let mut expected: BTreeSet<(String, String)> = tree
            .lines()
            .map(|line| {
                let mut words = line.split(' ');
                (words.next().unwrap().to_owned(), words.next().unwrap()[1..].to_owned())
            })
            .collect();
        let document = document(program).unwrap();
        let mut listed = listed(&document);
        for tests_only in ["testbed", "reqwest", "proptest", "rcgen", "jsonschema"] {
            assert!(!listed.iter().any(|(name, _)| name == tests_only), "{program}: {tests_only}");
        }
        for (package, library) in [("rdkafka-sys", "librdkafka"), ("zstd-sys", "zstd")] {
            let Some((_, version)) = expected.iter().find(|(name, _)| name == package) else {
                assert_eq!(program, "basket-api", "{package} is gone");
                continue;
            };
            let version = version.split_once('+').unwrap().1.trim_start_matches("zstd.");
            assert!(listed.remove(&(library.into(), version.into())), "{program}: {library} {version}");
        }
        assert!(
            expected.remove(&(program.into(), env!("CARGO_PKG_VERSION").into()))
                && listed.remove(&(program.into(), env!("CARGO_PKG_VERSION").into()))
        );
        assert_eq!(listed, expected, "{program}");
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_archive_has_its_hash() {
    let relay = document("outbox-relay").unwrap();
    let components = relay["components"].as_array().unwrap();
    let mut known: BTreeSet<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    assert_eq!(known.len(), components.len(), "two have one name");
    known.insert(relay["metadata"]["component"]["bom-ref"].as_str().unwrap());
    let mut edges = BTreeSet::new();
    for dependency in relay["dependencies"].as_array().unwrap() {
        let from = dependency["ref"].as_str().unwrap();
        for to in dependency["dependsOn"].as_array().into_iter().flatten() {
            let to = to.as_str().unwrap();
            assert!(known.contains(from) && known.contains(to), "{from} -> {to}");
            edges.insert((from, to));
        }
    }
    let needs =
        |from, to| edges.iter().any(|edge: &(&str, &str)| edge.0.starts_with(from) && edge.1.starts_with(to));
    assert!(needs("pkg:cargo/rdkafka-sys@", "pkg:github/confluentinc/librdkafka@v2."));
    assert!(needs("pkg:generic/outbox-relay@", "pkg:generic/pg-replication@"));
    for component in components {
        let published = component["purl"].as_str().unwrap().starts_with("pkg:cargo/");
        let hash = component["hashes"][0]["content"].as_str().map(str::len);
        assert_eq!(hash, published.then_some(64), "{component}");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
    assert_eq!(relay, document("outbox-relay").unwrap(), "another one each time");
}
