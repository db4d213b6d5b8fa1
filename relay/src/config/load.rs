//! Reading and checking. Every error names the field by its path, the bad value unless it is secret, and what is
//! allowed.

use std::collections::BTreeMap;
use std::path::Path;

use outbox::attribute;
use serde_json::{Map, Value};

use super::Routing;
use super::access::Access;
use super::files;
use super::kafka_access::SinkAccess;
use super::schema::{Config, CreationPolicy, Delivery, OnGap, OnPoison};
use super::secret::Secret;
use crate::routing::router::{Router, is_internal, is_topic_name};

/// The format this program reads. A file of a newer format is refused rather than half understood.
pub const FORMAT_VERSION: u32 = 1;
/// Environment variables that override the file: `OUTBOX_RELAY__SOURCE__HOST` is `source.host`.
pub const ENV_PREFIX: &str = "OUTBOX_RELAY__";
/// Environment variable with the source role's password.
pub const PASSWORD_ENV: &str = "OUTBOX_RELAY_SOURCE_PASSWORD";
/// Environment variable with the password, or the client secret, of `sink.sasl`.
pub const SINK_PASSWORD_ENV: &str = "OUTBOX_RELAY_SINK_PASSWORD";

/// Slot names are `[a-z0-9_]`, 63 bytes at most (NAMEDATALEN - 1).
const MAX_SLOT_NAME_BYTES: usize = 63;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {source}")]
    Unreadable {
        /// What the file is.
        what: &'static str,
        /// Its path.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{path} is not YAML: {detail}")]
    NotYaml {
        /// Its path.
        path: String,
        /// What is wrong, with the place.
        detail: String,
    },
    /// A field is missing, unknown, or has a wrong value.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

impl ConfigError {
    pub(super) fn field(field: &str, problem: impl Into<String>) -> Self {
        ConfigError::Field { field: field.into(), problem: problem.into() }
    }
}

impl Config {
    /// Reads the file at `path`, applies the environment, takes in the secrets, and checks all of it.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let shown = path.display().to_string();
        let text = files::text(&files::from_disk, "the configuration file", path)?;
        Config::parse(&text, &shown, environment)
    }

    pub(crate) fn parse(
        text: &str,
        path: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut tree: Value = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::NotYaml { path: path.into(), detail: error.to_string() })?;
        refuse_secrets(&tree)?;
        let (mut password, mut sink_password, mut numbers) = (None, None, BTreeMap::new());
        for (name, value) in environment {
            if name == PASSWORD_ENV {
                password = Some(Secret::new(value));
            } else if name == SINK_PASSWORD_ENV {
                sink_password = Some(Secret::new(value));
            } else if let Some(field) = name.strip_prefix(ENV_PREFIX) {
                numbers.extend(override_field(&mut tree, field, value));
            }
        }
        require(tree.is_object(), path, || "has no fields: it needs version, name, source and sink".into())?;
        let mut config = deserialize(tree, numbers)?;
        config.source.password = password;
        if let Some(sasl) = &mut config.sink.sasl {
            sasl.set_secret(sink_password);
        }
        config.check()?;
        Access::read(&config.source)?;
        config.sink.access = SinkAccess::read(&config.sink)?;
        Ok(config)
    }

    /// Whether the values mean something together; files are not looked at.
    ///
    /// # Errors
    /// Names the field by its path, and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        require(self.version == FORMAT_VERSION, "version", || {
            format!("this program reads format {FORMAT_VERSION}, the file says {}", self.version)
        })?;
        for (field, value) in [
            ("name", &self.name),
            ("source.host", &self.source.host),
            ("source.database", &self.source.database),
            ("source.user", &self.source.user),
            ("source.publication.name", &self.source.publication.name),
            ("sink.bootstrapServers", &self.sink.bootstrap_servers),
        ] {
            require(!value.trim().is_empty(), field, || "must not be empty".into())?;
        }
        let slot = &self.source.slot.name;
        let legal = slot.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        require(legal && !slot.is_empty() && slot.len() <= MAX_SLOT_NAME_BYTES, "source.slot.name", || {
            format!("'{slot}' is not a slot name; use 1 to {MAX_SLOT_NAME_BYTES} of a-z, 0-9 and _")
        })?;
        if let Some(source) = &self.source.event_source {
            require(attribute::is_uri_reference(source), "source.eventSource", || {
                format!(
                    "'{source}' is not a URI-reference (RFC 3986), as a CloudEvent's source has to be: not empty, no \
                         blanks, other characters percent-encoded; for example /shop/public.outbox"
                )
            })?;
        }
        let creates_slot = self.source.slot.creation_policy == CreationPolicy::IfMissing;
        require(creates_slot || self.source.on_gap == OnGap::Stop, "source.onGap", || {
            "Refill needs source.slot.creationPolicy: IfMissing, because the relay has to replace the slot"
                .into()
        })?;
        let servers = &self.sink.bootstrap_servers;
        require(servers.split(',').all(is_host_port), "sink.bootstrapServers", || {
            format!("'{servers}' is not a list of host:port separated by commas")
        })?;
        in_range("sink.producers", self.sink.producers, 1, 16)?;
        in_range("sink.maxMessageBytes", self.sink.max_message_bytes, 1_000, 100_000_000)?;
        in_range("sink.lingerMs", self.sink.linger_ms as usize, 0, 5_000)?;
        in_range("delivery.maxInFlightEvents", self.delivery.max_in_flight_events, 1, 1_000_000)?;
        in_range("delivery.maxInFlightBytes", self.delivery.max_in_flight_bytes, 64 * 1024, 1 << 32)?;
        in_range("retention.keepHours", self.retention.keep_hours as usize, 1, 24 * 366)?;
        in_range("retention.aheadHours", self.retention.ahead_hours as usize, 1, 24 * 366)?;
        in_range("heartbeat.intervalSeconds", self.heartbeat.interval_seconds as usize, 0, 3_600)?;
        in_range("shutdown.graceSeconds", self.shutdown.grace_seconds as usize, 1, 3_600)?;
        check_routing(&self.routing)?;
        check_dead_letters(&self.delivery, &self.routing)
    }
}

