//! Runs kubectl.

use std::io;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

/// The program: from PATH, as for every plugin.
const PROGRAM: &str = "kubectl";

/// Why a command of the plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// kubectl cannot be executed.
    #[error("cannot run kubectl: {0}")]
    Run(#[from] io::Error),
    /// kubectl ended with an error.
    #[error("{0}")]
    Refused(String),
    /// kubectl printed something else than the JSON that it was asked for.
    #[error("kubectl {command}: not the expected JSON: {source}")]
    NotJson {
        /// What it was asked.
        command: String,
        source: serde_json::Error,
    },
    /// No pod of the relay runs.
    #[error("no pod of {0} is running; see kubectl describe obr")]
    NoPod(String),
}

/// kubectl with the options that choose a cluster.
pub struct Kubectl {
    options: Vec<String>,
}

impl Kubectl {
    /// Options without a value are left out.
    pub fn new<const N: usize>(options: [(&str, Option<String>); N]) -> Kubectl {
        let given = options.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        Kubectl { options: given.collect() }
    }

    /// What it prints, as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(Failure::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|source| Failure::NotJson { command: arguments.join(" "), source })
    }

    /// Runs it with the terminal of this process, and returns its exit code.
    pub fn show(&self, arguments: &[&str]) -> Result<ExitCode, Failure> {
        let status = self.command(arguments).status()?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(&self.options).args(arguments);
        command
    }
}
