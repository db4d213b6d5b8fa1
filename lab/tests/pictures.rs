//! The pictures of the documents: each has its place and its words, they have one style, and what they show is what the code says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lab::build::repository;
use regex::Regex;
use serde_json::Value;
use testbed::documents::below;

/// Made by `cargo xtask demo --record`, and not drawn.
const RECORDING: &str = "demo.svg";

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The names of all pictures. Those that end in .png were taken of a page in a browser, the others were drawn.
fn names() -> BTreeSet<String> {
    let files = fs::read_dir(repository().join("docs/images")).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

/// The drawn pictures, by the names of their files.
fn pictures() -> BTreeMap<String, String> {
    let drawn = names().into_iter().filter(|name| name.ends_with(".svg"));
    drawn.map(|name| (name.clone(), read(&format!("docs/images/{name}")))).collect()
}

/// The words in a picture, one after another.
fn words(picture: &str) -> String {
    let text = Regex::new(r"(?s)<text[^>]*>(.*?)</text>").unwrap();
    let tag = Regex::new("<[^>]*>").unwrap();
    let words = text.captures_iter(picture).map(|found| tag.replace_all(&found[1], "").into_owned());
    words.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_picture_is_in_a_document_and_says_in_words_what_it_shows() {
    let image = Regex::new(r"!\[([^\]]*)\]\([^)]*images/([^)]+)\)").unwrap();
    let mut shown = BTreeSet::new();
    for document in below(&repository()).unwrap() {
        for found in image.captures_iter(&fs::read_to_string(&document).unwrap()) {
            let [alternative, name] = found.extract().1;
            assert!(alternative.len() > 40, "{}: {name} has no text alternative", document.display());
            shown.insert(name.to_owned());
        }
    }
    assert_eq!(names(), shown, "in docs/images, and in documents");
    for (name, picture) in pictures() {
        for part in
            ["role=\"img\"", "<title id=\"title\">", "<desc id=\"desc\">", "(prefers-color-scheme: dark)"]
        {
            assert!(picture.contains(part), "{name} has no {part}");
        }
    }
}

#[test]
fn drawn_pictures_have_one_style_and_one_width() {
    let style = |picture: &str| {
        picture[picture.find("<style>").unwrap()..picture.find("</style>").unwrap()].to_owned()
    };
    let mut drawn = pictures();
    drawn.remove(RECORDING);
    let expected = style(&drawn["data-flow.svg"]);
    for (name, picture) in &drawn {
        assert_eq!(style(picture), expected, "{name}");
        assert!(picture.contains("viewBox=\"0 0 800 "), "{name}: text is drawn for a width of 800");
    }
    assert!(drawn.len() > 5);
}

#[test]
fn the_thresholds_of_the_alerts_are_those_of_the_chart() {
    let values: Value = serde_saphyr::from_str(&read("charts/outbox-operator/values.yaml")).unwrap();
    let rules = &values["alerts"]["rules"];
    let number = |alert: &str, key: &str| rules[alert][key].as_f64().unwrap();
    let after = |alert: &str, key: &str| match rules[alert][key].as_str().unwrap() {
        "0m" => "immediately".to_owned(),
        time => format!("after {} min", time.trim_end_matches('m')),
    };
    let gibibytes = |key: &str| format!("{} GiB", number("OutboxRetainedWalHigh", key) / f64::from(1 << 30));
    let words = words(&pictures()["slot-wal.svg"]);
    for expected in [
        format!("OutboxRelayDown\ncritical, {}", after("OutboxRelayDown", "for")),
        format!("OutboxRetainedWalHigh\nwarning, {}", after("OutboxRetainedWalHigh", "for")),
        format!("OutboxRetainedWalHigh\ncritical, {}", after("OutboxRetainedWalHigh", "criticalFor")),
        format!("OutboxSlotAtRisk\ncritical, {}", after("OutboxSlotAtRisk", "for")),
        format!("OutboxSlotLost\ncritical, {}", after("OutboxSlotLost", "for")),
        format!("{} % of it is left", number("OutboxSlotAtRisk", "safeShare") * 100.0),
        gibibytes("warningBytes"),
        gibibytes("criticalBytes"),
    ] {
        assert!(words.contains(&expected), "'{expected}' is not in slot-wal.svg:\n{words}");
    }
}

#[test]
fn phases_and_ports_are_those_of_the_code() {
    let pictures = pictures();
    let phases = words(&pictures["phases.svg"]);
    let source = read("relay/src/status/signals.rs");
    let named = Regex::new(r#"(?m)^ +[A-Z]\w+ = "(\w+)",$"#).unwrap();
    let names: Vec<String> = named.captures_iter(&source).map(|found| found[1].to_owned()).collect();
    assert_eq!(names.len(), 8, "the phases were not found: {names:?}");
    for name in names {
        assert!(phases.lines().any(|line| line == name), "phases.svg does not have {name}");
    }
    let kubernetes = words(&pictures["kubernetes.svg"]);
    for (file, port) in [
        ("operator/src/desired/configuration.rs", r"ADMIN_PORT: u16 = (\d+)"),
        ("charts/outbox-operator/templates/deployment.yaml", r"containerPort: (\d+)"),
    ] {
        let port = Regex::new(port).unwrap().captures(&read(file)).unwrap()[1].to_owned();
        assert!(
            kubernetes.contains(&format!(":{port} ")),
            "kubernetes.svg does not have port {port} of {file}"
        );
    }
}

#[test]
fn the_recording_is_of_the_demo_as_it_is() {
    let heading = Regex::new(r#"heading\("([^"]+)"\)"#).unwrap();
    let demo = read("lab/src/demo.rs");
    let headings: Vec<&str> = heading.captures_iter(&demo).map(|found| found.extract::<1>().1[0]).collect();
    let words = words(&pictures()[RECORDING]);
    for heading in headings.iter().filter(|heading| !heading.starts_with("Staying up")) {
        assert!(
            words.contains(heading),
            "cargo xtask demo --record docs/images/{RECORDING}: '{heading}' is missing"
        );
    }
    assert!(headings.len() > 4 && words.contains("right: every committed event once, in order"));
}