/// Checks that no event goes to the dead-letter topic where the topic does not depend on the
/// event; otherwise each event is checked, and one that would go there is a poison row.
fn check_dead_letters(delivery: &Delivery, routing: &Routing) -> Result<(), ConfigError> {
    const FIELD: &str = "delivery.deadLetterTopic";
    let Some(topic) = &delivery.dead_letter_topic else {
        return require(delivery.on_poison == OnPoison::Stop, FIELD, || {
            "is required with delivery.onPoison: DeadLetter".into()
        });
    };
    require(is_topic_name(topic), FIELD, || {
        format!("'{topic}' is not a topic name; use at most 249 of letters, digits, '.', '_', '-'")
    })?;
    require(!is_internal(topic), FIELD, || format!("'{topic}' is a topic of Kafka's own; choose another"))?;
    require(*topic != routing.replacement, FIELD, || {
        format!("'{topic}' is where routing.replacement sends every event")
    })
}

fn check_routing(routing: &Routing) -> Result<(), ConfigError> {
    Router::new(routing)
        .map(drop)
        .map_err(|problem| ConfigError::Field { field: "routing.regex".into(), problem: problem.to_string() })
}

/// As librdkafka reads it: it skips an entry that it cannot read, and all that is said then is that no broker answers.
fn is_host_port(server: &str) -> bool {
    const PROTOCOLS: [&str; 4] = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
    let server = match server.trim().split_once("://") {
        Some((protocol, server)) if PROTOCOLS.contains(&protocol) => server,
        Some(_) => return false,
        None => server.trim(),
    };
    server.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
        is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn require(holds: bool, field: &str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::field(field, problem())) }
}

fn in_range(field: &str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    require((least..=most).contains(&value), field, || format!("{value} is outside {least} to {most}"))
}

/// A password in a file that ends up in a ConfigMap or a repository is a leak: say so instead of "unknown field".
fn refuse_secrets(tree: &Value) -> Result<(), ConfigError> {
    require(tree.pointer("/source/password").is_none(), "source.password", || {
        format!(
            "secrets do not belong in this file; use source.passwordFile or the environment variable {PASSWORD_ENV}"
        )
    })?;
    require(tree.pointer("/sink/sasl/password").is_none(), "sink.sasl.password", || {
        format!(
            "secrets do not belong in this file; use sink.sasl.passwordFile or the environment variable {SINK_PASSWORD_ENV}"
        )
    })?;
    for (secret, instead) in [
        ("sink.sasl.token", "use sink.sasl.tokenFile".to_owned()),
        (
            "sink.sasl.clientCredentials.clientSecret",
            format!("use clientSecretFile beside it or the environment variable {SINK_PASSWORD_ENV}"),
        ),
    ] {
        let pointer = format!("/{}", secret.replace('.', "/"));
        require(tree.pointer(&pointer).is_none(), secret, || {
            format!("secrets do not belong in this file; {instead}")
        })?;
    }
    Ok(())
}

