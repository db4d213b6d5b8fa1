//! Configuration: arguments and environment, checked before anything starts. Secrets come from files or the
//! environment only, because every user of the machine can read arguments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use process::LogFormat;
use url::Url;

use crate::auth::{ClaimNames, KeySource, SetUpError, TokenRules, TokenVerifier};
use crate::bus::UnitOfWorkMode;
use crate::http::{Authentication, Capacity};
use crate::postgres::{Servers, for_commands};
use crate::server::{Limits, Timeouts};

/// Environment variable with the database's address.
const DATABASE_URL: &str = "BASKET_DATABASE_URL";
/// Environment variable with the token of the development mode.
const STATIC_TOKEN: &str = "BASKET_STATIC_TOKEN";
/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Keys have to outlive the longest retry of any client; a day is the least that other APIs promise.
const SHORTEST_KEY_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The basket service: commands, queries, and events through the transactional outbox.
#[derive(Parser)]
#[command(
    name = "basket-api",
    version = process::version(),
    about,
    after_help = "Environment:\n  BASKET_DATABASE_URL       postgres://user:password@host:port/database (required);\n                            several hosts, separated by commas, where a failover moves the primary\n  \
                  BASKET_STATIC_TOKEN       the bearer token of --auth static-token, 16 characters or more\n\
                  Durations are a number with a unit: 500ms, 30s, 15m, 72h, 30d.\n\
                  Exit codes: 0 stopped gracefully, 64 invalid configuration, 69 the database is down or 'doctor' found a problem, 70 a bug."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serve until stopped. SIGTERM finishes the requests in flight and exits 0.
    Serve(Box<Serve>),
    /// Bring the database's schema up to date. Safe to repeat.
    Migrate(Migrate),
    /// Make the read model again from the state. Safe while the service runs.
    RebuildReadModel,
    /// Check what the service meets, one line each: ok, warn or problem, and what to do. Changes nothing.
    ///
    /// The database, its schema and, with --url, whether the service answers there. Exit codes: 0 no problem (warnings do not count), 64
    /// invalid configuration, 69 a problem.
    Doctor(Doctor),
    /// Print the OpenAPI document.
    Openapi,
    /// Print the JSON Schema of every event type.
    EventSchemas,
}

/// How to migrate.
#[derive(Args)]
pub struct Migrate {
    /// Grant this role, with which the service runs, what it needs. The schema belongs to the role that migrates.
    #[arg(long, env = "BASKET_GRANT_TO", value_name = "ROLE")]
    pub grant_to: Option<String>,
}

/// What to look at.
#[derive(Args)]
pub struct Doctor {
    /// Address of the service, such as http://shop-basket-api.
    #[arg(long, value_parser = plain_http)]
    pub url: Option<Url>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
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
    /// How log lines look.
    #[arg(long, env = "BASKET_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// How a command is written to the database: as a transaction with one statement per step, or in two statements.
    #[arg(long, env = "BASKET_UNIT_OF_WORK", default_value = "transaction")]
    pub unit_of_work: UnitOfWorkMode,
    /// Who may call.
    #[command(flatten)]
    pub access: Access,
    /// How much at once.
    #[command(flatten)]
    pub bounds: Bounds,
    /// What is kept how long.
    #[command(flatten)]
    pub retention: Retention,
}

