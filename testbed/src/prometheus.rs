//! promtool, which checks and tests the rules of Prometheus.

use std::path::Path;
use std::process::Command;

use crate::{Error, cache, go};

/// The version in `testbed/prometheus/go.mod`; a test compares the two.
const RELEASE: &str = "0.316.0";
const PROMTOOL: &str = "github.com/prometheus/prometheus/cmd/promtool";

/// Runs promtool in `folder`; answers what it printed. Builds it at the first call, without the parts that discover services.
///
/// # Errors
/// It cannot be built, or it failed: rules that are wrong, or that do not do what a test expects. The error has what it said.
pub async fn promtool(folder: &Path, arguments: &[&str]) -> Result<String, Error> {
    let doing = format!("promtool {}", arguments.join(" "));
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let folder = folder.to_owned();
    let ran = tokio::task::spawn_blocking(move || run(&folder, &arguments, doing)).await;
    ran.map_err(|join| Error::system("run promtool")(std::io::Error::other(join)))?
}

fn run(folder: &Path, arguments: &[String], doing: String) -> Result<String, Error> {
    let said = format!("building promtool {RELEASE} from its Go module (some minutes, once)");
    let built = cache::entry(&format!("promtool-{RELEASE}"), &said, |folder| {
        let program = folder.join("promtool").display().to_string();
        let options = ["-o", &program, "-ldflags", "-s -w", "-tags", "remove_all_sd"];
        go::build("prometheus", &options, &[PROMTOOL])
    })?;
    let program = built.join("promtool");
    let output = Command::new(&program).args(arguments).current_dir(folder).output();
    let output = output.map_err(Error::file("run", &program))?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    Err(Error::Failed { doing, status: output.status, output: printed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_of_the_modules() {
        let modules = std::fs::read_to_string(go::folder_of("prometheus").join("go.mod")).unwrap();
        assert!(modules.contains(&format!("github.com/prometheus/prometheus v{RELEASE}")));
    }
}
