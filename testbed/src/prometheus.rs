//! Prometheus: what tests its rules and settings, the server itself, and the operator that many clusters run it with.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::guard::Folder;
use crate::kubernetes::Cluster;
use crate::{Error, blocking, cache, go};

/// The version in `testbed/prometheus/go.mod`; a test compares the two.
const RELEASE: &str = "0.316.0";
const PROMETHEUS: &str = "github.com/prometheus/prometheus";
/// Of all services that can be asked for targets, Kubernetes alone: the others are most of the build.
const TAGS: &str = "remove_all_sd,enable_kubernetes_sd";

/// The version in `testbed/prometheus-operator/go.mod`.
const OPERATOR_RELEASE: &str = "0.85.0";
const OPERATOR: &str = "github.com/prometheus-operator/prometheus-operator";
/// Where its module has the definitions of its kinds.
const DEFINITIONS: &str = "example/prometheus-operator-crd";

/// The folder with `prometheus`, built if need be. It serves its API, and no pages: those are not in its module.
///
/// # Errors
/// Go is missing, or the module proxy cannot be reached.
pub fn prometheus() -> Result<PathBuf, Error> {
    program("prometheus")
}

/// The folder with `operator` and `prometheus-config-reloader`, built if need be. What it manages: [`prometheus_operator_kinds`].
///
/// # Errors
/// As [`prometheus`].
pub fn prometheus_operator() -> Result<PathBuf, Error> {
    let said = format!(
        "building the Prometheus operator {OPERATOR_RELEASE} from its Go module (some minutes, once)"
    );
    cache::entry(&format!("prometheus-operator-{OPERATOR_RELEASE}"), &said, |folder| {
        let programs =
            ["operator", "prometheus-config-reloader"].map(|name| format!("{OPERATOR}/cmd/{name}"));
        let folder = format!("{}/", folder.display());
        let options = ["-o", &folder, "-ldflags", "-s -w"];
        go::build("prometheus-operator", &options, &programs.each_ref().map(String::as_str))
    })
}

/// The folder with the definitions (`*.yaml`) of the kinds of the Prometheus operator. Nothing is built for them.
///
/// # Errors
/// As [`prometheus`].
pub fn prometheus_operator_kinds() -> Result<PathBuf, Error> {
    let said = format!("fetching the kinds of the Prometheus operator {OPERATOR_RELEASE}");
    cache::entry(&format!("prometheus-operator-kinds-{OPERATOR_RELEASE}"), &said, |folder| {
        let definitions = go::module_folder("prometheus-operator", OPERATOR)?.join(DEFINITIONS);
        for from in cache::files(&definitions)? {
            let name = from.file_name().unwrap_or_default();
            std::fs::copy(&from, folder.join(name)).map_err(Error::file("copy", &from))?;
        }
        Ok(())
    })
}

/// Makes monitors and rules of the Prometheus operator known to a cluster, in which no operator acts on them.
///
/// # Errors
/// As [`prometheus`], or the API server does not take them.
pub async fn define_monitors(cluster: &Cluster) -> Result<(), Error> {
    let folder = blocking(prometheus_operator_kinds).await?;
    for kind in ["podmonitors", "servicemonitors", "prometheusrules"] {
        let file = folder.join(format!("monitoring.coreos.com_{kind}.yaml")).display().to_string();
        cluster.kubectl(&["apply", "--server-side", "--filename", &file]).await?;
        cluster.until_established(&[&format!("{kind}.monitoring.coreos.com")]).await?;
    }
    Ok(())
}

/// Runs promtool in `folder`; answers what it printed. Builds it at the first call.
///
/// # Errors
/// It cannot be built, or it failed: rules that are wrong, or that do not do what a test expects. The error has what it said.
pub async fn promtool(folder: &Path, arguments: &[&str]) -> Result<String, Error> {
    let doing = format!("promtool {}", arguments.join(" "));
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let folder = folder.to_owned();
    blocking(move || run(&folder, &arguments, doing)).await
}

/// Whether Prometheus can read these groups of rules.
///
/// # Errors
/// It cannot, or promtool cannot be built.
pub async fn check_rules(groups: &Value) -> Result<(), Error> {
    let folder = Folder::new("rules")?;
    write(folder.path(), "rules.yaml", &groups.to_string())?;
    promtool(folder.path(), &["check", "rules", "rules.yaml"]).await.map(drop)
}

/// Whether Prometheus can read these expressions.
///
/// # Errors
/// As [`check_rules`].
pub async fn check_expressions(expressions: &[String]) -> Result<(), Error> {
    let rule = |(n, expression): (usize, &String)| json!({"record": format!("e{n}"), "expr": expression});
    let rules: Vec<Value> = expressions.iter().enumerate().map(rule).collect();
    check_rules(&json!({"groups": [{"name": "expressions", "rules": rules}]})).await
}

pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(Error::file("write", &path))
}

fn run(folder: &Path, arguments: &[String], doing: String) -> Result<String, Error> {
    let program = program("promtool")?.join("promtool");
    let output = Command::new(&program).args(arguments).current_dir(folder).output();
    let output = output.map_err(Error::file("run", &program))?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    Err(Error::Failed { doing, status: output.status, output: printed })
}

/// Each in a separate folder, so that tests that only need promtool wait for nothing else. Both share most of what is compiled.
fn program(name: &str) -> Result<PathBuf, Error> {
    let said = format!("building {name} {RELEASE} from its Go module (some minutes, once)");
    cache::entry(&format!("{name}-{RELEASE}"), &said, |folder| {
        let program = folder.join(name).display().to_string();
        let options = ["-o", &program, "-ldflags", "-s -w", "-tags", TAGS];
        go::build("prometheus", &options, &[&format!("{PROMETHEUS}/cmd/{name}")])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_of_the_modules() {
        let modules = |name| std::fs::read_to_string(go::folder_of(name).join("go.mod")).unwrap();
        assert!(modules("prometheus").contains(&format!("{PROMETHEUS} v{RELEASE}")));
        let operator = modules("prometheus-operator");
        assert!(operator.contains(&format!("{OPERATOR} v{OPERATOR_RELEASE} ")));
        // Its parts are separate modules.
        assert!(operator.contains(&format!("{OPERATOR}/pkg/apis/monitoring v{OPERATOR_RELEASE}")));
    }
}
