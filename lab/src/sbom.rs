//! `cargo xtask sbom`: what each program is built from, as a software bill of materials (CycloneDX 1.6, JSON).
//!
//! It speaks of the program as `cargo build --package` makes it for Linux: its packages, those that build them, and C libraries whose
//! source they bring along; no tests. Which packages those are `cargo tree` says, because `cargo metadata`, which has their licences,
//! takes all features that any member of the workspace asks for. Not in it are the standard library of Rust and what the machine has
//! (OpenSSL, zlib, libc). The same sources make the same documents, byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use chrono::{DateTime, SecondsFormat};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use testbed::rust;

use crate::Failure;
use crate::build::{self, SHIPPED};

/// What they are built for. On other architectures the packages are the same but for a few that know the processor.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Seconds since 1970 that the documents are dated with (reproducible-builds.org); without it they have no date.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// C libraries that are built from source in a package: (package, library, licence, repository). The library's version is what stands
/// behind the + in the package's. Advisories speak of it, and scanners know it, by its repository.
const BUNDLED: [(&str, &str, &str, &str); 2] = [
    ("rdkafka-sys", "librdkafka", "BSD-2-Clause", "confluentinc/librdkafka"),
    ("zstd-sys", "zstd", "BSD-3-Clause OR GPL-2.0-only", "facebook/zstd"),
];

/// Name and version.
type Package = (String, String);
/// What each package needs.
type Graph = BTreeMap<Package, BTreeSet<Package>>;

/// Writes a document for each program.
pub fn run() -> Result<(), Failure> {
    let folder = build::target().join("sbom");
    fs::create_dir_all(&folder)?;
    for program in SHIPPED {
        let path = folder.join(format!("{program}.cdx.json"));
        fs::write(&path, format!("{:#}\n", document(program)?))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The document of a program.
pub fn document(program: &str) -> Result<Value, Failure> {
    let graph = graph(&cargo(&[
        "tree",
        "--locked",
        "--package",
        program,
        "--target",
        TARGET,
        "--edges",
        "normal,build",
        "--prefix",
        "depth",
        "--format",
        " {p}",
    ])?)?;
    let described = Described::read()?;
    let (mut itself, mut components, mut dependencies) = (None, Vec::new(), Vec::new());
    for (package, needed) in &graph {
        let component = described.component(package)?;
        let bundled = bundled(package);
        let mut needed =
            needed.iter().map(|package| described.purl(package)).collect::<Result<Vec<_>, _>>()?;
        needed.extend(bundled.iter().map(|library| library.purl.clone()));
        dependencies.push(json!({ "ref": component.purl, "dependsOn": needed }));
        dependencies.extend(bundled.iter().map(|library| json!({ "ref": library.purl })));
        components.extend(bundled.iter().map(|library| library.json("library")));
        match package.0 == program {
            true => itself = Some(component.json("application")),
            false => components.push(component.json("library")),
        }
    }
    let mut metadata = Map::from_iter([
        ("component".to_owned(), json!(itself)),
        ("properties".to_owned(), json!([{ "name": "target", "value": TARGET }])),
    ]);
    if let Ok(epoch) = std::env::var(EPOCH) {
        let date = DateTime::from_timestamp(epoch.parse()?, 0).ok_or("SOURCE_DATE_EPOCH is out of range")?;
        metadata.insert("timestamp".to_owned(), json!(date.to_rfc3339_opts(SecondsFormat::Secs, true)));
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
    }))
}

/// Something that a program is built from.
struct Component<'a> {
    name: &'a str,
    version: &'a str,
    licence: String,
    /// By which it is referred to, too.
    purl: String,
    hash: Option<&'a String>,
}

impl Component<'_> {
    fn json(&self, kind: &str) -> Value {
        let hashes = self.hash.iter().map(|hash| json!({ "alg": "SHA-256", "content": hash }));
        json!({
            "type": kind,
            "bom-ref": self.purl,
            "name": self.name,
            "version": self.version,
            "licenses": [{ "expression": self.licence }],
            "purl": self.purl,
            "hashes": hashes.collect::<Vec<_>>(),
        })
    }
}

/// From lines of a depth, a name and a version, where what a package needs stands below it, the first time it is named.
fn graph(tree: &str) -> Result<Graph, Failure> {
    let (mut graph, mut above) = (Graph::new(), Vec::<Package>::new());
    for line in tree.lines() {
        let mut words = line.split(' ');
        let (Some(depth), Some(name), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("cargo tree says '{line}', which is not understood").into());
        };
        let package = (name.to_owned(), version.trim_start_matches('v').to_owned());
        above.truncate(depth.parse()?);
        if let Some(parent) = above.last() {
            graph.entry(parent.clone()).or_default().insert(package.clone());
        }
        graph.entry(package.clone()).or_default();
        above.push(package);
    }
    Ok(graph)
}

/// The library in a package, if there is one.
fn bundled((package, version): &Package) -> Option<Component<'_>> {
    let (_, name, licence, repository) = BUNDLED.iter().find(|(name, ..)| name == package)?;
    let (_, version) = version.split_once('+')?;
    // zstd's is written as zstd.1.5.7.
    let version = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let purl = format!("pkg:github/{repository}@v{version}");
    Some(Component { name, version, licence: (*licence).to_owned(), purl, hash: None })
}

/// What is known of the packages in Cargo.lock.
struct Described {
    packages: BTreeMap<Package, Facts>,
    /// SHA-256 of the archives that the registry has.
    hashes: BTreeMap<Package, String>,
}

/// What `cargo metadata` says.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Facts>,
}

/// Of one package.
#[derive(Deserialize)]
struct Facts {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

impl Described {
    fn read() -> Result<Described, Failure> {
        let arguments = ["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET];
        let metadata: Metadata = serde_json::from_str(&cargo(&arguments)?)?;
        let lock = fs::read_to_string(build::repository().join("Cargo.lock"))?;
        Ok(Described {
            packages: metadata
                .packages
                .into_iter()
                .map(|p| ((p.name.clone(), p.version.clone()), p))
                .collect(),
            hashes: lock.split("[[package]]").filter_map(hash).collect(),
        })
    }

    fn of(&self, package: &Package) -> Result<&Facts, Failure> {
        let unknown = || format!("cargo metadata does not know {} {}", package.0, package.1);
        Ok(self.packages.get(package).ok_or_else(unknown)?)
    }

    /// A package of this repository is in no registry: under its name a scanner would find another package there.
    fn purl(&self, package: &Package) -> Result<String, Failure> {
        let kind = if self.of(package)?.source.is_some() { "cargo" } else { "generic" };
        Ok(format!("pkg:{kind}/{}@{}", package.0, package.1.replace('+', "%2B")))
    }

    fn component<'a>(&'a self, package: &'a Package) -> Result<Component<'a>, Failure> {
        let licence = self.of(package)?.license.as_ref();
        let licence = licence.ok_or_else(|| format!("{} names no licence", package.0))?;
        Ok(Component {
            name: &package.0,
            version: &package.1,
            // As packages wrote it before there were expressions: MIT/Apache-2.0.
            licence: licence.replace('/', " OR "),
            purl: self.purl(package)?,
            hash: self.hashes.get(package),
        })
    }
}

/// Of an entry of Cargo.lock.
fn hash(entry: &str) -> Option<(Package, String)> {
    let value = |key: &str| {
        let line = entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    Some(((value("name")?, value("version")?), value("checksum")?))
}

fn cargo(arguments: &[&str]) -> Result<String, Failure> {
    let printed = build::output(rust::cargo().current_dir(build::repository()).args(arguments))?;
    Ok(String::from_utf8(printed)?)
}
