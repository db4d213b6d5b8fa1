//! The interpreter of Lua that Argo CD runs health checks with, built once from its Go module.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, blocking, cache, go};

/// The version in `testbed/lua/go.mod`; a test compares the two.
const RELEASE: &str = "1.1.2";
const LUA: &str = "github.com/yuin/gopher-lua";

/// Runs a script; returns what it printed.
///
/// # Errors
/// The interpreter cannot be built, or the script fails; the error has what it printed.
pub async fn lua(script: &Path) -> Result<String, Error> {
    let script = script.to_owned();
    blocking(move || {
        let program = program()?.join("glua");
        let output = Command::new(&program).arg(&script).output().map_err(Error::file("run", &program))?;
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        let doing = format!("running {}", script.display());
        Err(Error::Failed { doing, status: output.status, output: printed })
    })
    .await
}

fn program() -> Result<PathBuf, Error> {
    cache::entry(&format!("lua-{RELEASE}"), "building Lua from its Go module (once)", |folder| {
        let program = folder.join("glua").display().to_string();
        go::build("lua", &["-o", &program, "-ldflags", "-s -w"], &[&format!("{LUA}/cmd/glua")])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_of_the_module() {
        let modules = std::fs::read_to_string(go::folder_of("lua").join("go.mod")).unwrap();
        assert!(modules.contains(&format!("{LUA} v{RELEASE} ")), "{modules}");
    }
}
