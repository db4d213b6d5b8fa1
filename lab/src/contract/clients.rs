//! The OpenAPI document as tools of others read it: the common rules of a linter, and a client that is generated from it,
//! compiled, and used against the running service.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use testbed::guard::Folder;
use testbed::{java, node};

use crate::Failure;
use crate::build;
use crate::stack::TOKEN;

/// Runs the linter, the compiler, and the client.
const NODE: &str = "node";
/// Where the linter's rules and the client's program are.
const FOLDER: &str = "lab/clients";
/// Name in the cache: it changes with `package-lock.json`.
const PACKAGES: &str = "spectral-6.16.3-typescript-5.9.3";
/// Generates the client.
const GENERATOR: (&str, &str, &str) = ("org.openapitools", "openapi-generator-cli", "7.25.0");

/// Checks the document of the service at `api`.
pub fn check(api: &str) -> Result<(), Failure> {
    let folder = build::repository().join(FOLDER);
    let modules = node::packages(PACKAGES, &folder)?;
    let document = build::repository().join("docs/openapi.json");
    lint(&modules, &folder, &document)?;
    let scratch = Folder::new("clients")?;
    generate(&document, &scratch.path().join("generated"))?;
    for file in ["shop.ts", "tsconfig.json", "package.json"] {
        fs::copy(folder.join(file), scratch.path().join(file))?;
    }
    compile(&modules, scratch.path())?;
    let mut shop = Command::new(NODE);
    shop.arg("built/shop.js").current_dir(scratch.path());
    shop.env("API", api).env("TOKEN", TOKEN);
    run(&mut shop, "the generated client cannot use the service")
}

fn lint(modules: &Path, folder: &Path, document: &Path) -> Result<(), Failure> {
    let mut spectral = Command::new(NODE);
    spectral.arg(modules.join("@stoplight/spectral-cli/dist/index.js"));
    spectral.args(["lint", "--quiet", "--fail-severity=hint", "--ruleset"]).arg(folder.join("spectral.yaml"));
    run(spectral.arg(document), "Spectral finds faults in docs/openapi.json")
}

fn generate(document: &Path, client: &Path) -> Result<(), Failure> {
    let (group, artifact, version) = GENERATOR;
    let mut java = Command::new("java");
    // What it warns of is that OpenAPI 3.1 is new to it.
    java.arg("-Dlog.level=error").arg("-jar").arg(java::jar(group, artifact, version)?);
    java.args(["generate", "--generator-name=typescript-fetch", "--input-spec"]).arg(document);
    java.arg("--output").arg(client).arg("--additional-properties=supportsES6=true");
    run(&mut java, "openapi-generator makes no client of docs/openapi.json")
}

fn compile(modules: &Path, folder: &Path) -> Result<(), Failure> {
    let mut compiler = Command::new(NODE);
    compiler.arg(modules.join("typescript/bin/tsc")).arg("--project").arg(folder);
    run(&mut compiler, "the generated client does not compile")
}

fn run(command: &mut Command, what: &str) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(format!("{what}:\n{}", String::from_utf8_lossy(&printed)).into())
}
