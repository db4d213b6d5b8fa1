//! Nothing stays behind, however a process that started servers ends.
//!
//! The test starts itself as a child that starts a PostgreSQL and a Kafka, prints their process numbers and its folder,
//! and then ends in the way it is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testbed::kafka::{Kafka, KafkaOptions};
use testbed::postgres::{Postgres, PostgresOptions};
use testbed::{Error, wait};

const ROLE: &str = "TESTBED_GUARD_CHILD";
const CLEAN_WITHIN: Duration = Duration::from_secs(60);

/// Not a separate test: the child's part, when the variable says how to end.
#[tokio::test]
async fn child() -> Result<(), Error> {
    let Ok(ending) = std::env::var(ROLE) else { return Ok(()) };
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    let kafka = Kafka::start(KafkaOptions::default()).await?;
    let folder = postgres.socket_directory().parent().unwrap().display().to_string();
    println!("\nstarted {} {} {folder}", postgres.pid().unwrap(), kafka.pids()[0]);
    if ending == "panic" {
        panic!("as told");
    }
    // Until killed.
    std::future::pending().await
}

struct Started {
    child: Child,
    pids: Vec<String>,
    folder: String,
}

fn start_child(ending: &str) -> Started {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(ROLE, ending)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with("started "))
        .expect("the child starts servers");
    let words: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
    Started { child, pids: words[..2].to_vec(), folder: words[2].clone() }
}

async fn leaves_nothing_behind(mut started: Started) -> Result<(), Error> {
    drop(started.child.wait());
    wait::until("the end of all servers and folders", CLEAN_WITHIN, async || {
        let alive: Vec<_> = started.pids.iter().filter(|pid| Path::new("/proc").join(pid).exists()).collect();
        if !alive.is_empty() {
            return Err(format!("processes {alive:?} are there"));
        }
        if Path::new(&started.folder).exists() {
            return Err(format!("{} is there", started.folder));
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn nothing_stays_after_a_panic() -> Result<(), Error> {
    leaves_nothing_behind(start_child("panic")).await
}

#[tokio::test]
async fn nothing_stays_after_kill_9() -> Result<(), Error> {
    let mut started = start_child("wait");
    started.child.kill().unwrap();
    leaves_nothing_behind(started).await
}

#[tokio::test]
async fn nothing_stays_after_ctrl_c() -> Result<(), Error> {
    let started = start_child("wait");
    Command::new("kill").args(["-INT", &started.child.id().to_string()]).status().unwrap();
    leaves_nothing_behind(started).await
}
