#![doc = include_str!("../README.md")]

mod bind;
mod finding;
mod listener;
mod log;
mod page;

use std::sync::LazyLock;

pub use bind::listen;
pub use finding::{Finding, Grade, report, root_cause};
pub use listener::{ActionRefused, Admin, BindError, Lines, Readiness};
pub use log::{LogFormat, LogLevel, init_logging};
pub use page::Page;
pub use warp::http::StatusCode;

/// The version shared by all programs, with the commit if the build set `OUTBOX_COMMIT`, as that of the images does.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| match option_env!("OUTBOX_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    });
    &VERSION
}

/// The metric `build_info` of a program: its version, and the commit it was built from where that is known.
///
/// # Errors
/// `namespace` is not a valid prefix of a metric.
pub fn build_info(namespace: &str) -> Result<prometheus::IntGaugeVec, prometheus::Error> {
    let opts = prometheus::Opts::new("build_info", "Always 1").namespace(namespace);
    let info = prometheus::IntGaugeVec::new(opts, &["version", "revision"])?;
    let revision = option_env!("OUTBOX_COMMIT").unwrap_or_default();
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
    Ok(info)
}

/// Exit code for invalid configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: i32 = 64;
/// Exit code for a failed check (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: i32 = 69;
/// Exit code for a bug (`EX_SOFTWARE`).
pub const EXIT_BUG: i32 = 70;

/// Parses the program's arguments. Invalid ones end it with [`EXIT_CONFIG`] and a usage message; `--help` and
/// `--version` with 0.
pub fn arguments<A: clap::Parser>() -> A {
    A::try_parse().unwrap_or_else(|error| {
        drop(error.print());
        std::process::exit(if error.use_stderr() { EXIT_CONFIG } else { 0 })
    })
}

/// Makes a panic in any thread end the process with [`EXIT_BUG`]. Otherwise a dead thread leaves a process that looks
/// healthy and does nothing; after an exit the supervisor starts a new one.
pub fn exit_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        tracing::error!(panic = %info, "bug: a thread panicked, ending the process");
        std::process::exit(EXIT_BUG);
    }));
}