/// Who may call.
#[derive(Args)]
#[command(next_help_heading = "Access")]
pub struct Access {
    /// How callers prove who they are.
    #[arg(long, env = "BASKET_AUTH", default_value = "jwt")]
    pub auth: AuthMode,
    /// jwt: issuer of the tokens, exactly as in their claim `iss`.
    #[arg(long, env = "BASKET_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
    /// jwt: this service's name in the tokens' audience claim.
    #[arg(long, env = "BASKET_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// jwt: claim with the audience; client_id with issuers that put no aud into access tokens (Cognito). Names of claims may be
    /// paths with dots, such as realm_access.roles.
    #[arg(long, env = "BASKET_JWT_AUDIENCE_CLAIM", default_value = "aud")]
    pub jwt_audience_claim: String,
    /// jwt: claim with the caller's name, the principal.
    #[arg(long, env = "BASKET_JWT_SUBJECT_CLAIM", default_value = "sub")]
    pub jwt_subject_claim: String,
    /// jwt: claims with the caller's roles, comma separated; each is a list, or words in a text such as scope.
    #[arg(long, env = "BASKET_JWT_ROLES_CLAIM", default_value = "roles", value_delimiter = ',')]
    pub jwt_roles_claim: Vec<String>,
    /// jwt: the role that may read the commands of all principals.
    #[arg(long, env = "BASKET_JWT_AUDITOR_ROLE", default_value = "auditor")]
    pub jwt_auditor_role: String,
    /// jwt: accept only tokens of the type at+jwt (RFC 9068).
    #[arg(long, env = "BASKET_JWT_REQUIRE_AT_JWT")]
    pub jwt_require_at_jwt: bool,
    /// jwt: how far the issuer's clock and this one may be apart; 5m at most.
    #[arg(long, env = "BASKET_JWT_LEEWAY", default_value = "30s", value_parser = leeway)]
    pub jwt_leeway: Duration,
    /// jwt: file with the issuer's key set (JWKS). Read again when it changes.
    #[arg(long, env = "BASKET_JWKS_FILE")]
    pub jwks_file: Option<PathBuf>,
    /// jwt: address of the issuer's key set (JWKS), in place of a file.
    #[arg(long, env = "BASKET_JWKS_URL", conflicts_with = "jwks_file")]
    pub jwks_url: Option<Url>,
    /// jwt: file with CA certificates (PEM) for that address, instead of the public root CAs.
    #[arg(long, env = "BASKET_JWKS_CA_FILE", requires = "jwks_url")]
    pub jwks_ca_file: Option<PathBuf>,
    /// static-token: file with the token, in place of BASKET_STATIC_TOKEN.
    #[arg(long, env = "BASKET_STATIC_TOKEN_FILE")]
    pub static_token_file: Option<PathBuf>,
    /// Change a basket only for callers that send If-Match.
    #[arg(long, env = "BASKET_REQUIRE_IF_MATCH")]
    pub require_if_match: bool,
}

/// How much at once. Each bound keeps one kind of overload from becoming an outage.
#[derive(Args)]
#[command(next_help_heading = "Bounds")]
pub struct Bounds {
    /// Database connections for requests at most, one in four of them for lists; the probe and each job of housekeeping have
    /// one more. A few per CPU of the database are as fast as many.
    #[arg(long, env = "BASKET_DATABASE_CONNECTIONS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=500))]
    pub database_connections: u32,
    /// Client connections at most. One more closes the one that has waited the longest for its client; while none waits, it
    /// is queued.
    #[arg(long, env = "BASKET_MAX_CONNECTIONS", default_value_t = 1024, value_parser = at_least_one)]
    pub max_connections: usize,
    /// Requests in flight at most; more are answered 503.
    #[arg(long, env = "BASKET_MAX_REQUESTS", default_value_t = 512, value_parser = at_least_one)]
    pub max_requests: usize,
    /// Requests in flight of one principal at most, more are answered 429; 0 for any number, on all database connections.
    #[arg(long, env = "BASKET_MAX_REQUESTS_PER_PRINCIPAL", default_value_t = 64, value_parser = permits)]
    pub max_requests_per_principal: usize,
    /// Requests per second of one principal at most, more are answered 429; 0 for any number.
    #[arg(long, env = "BASKET_RATE_LIMIT", default_value_t = 5000)]
    pub rate_limit: u32,
    /// How long a request may take.
    #[arg(long, env = "BASKET_REQUEST_TIMEOUT", default_value = "10s", value_parser = timeout)]
    pub request_timeout: Duration,
    /// How long a request's head may take to arrive, from its first byte.
    #[arg(long, env = "BASKET_HEADER_TIMEOUT", default_value = "10s", value_parser = timeout)]
    pub header_timeout: Duration,
    /// How long a connection may be without a request. Longer than load balancers keep theirs, so that none of them sends a
    /// request on a connection that is being closed.
    #[arg(long, env = "BASKET_IDLE_TIMEOUT", default_value = "75s", value_parser = timeout)]
    pub idle_timeout: Duration,
    /// How long a client may read nothing of its answer.
    #[arg(long, env = "BASKET_SEND_TIMEOUT", default_value = "15s", value_parser = timeout)]
    pub send_timeout: Duration,
    /// How long to serve after SIGTERM, while load balancers still send requests. /readyz is 503 from the start of it.
    #[arg(long, env = "BASKET_STOP_DELAY", default_value = "0s", value_parser = duration)]
    pub stop_delay: Duration,
    /// How long requests in flight may take to end after that.
    #[arg(long, env = "BASKET_DRAIN_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub drain_timeout: Duration,
}