/// `numbers` are fields from the environment that were read as a number or a boolean, each with its text: where the schema wants a text, as
/// in a database that is called 2024, that is taken.
fn deserialize(tree: Value, mut numbers: BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let error = match serde_path_to_error::deserialize(tree.clone()) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let field = error.path().to_string();
    let as_text = numbers.remove(&field).and_then(|text| {
        let mut tree = tree;
        *tree.pointer_mut(&format!("/{}", field.replace('.', "/")))? = Value::String(text);
        deserialize(tree, numbers).ok()
    });
    as_text.ok_or_else(|| ConfigError::field(&field, error.inner().to_string()))
}

/// Sets the field that `SOURCE__SLOT__NAME` names: segments are camel-cased, values read as YAML scalars, so that
/// `8192` is a number and `Never` a text. Returns field and text of what is not a text.
fn override_field(tree: &mut Value, path: &str, value: String) -> Option<(String, String)> {
    let (mut node, names) = (tree, path.split("__").map(camel_case));
    let names: Vec<String> = names.collect();
    for name in &names {
        if !node.is_object() {
            *node = Value::Object(Map::new());
        }
        node = node.as_object_mut()?.entry(name).or_insert(Value::Null);
    }
    match serde_saphyr::from_str::<Value>(&value) {
        Ok(scalar @ (Value::Bool(_) | Value::Number(_))) => {
            *node = scalar;
            Some((names.join("."), value))
        }
        _ => {
            *node = Value::String(value);
            None
        }
    }
}

