//! What has to be on the machine.

use std::process::{Command, Stdio};

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Rust, and what compiles librdkafka.
    Build,
    /// Also what fetches and runs PostgreSQL and Kafka.
    Servers,
    /// Also what a real node needs.
    Cluster,
    /// Also what the tests fetch and build.
    Tests,
}

/// A command that succeeds where the tool is there, and what to install otherwise.
struct Tool {
    check: &'static [&'static str],
    install: &'static str,
}

const fn tool(check: &'static [&'static str], install: &'static str) -> Tool {
    Tool { check, install }
}

const COMPILER: &str = "a C and C++ compiler (Debian: build-essential)";
const JDK: &str = "a JDK, 17 or newer; a JRE is not enough (Debian: openjdk-17-jdk-headless)";
const GO: Tool = tool(&["go", "version"], "Go 1.25 or newer (go.dev/dl)");
const CURL: Tool = tool(&["curl", "--version"], "curl");

const BUILD: [Tool; 6] = [
    tool(&["cc", "--version"], COMPILER),
    tool(&["c++", "--version"], COMPILER),
    tool(&["make", "--version"], "make (Debian: build-essential)"),
    tool(&["pkg-config", "--version"], "pkg-config"),
    tool(&["pkg-config", "--exists", "openssl"], "headers of OpenSSL (Debian: libssl-dev)"),
    tool(&["pkg-config", "--exists", "zlib"], "headers of zlib (Debian: zlib1g-dev)"),
];
const SERVERS: [Tool; 5] = [
    tool(&["java", "-version"], JDK),
    tool(&["jar", "--version"], JDK),
    tool(&["mvn", "--version"], "Apache Maven 3.8 or newer (Debian: maven)"),
    tool(&["tar", "--version"], "tar"),
    tool(&["xz", "--version"], "xz (Debian: xz-utils)"),
];
const CLUSTER: [Tool; 4] =
    [GO, tool(&["ip", "-Version"], "iproute2"), tool(&["unshare", "--version"], "util-linux"), CURL];
/// Kubernetes is built from its Go modules, the contract's checker is a Python package, and the documents speak of curl.
const TESTS: [Tool; 3] =
    [GO, tool(&["python3", "--version"], "Python 3.10 or newer, with pip (Debian: python3-pip)"), CURL];

/// A sentence for all that is missing.
pub fn missing(needs: Needs) -> Vec<String> {
    let more: &[&[Tool]] = match needs {
        Needs::Build => &[&BUILD],
        Needs::Servers => &[&BUILD, &SERVERS],
        Needs::Cluster => &[&BUILD, &SERVERS, &CLUSTER],
        Needs::Tests => &[&BUILD, &SERVERS, &TESTS],
    };
    let mut sentences: Vec<String> = more
        .iter()
        .flat_map(|tools| tools.iter())
        .filter(|tool| !tool.is_there())
        .map(Tool::sentence)
        .collect();
    sentences.dedup();
    sentences
}

impl Tool {
    fn is_there(&self) -> bool {
        let [program, arguments @ ..] = self.check else { return true };
        let answer =
            Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        answer.is_ok_and(|status| status.success())
    }

    fn sentence(&self) -> String {
        format!("'{}' fails: install {}", self.check.join(" "), self.install)
    }
}

#[cfg(test)]
mod tests {
    use super::{JDK, tool};

    #[test]
    fn a_tool_is_there_if_its_command_succeeds() {
        assert!(tool(&["true"], "").is_there());
        assert!(!tool(&["false"], "").is_there());
        assert!(!tool(&["no-such-program"], "").is_there());
    }

    #[test]
    fn what_is_missing_says_what_to_install() {
        let said = tool(&["jar", "--version"], JDK).sentence();
        assert!(said.starts_with("'jar --version' fails: install a JDK"), "{said}");
    }
}
