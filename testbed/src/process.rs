//! A child process that can be killed, paused and restarted, and that does not outlive the testbed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::guard::{self, Folder};
use crate::{Error, wait};

/// How long a process may take to be gone after SIGKILL.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 4_000;

/// A signal, as `kill` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End now, without a chance to clean up.
    Kill,
    /// End in order.
    Term,
    /// As Ctrl-C.
    Int,
    /// PostgreSQL: end at once, without a checkpoint.
    Quit,
    /// Pause.
    Stop,
    /// Continue.
    Cont,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Kill => "-KILL",
            Signal::Term => "-TERM",
            Signal::Int => "-INT",
            Signal::Quit => "-QUIT",
            Signal::Stop => "-STOP",
            Signal::Cont => "-CONT",
        }
    }
}

/// Sends `signal` to processes we started. Those that are gone are passed over.
pub(crate) fn send(signal: Signal, pids: &[u32]) -> Result<(), Error> {
    if pids.is_empty() {
        return Ok(());
    }
    Command::new("kill")
        .arg(signal.name())
        .args(pids.iter().map(u32::to_string))
        .stderr(Stdio::null())
        .status()
        .map_err(Error::system("run 'kill'"))?;
    Ok(())
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|child| parent(*child) == Some(pid)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A supervised program: a product's binary, or a server.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    /// Keeps the log until the program is dropped.
    _folder: Option<Folder>,
}

/// What to run.
pub struct Launch {
    name: String,
    command: Command,
    log: Option<PathBuf>,
}

impl Launch {
    /// Runs `program`; `name` is how errors call it.
    pub fn new(name: impl Into<String>, program: impl AsRef<Path>) -> Launch {
        Launch { name: name.into(), command: Command::new(program.as_ref()), log: None }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Launch {
        self.command.arg(argument);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Launch {
        self.command.env(name, value);
        self
    }

    /// Appends what it prints to `log` instead of a separate file.
    #[must_use]
    pub fn log_to(mut self, log: impl Into<PathBuf>) -> Launch {
        self.log = Some(log.into());
        self
    }

    /// As the servers' user, where we are root.
    #[must_use]
    pub(crate) fn unprivileged(mut self) -> Launch {
        guard::unprivileged(&mut self.command);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be executed, or its log not be opened.
    pub fn start(mut self) -> Result<Program, Error> {
        let (log, folder) = match self.log {
            Some(log) => (log, None),
            None => {
                let folder = Folder::new("program")?;
                (folder.path().join("log"), Some(folder))
            }
        };
        let output: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::file("append to", &log))?;
        let errors = output.try_clone().map_err(Error::system("share a log file"))?;
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Error::file("run", self.command.get_program()))?;
        guard::register(child.id())?;
        Ok(Program { name: self.name, child, log, _folder: folder })
    }
}

impl Program {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed, standard output and standard error.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of what it has printed.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        let from = (from..=log.len()).find(|index| log.is_char_boundary(*index)).unwrap_or(0);
        log.get(from..).unwrap_or_default().to_owned()
    }

    /// How it ended; `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        send(signal, &[self.pid()])
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), Error> {
        // Safe where a paused process is concerned as well, and does nothing to one that has ended.
        drop(self.child.kill());
        self.wait(GONE_WITHIN).await.map(drop)
    }

    /// SIGSTOP.
    pub fn pause(&self) -> Result<(), Error> {
        self.signal(Signal::Stop)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), Error> {
        self.signal(Signal::Cont)
    }

    /// SIGTERM; does not wait.
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(Signal::Term)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the end of its log.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let what = format!("the end of {}", self.name);
        wait::until(what, limit, async || {
            self.exit_status().ok_or_else(|| format!("it still runs; its log: {}", self.log_tail()))
        })
        .await
    }

    /// User and system CPU seconds so far. The kernel counts in hundredths.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid())
    }

    /// Its resident memory now, and the most it has had, in bytes.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Some((kib("VmRSS:")? * 1024, kib("VmHWM:")? * 1024))
    }

    /// An error that shows the end of the log of a program that ended too early.
    pub(crate) fn ended_early(&self) -> Error {
        Error::Ended { server: self.name.clone(), log: self.log_tail() }
    }
}

/// User and system CPU seconds of a process so far; 0 if it has ended.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / 100.0
}

/// CPU seconds that all processes of this machine and its kernel have used since it was started.
pub fn machine_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, then idle and iowait, which are no work, then irq and softirq.
    [0, 1, 2, 5, 6].into_iter().filter_map(|index| ticks.get(index)).sum::<f64>() / 100.0
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
