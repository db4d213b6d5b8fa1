//! The writers and consumers in Java, Go, Python and TypeScript. Their libraries are downloaded, so this is for `--all`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::build::repository;
use testbed::guard::Folder;
use testbed::process::Launch;
use testbed::{java, node, python};

use crate::Writer;
use crate::contract::Run;
use crate::env::Env;

/// What runs a program of a language: the interpreter or the binary, arguments, environment.
struct Runner {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Runner {
    fn new(program: impl Into<PathBuf>, arguments: &[&str]) -> Runner {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Runner { program: program.into(), arguments, environment: Vec::new() }
    }

    fn launch(&self, env: &Env) -> Launch {
        let mut launch = Launch::new("consumer", &self.program).env("JDBC_URL", jdbc(env.consumer.url()));
        for argument in &self.arguments {
            launch = launch.arg(argument);
        }
        self.environment.iter().fold(launch, |launch, (name, value)| launch.env(name, value))
    }
}

struct Program<'a> {
    env: &'a Env,
    runner: Runner,
}

impl Writer for Program<'_> {
    async fn deposit(&self, account: &str, amount: u32, traceparent: &str) -> Result<(), String> {
        let mut command = tokio::process::Command::new(&self.runner.program);
        command
            .args(&self.runner.arguments)
            .args([account, &amount.to_string()])
            .envs(self.runner.environment.iter().map(|(name, value)| (*name, value)))
            .env("DATABASE_URL", self.env.writer.url())
            .env("JDBC_URL", jdbc(self.env.writer.url()))
            .env("TRACEPARENT", traceparent)
            .stdin(Stdio::null());
        let output = command.output().await.unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

/// `postgres://user@host:port/database`, as Java has it.
fn jdbc(url: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    let user = url.username().to_owned();
    url.set_username("").unwrap();
    url.query_pairs_mut().append_pair("user", &user);
    format!("jdbc:postgresql:{}", url.as_str().split_once(':').unwrap().1)
}

/// Whether the language's test does not run; says which tool is missing.
fn is_skipped(tools: &[&str]) -> bool {
    if !testbed::long_matrix() {
        return true;
    }
    let is_missing = |tool: &&&str| {
        let mut command = Command::new(tool);
        command.arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    };
    let missing = tools.iter().find(is_missing);
    if let Some(tool) = missing {
        eprintln!("skipped: '{tool}' is missing");
    }
    missing.is_some()
}

fn source(language: &str) -> PathBuf {
    repository().join("examples").join(language)
}

/// Runs a build tool to its end.
fn build(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&printed));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn check(language: &str, writer: Runner, consumer: Runner) {
    let env = Env::start(language).await;
    let writer = Program { env: &env, runner: writer };
    Run::new(&env, &writer, &|| consumer.launch(&env)).check().await;
}

#[tokio::test]
async fn java() {
    if is_skipped(&["java", "javac", "mvn"]) {
        return;
    }
    let (sources, classes) = (source("java"), Folder::new("java").unwrap());
    let libraries = java::libraries("java-examples-1", &sources).unwrap().join("*");
    let mut javac = Command::new("javac");
    javac.args(["--release", "17", "-Werror", "-d", text(classes.path()), "-classpath", text(&libraries)]);
    build(javac.args(["Writer.java", "Consumer.java", "Event.java"].map(|file| sources.join(file))));
    let path = format!("{}:{}", text(classes.path()), text(&libraries));
    let runner = |class| Runner::new("java", &["-XX:TieredStopAtLevel=1", "-classpath", &path, class]);
    check("java", runner("Writer"), runner("Consumer")).await;
}

#[tokio::test]
async fn go() {
    if is_skipped(&["go"]) {
        return;
    }
    let programs = Folder::new("go").unwrap();
    let mut go = Command::new("go");
    go.current_dir(source("go")).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly");
    build(go.args(["build", "-o", text(programs.path()), "./writer", "./consumer"]));
    let runner = |name| Runner::new(programs.path().join(name), &[]);
    check("go", runner("writer"), runner("consumer")).await;
}

#[tokio::test]
async fn python() {
    if is_skipped(&[python::PYTHON]) {
        return;
    }
    let sources = source("python");
    let packages = python::packages("python-examples-1", &sources.join("requirements.txt")).unwrap();
    let runner = |file| {
        let mut runner = Runner::new(python::PYTHON, &["-B", text(&sources.join(file))]);
        runner.environment.push(("PYTHONPATH", packages.clone()));
        runner
    };
    check("python", runner("writer.py"), runner("consumer.py")).await;
}

#[tokio::test]
async fn typescript() {
    if is_skipped(&["node", "npm"]) {
        return;
    }
    let (sources, project) = (source("typescript"), Folder::new("typescript").unwrap());
    let modules = node::packages("typescript-examples-1", &sources).unwrap();
    std::os::unix::fs::symlink(&modules, project.path().join("node_modules")).unwrap();
    for file in ["package.json", "tsconfig.json", "writer.ts", "consumer.ts"] {
        std::fs::copy(sources.join(file), project.path().join(file)).unwrap();
    }
    build(Command::new("node").arg(modules.join("typescript/bin/tsc")).current_dir(project.path()));
    let runner = |file| Runner::new("node", &[text(&project.path().join(file))]);
    check("typescript", runner("writer.js"), runner("consumer.js")).await;
}