fn camel_case(segment: &str) -> String {
    let mut words = segment.split('_');
    let mut name = words.next().unwrap_or_default().to_lowercase();
    for word in words {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.push_str(&letters.as_str().to_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
version: 1
name: shop
source: {host: db, database: shop, user: relay, publication: {name: outbox}, slot: {name: outbox}}
sink: {bootstrapServers: 'kafka:9092'}
";

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Config::parse(text, "relay.yaml", environment)
    }

    fn error(text: &str) -> String {
        parse(text, &[]).unwrap_err().to_string()
    }

    #[test]
    fn a_minimal_file_has_sensible_defaults() {
        let config = parse(MINIMAL, &[]).unwrap();
        assert_eq!(config.source.table.to_string(), "public.outbox");
        assert_eq!(config.source.event_source(), "/shop/public.outbox");
        assert_eq!(config.routing.replacement, "outbox.event.${routedByValue}");
    }

    #[test]
    fn the_environment_overrides_the_file_and_gives_the_password() {
        let config = parse(
            MINIMAL,
            &[
                ("OUTBOX_RELAY__SOURCE__HOST", "other"),
                ("OUTBOX_RELAY__DELIVERY__MAX_IN_FLIGHT_EVENTS", "77"),
                ("OUTBOX_RELAY_SOURCE_PASSWORD", "hunter2"),
            ],
        )
        .unwrap();
        assert_eq!(config.source.host, "other");
        assert_eq!(config.delivery.max_in_flight_events, 77);
        assert_eq!(config.source.password.as_ref().unwrap().reveal(), "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_text_in_the_environment_may_look_like_a_number() {
        let named = [
            ("OUTBOX_RELAY__NAME", "2024"),
            ("OUTBOX_RELAY__SOURCE__DATABASE", "0123"),
            ("OUTBOX_RELAY__SOURCE__SLOT__NAME", "1e3"),
            ("OUTBOX_RELAY__SOURCE__PORT", "6432"),
        ];
        let config = parse(MINIMAL, &named).unwrap();
        assert_eq!((config.name.as_str(), config.source.database.as_str()), ("2024", "0123"));
        assert_eq!((config.source.slot.name.as_str(), config.source.port), ("1e3", 6432));
        let too_large = parse(MINIMAL, &[("OUTBOX_RELAY__SOURCE__PORT", "123456")]).unwrap_err().to_string();
        assert!(too_large.starts_with("source.port: invalid value: integer `123456`"), "{too_large}");
    }

    #[test]
    fn errors_name_the_field_and_what_is_allowed() {
        assert!(
            error(&MINIMAL.replace("version: 1", "version: 9"))
                .starts_with("version: this program reads format 1")
        );
        assert!(
            error(&MINIMAL.replace("name: outbox}}", "name: Out-Box}}"))
                .starts_with("source.slot.name: 'Out-Box'")
        );
        for servers in
            ["kafka", "kafka:9092,", "a:9092 b:9092", "kafka://kafka:9092", "http://kafka:9092/x:1"]
        {
            let error = error(&MINIMAL.replace("kafka:9092", servers));
            assert!(error.starts_with(&format!("sink.bootstrapServers: '{servers}'")), "{error}");
        }
        for servers in ["a:9092, b:9092", "SASL_SSL://a:9092", "[::1]:9092"] {
            parse(&MINIMAL.replace("kafka:9092", servers), &[]).unwrap();
        }
        assert!(error(&MINIMAL.replace("host: db", "hots: db")).contains("source.hots"));
        assert!(error(&format!("{MINIMAL}routing: {{regex: '('}}")).starts_with("routing.regex"));
        assert!(error(&format!("{MINIMAL}delivery: {{maxInFlightEvents: 0}}")).contains("0 is outside 1 to"));
        assert!(error("a: [").contains("is not YAML"));
        for text in ["", "# nothing", "[1]", "text"] {
            assert!(error(text).starts_with("relay.yaml: has no fields"), "{}", error(text));
        }
        let dead = |delivery: &str| error(&format!("{MINIMAL}delivery: {delivery}"));
        assert!(dead("{onPoison: DeadLetter}").starts_with("delivery.deadLetterTopic: is required"));
        assert!(dead("{deadLetterTopic: a b}").contains("'a b' is not a topic name"));
        let constant = "routing: {replacement: all}\ndelivery: {deadLetterTopic: all}";
        assert!(error(&format!("{MINIMAL}{constant}")).contains("sends every event"));
    }

    #[test]
    fn a_slot_that_the_relay_may_not_create_cannot_be_replaced() {
        let refill = MINIMAL.replace("user: relay", "user: relay, onGap: Refill");
        assert_eq!(parse(&refill, &[]).unwrap().source.on_gap, OnGap::Refill);
        let never = refill.replace("slot: {name: outbox}", "slot: {name: outbox, creationPolicy: Never}");
        assert!(error(&never).starts_with("source.onGap: Refill needs source.slot.creationPolicy"));
        let unset = serde_json::to_string(&parse(MINIMAL, &[]).unwrap()).unwrap();
        assert!(!unset.contains("onGap"), "a relay of an earlier version does not know the field");
    }

    #[test]
    fn a_source_is_a_uri_reference_whatever_names_it_is_made_of() {
        for wrong in ["basket service", "", "/büro", "/100%"] {
            let text =
                error(&MINIMAL.replace("user: relay", &format!("user: relay, eventSource: '{wrong}'")));
            assert!(
                text.starts_with(&format!("source.eventSource: '{wrong}' is not a URI-reference")),
                "{text}"
            );
        }
        for (database, table, source) in [
            ("my shop", "büro.ausgänge", "/my%20shop/b%C3%BCro.ausg%C3%A4nge"),
            ("a/b%c", "Shop.OutboxEvents", "/a%2Fb%25c/Shop.OutboxEvents"),
        ] {
            let own = format!("database: '{database}', table: '{table}'");
            let config = parse(&MINIMAL.replace("database: shop", &own), &[]).unwrap();
            assert_eq!(config.source.event_source(), source);
            assert!(attribute::is_uri_reference(source));
        }
    }

    #[test]
    fn a_password_in_the_file_is_refused_and_not_repeated() {
        let text = error(&MINIMAL.replace("user: relay", "user: relay, password: hunter2"));
        assert!(text.contains("OUTBOX_RELAY_SOURCE_PASSWORD") && !text.contains("hunter2"));
        for sasl in ["token: hunter2", "clientCredentials: {clientSecret: hunter2}", "password: hunter2"] {
            let sink = format!("sink: {{sasl: {{mechanism: OAUTHBEARER, {sasl}}}, ");
            let text = error(&MINIMAL.replace("sink: {", &sink));
            assert!(text.contains("do not belong in this file") && !text.contains("hunter2"), "{text}");
        }
    }
}