impl Bounds {
    /// Those of connections.
    pub fn of_server(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            timeouts: Timeouts {
                head: self.header_timeout,
                idle: self.idle_timeout,
                send: self.send_timeout,
            },
            stop_delay: self.stop_delay,
            drain: self.drain_timeout,
        }
    }

    /// Those of requests.
    pub fn of_requests(&self) -> Capacity {
        Capacity {
            requests: self.max_requests,
            requests_per_principal: self.max_requests_per_principal,
            rate: self.rate_limit,
            database_connections: usize::try_from(for_commands(self.database_connections))
                .unwrap_or(usize::MAX),
        }
    }
}

/// What is kept how long.
#[derive(Args)]
#[command(next_help_heading = "Retention")]
pub struct Retention {
    /// Abandon open baskets that were not changed for this long.
    #[arg(long, env = "BASKET_ABANDON_AFTER", default_value = "30d", value_parser = duration)]
    pub abandon_after: Duration,
    /// Forget idempotency keys this long after their first use; 24h at least.
    #[arg(long, env = "BASKET_KEEP_KEYS", default_value = "72h", value_parser = duration)]
    pub keep_keys: Duration,
    /// Drop whole months of the log of commands this long after their end; kept forever if not set. Longer than keys.
    #[arg(long, env = "BASKET_KEEP_COMMANDS", value_parser = duration)]
    pub keep_commands: Option<Duration>,
    /// How often to look for what has expired; 100ms to 1d.
    #[arg(long, env = "BASKET_HOUSEKEEPING_EVERY", default_value = "1m", value_parser = duration)]
    pub housekeeping_every: Duration,
}

/// How callers prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// By an OIDC access token (JWT signed with RSA, ECDSA or Ed25519).
    Jwt,
    /// One bearer token for all callers: for development.
    StaticToken,
    /// Not at all; every caller is the principal `anonymous`.
    None,
}

impl AuthMode {
    /// Whether each caller has separate baskets.
    pub fn tells_callers_apart(self) -> bool {
        self == AuthMode::Jwt
    }

    /// As in arguments.
    pub fn name(self) -> &'static str {
        match self {
            AuthMode::Jwt => "jwt",
            AuthMode::StaticToken => "static-token",
            AuthMode::None => "none",
        }
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
    /// The token issuer's keys cannot be used.
    #[error("the keys of --auth jwt cannot be used: {0}")]
    Keys(SetUpError),
}

/// Where the database is.
pub fn database() -> Result<Servers, ConfigError> {
    let address = std::env::var(DATABASE_URL).map_err(|_| ConfigError::Missing(DATABASE_URL))?;
    Servers::from_str(&address)
        .map_err(|error| ConfigError::Invalid { field: DATABASE_URL, problem: error.to_string() })
}

impl Access {
    /// How requests are authenticated.
    pub fn authentication(&self) -> Result<Authentication, ConfigError> {
        match self.auth {
            AuthMode::None => Ok(Authentication::Anonymous),
            AuthMode::StaticToken => self.static_token().map(Authentication::StaticToken),
            AuthMode::Jwt => self.tokens(),
        }
    }

