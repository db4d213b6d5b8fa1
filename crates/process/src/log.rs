//! Logging: one subscriber per process, its filter changeable at run time.

use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line.
    Text,
    /// One JSON object a line.
    Json,
}

/// A handle on the process's log filter.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// The filter in force.
    pub fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Replaces the filter.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

/// A process has one subscriber: the filter of a second one would have no effect.
static STARTED: OnceLock<LogLevel> = OnceLock::new();

/// Starts logging to standard error; a second call returns the handle of the first. `filter` is in the syntax of
/// `RUST_LOG`, which replaces it when set; an invalid `RUST_LOG` falls back to `info`, because a typing error there
/// must not keep a program from starting.
pub fn init_logging(filter: &str, format: LogFormat) -> LogLevel {
    STARTED.get_or_init(|| start(filter, format)).clone()
}

fn start(filter: &str, format: LogFormat) -> LogLevel {
    let wanted = std::env::var("RUST_LOG").ok().filter(|value| !value.is_empty());
    let wanted = wanted.as_deref().unwrap_or(filter);
    let parsed = EnvFilter::try_new(wanted);
    let invalid = parsed.as_ref().err().map(ToString::to_string);
    let (layer, handle) = reload::Layer::new(parsed.unwrap_or_else(|_| EnvFilter::new("info")));
    let registry = tracing_subscriber::registry().with(layer);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    if let Some(error) = invalid {
        tracing::warn!(filter = wanted, error, "invalid log filter, using 'info'");
    }
    // Fails only if the embedding program has set its own subscriber, which then stays.
    drop(started);
    LogLevel(handle)
}
