//! Configuration: arguments and environment, checked before anything starts. Secrets come from files or the
//! environment only, because arguments can be read by everybody on the machine.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sqlx::postgres::PgConnectOptions;

/// Environment variable with the database's address.
const DATABASE_URL: &str = "BASKET_DATABASE_URL";
/// Environment variable with the token of the development mode.
const STATIC_TOKEN: &str = "BASKET_STATIC_TOKEN";
/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// The basket service: commands, queries, and events through the transactional outbox.
#[derive(Parser)]
#[command(
    name = "basket-api",
    version,
    about,
    after_help = "Environment:\n  BASKET_DATABASE_URL       postgres://user:password@host:port/database (required)\n  \
                  BASKET_STATIC_TOKEN       the bearer token of --auth static-token, 16 characters or more\n\
                  Exit codes: 0 stopped in order, 64 invalid configuration, 69 the database is away, 70 a bug."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serve until stopped. SIGTERM finishes the requests under way and exits 0.
    Serve(Serve),
    /// Bring the database's schema up to date. Safe to repeat.
    Migrate,
}

/// How to serve.
#[derive(Args)]
pub struct Serve {
    /// Address of the service.
    #[arg(long, env = "BASKET_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of /livez, /readyz, /metrics and /status.
    #[arg(long, env = "BASKET_ADMIN_LISTEN", default_value = "127.0.0.1:9080")]
    pub admin_listen: SocketAddr,
    /// Database connections at most.
    #[arg(long, env = "BASKET_DATABASE_CONNECTIONS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub database_connections: u32,
    /// How callers prove who they are.
    #[arg(long, env = "BASKET_AUTH", default_value = "static-token")]
    pub auth: AuthMode,
    /// File with the token of the development mode, in place of BASKET_STATIC_TOKEN.
    #[arg(long, env = "BASKET_STATIC_TOKEN_FILE")]
    pub static_token_file: Option<PathBuf>,
}

/// How callers prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// One bearer token for everybody: for development.
    StaticToken,
    /// Not at all; everybody is the principal `anonymous`.
    None,
}

/// How requests are authenticated, with what it needs.
#[derive(Clone)]
pub enum Authentication {
    /// The bearer token every request must carry.
    StaticToken(String),
    /// None.
    Nobody,
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Authentication::StaticToken(_) => "StaticToken([redacted])",
            Authentication::Nobody => "Nobody",
        })
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Something that is required is not there.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// Something has a value that cannot be used; the value may be secret and is not shown.
    #[error("{field} {problem}")]
    Invalid {
        /// What.
        field: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

/// Where the database is.
pub fn database() -> Result<PgConnectOptions, ConfigError> {
    let url = std::env::var(DATABASE_URL).map_err(|_| ConfigError::Missing(DATABASE_URL))?;
    // The driver takes any scheme, and would then look for a Postgres where a MySQL is.
    let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    let options = PgConnectOptions::from_str(&url).ok().filter(|_| is_postgres);
    options.map(|options| options.application_name("basket-api")).ok_or_else(|| {
        let problem = "is not an address such as postgres://user:password@host:5432/database".to_owned();
        ConfigError::Invalid { field: DATABASE_URL, problem }
    })
}

impl Serve {
    /// How requests are authenticated.
    pub fn authentication(&self) -> Result<Authentication, ConfigError> {
        if self.auth == AuthMode::None {
            return Ok(Authentication::Nobody);
        }
        let token = match &self.static_token_file {
            Some(file) => std::fs::read_to_string(file).map_err(|error| ConfigError::Invalid {
                field: "BASKET_STATIC_TOKEN_FILE",
                problem: format!("cannot be read: {error}"),
            })?,
            None => std::env::var(STATIC_TOKEN).map_err(|_| ConfigError::Missing(STATIC_TOKEN))?,
        };
        let token = token.trim().to_owned();
        let usable = token.len() >= SHORTEST_TOKEN && token.bytes().all(|b| b.is_ascii_graphic());
        if usable {
            return Ok(Authentication::StaticToken(token));
        }
        let problem = format!("must be {SHORTEST_TOKEN} or more visible ASCII characters");
        Err(ConfigError::Invalid { field: STATIC_TOKEN, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