    fn static_token(&self) -> Result<String, ConfigError> {
        let token = match &self.static_token_file {
            Some(file) => std::fs::read_to_string(file).map_err(|error| ConfigError::Invalid {
                field: "BASKET_STATIC_TOKEN_FILE",
                problem: format!("cannot be read: {error}"),
            })?,
            None => std::env::var(STATIC_TOKEN).map_err(|_| ConfigError::Missing(STATIC_TOKEN))?,
        };
        let token = token.trim().to_owned();
        if token.len() >= SHORTEST_TOKEN && token.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(token);
        }
        let problem = format!("must be {SHORTEST_TOKEN} or more visible ASCII characters");
        Err(ConfigError::Invalid { field: STATIC_TOKEN, problem })
    }

    fn tokens(&self) -> Result<Authentication, ConfigError> {
        let needed = |value: &Option<String>, name| value.clone().ok_or(ConfigError::Missing(name));
        let rules = TokenRules {
            issuer: needed(&self.jwt_issuer, "--jwt-issuer (needed by --auth jwt)")?,
            audience: needed(&self.jwt_audience, "--jwt-audience (needed by --auth jwt)")?,
            claims: ClaimNames {
                audience: self.jwt_audience_claim.clone(),
                subject: self.jwt_subject_claim.clone(),
                roles: self.jwt_roles_claim.clone(),
            },
            require_at_jwt: self.jwt_require_at_jwt,
            leeway: self.jwt_leeway,
        };
        let source = match (&self.jwks_file, &self.jwks_url) {
            (Some(file), _) => KeySource::File(file.clone()),
            (None, Some(url)) => KeySource::Url { url: url.clone(), ca_file: self.jwks_ca_file.clone() },
            (None, None) => {
                return Err(ConfigError::Missing("--jwks-url or --jwks-file (needed by --auth jwt)"));
            }
        };
        let verifier = TokenVerifier::new(rules, source).map_err(ConfigError::Keys)?;
        Ok(Authentication::Tokens {
            verifier: Arc::new(verifier),
            auditor_role: self.jwt_auditor_role.clone(),
        })
    }
}

impl Retention {
    /// Refuses what would break a promise.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refused = |field, problem: &str| Err(ConfigError::Invalid { field, problem: problem.to_owned() });
        if self.keep_keys < SHORTEST_KEY_RETENTION {
            return refused("--keep-keys", "must be 24h or more: clients repeat requests by their keys");
        }
        if self.keep_commands.is_some_and(|keep| keep < self.keep_keys || keep < WEEK) {
            return refused("--keep-commands", "must be 7d or more, and not less than --keep-keys");
        }
        if self.abandon_after < Duration::from_secs(1) {
            return refused("--abandon-after", "must be 1s or more");
        }
        if !(MOST_OFTEN..=DAY).contains(&self.housekeeping_every) {
            return refused(
                "--housekeeping-every",
                "must be 100ms to 1d: the next month of the log of commands is created in time",
            );
        }
        Ok(())
    }
}

const MOST_OFTEN: Duration = Duration::from_millis(100);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The log is dropped by months: less than a week of it would be nothing at the start of each.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// Fifty years: what is kept for longer began before 1970, where the times of ids begin.
const LONGEST: Duration = Duration::from_secs(18_250 * 24 * 3600);
/// More than a machine has sockets and memory for. A semaphore panics far above.
const MOST_PERMITS: usize = 1_000_000;

fn permits(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number <= MOST_PERMITS);
    number.ok_or_else(|| format!("must be a number up to {MOST_PERMITS}"))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    permits(text).ok().filter(|number| *number > 0).ok_or_else(|| format!("must be 1 to {MOST_PERMITS}"))
}

/// As pods and the Service speak it. Credentials would be printed.
fn plain_http(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok();
    let takes = |url: &Url| {
        url.scheme() == "http" && url.has_host() && url.username().is_empty() && url.password().is_none()
    };
    url.filter(takes)
        .ok_or_else(|| "must be an address such as http://shop-basket-api:80, without credentials".to_owned())
}

/// RFC 7519, section 4.1.4: "usually no more than a few minutes".
fn leeway(text: &str) -> Result<Duration, String> {
    let leeway = duration(text)?;
    if leeway <= Duration::from_secs(300) { Ok(leeway) } else { Err("must be 5m or less".to_owned()) }
}

/// Nothing is done in no time.
fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    if timeout.is_zero() { Err("must be 1ms or more".to_owned()) } else { Ok(timeout) }
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "d" => 24 * 3600 * 1000,
        _ => return Err("must be a number with a unit, such as 500ms, 30s, 15m, 72h or 30d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "must begin with a number".to_owned())?;
    let duration = number.checked_mul(milliseconds).map(Duration::from_millis);
    duration
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| "must be 18250d (50 years) or less".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_documents_are_accepted() {
        let parse = |words: &[String]| Arguments::try_parse_from(words).map(drop);
        testbed::documents::accepted("basket-api", 2, parse).unwrap();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(duration("18250d"), Ok(LONGEST));
        for wrong in
            ["", "5", "18251d", "s", "5 s", "-5s", "5w", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
