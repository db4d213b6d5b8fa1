//! The quick starts of the documents, on the testbed's servers: docs/tutorials/my-database.md from its SQL to its record, and the relay
//! of compose.yaml with the same files and its own environment.

use std::path::Path;

use serde_json::Value;
use testbed::kafka::create_topic;
use testbed::records::Record;
use testbed::{Database, net, shared};

use crate::fixture::{PARTITIONS, PASSWORD, Site};

const PAGE: &str = include_str!("../../../docs/tutorials/my-database.md");
const COMPOSE: &str = include_str!("../../../compose.yaml");
const RELAY_SQL: &str = include_str!("../../../examples/quick-start/relay.sql");
const RELAY_YAML: &str = include_str!("../../../examples/quick-start/relay.yaml");
const EVENT_SQL: &str = include_str!("../../../examples/quick-start/event.sql");

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    PAGE.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// A database with the migrations that the page names, and what its SQL creates.
async fn site() -> Site {
    let servers = shared().await.unwrap();
    let database = Database::empty_on(&servers.postgres_url("postgres"), "quick").await.unwrap();
    let site = Site::without_topic(database, servers.kafka_bootstrap());
    create_topic(&site.bootstrap, &site.topic(), PARTITIONS, 1, &[]).await.unwrap();
    let applied = blocks("sh").into_iter().find(|block| block.contains("migrations/")).unwrap();
    assert!(applied.starts_with("cat migrations/outbox/*.sql | psql "), "{applied}");
    for migration in testbed::outbox_migrations().unwrap() {
        site.execute(&migration).await;
    }
    site.execute(&here(&site, RELAY_SQL)).await;
    site
}

/// The role is unique, because roles belong to the server.
fn role(site: &Site) -> String {
    site.slot.replace("slot", "quick")
}

/// A text of the quick start with the names of this site.
fn here(site: &Site, text: &str) -> String {
    let text = text.replace("outbox_relay", &role(site)).replace("change-me", PASSWORD);
    text.replace("'order'", &format!("'{}'", site.aggregate))
}

/// The configuration of the quick start with this site's servers and names. `given` is the fixture's, which has a free admin port.
fn config(site: &Site, given: &str) -> String {
    let port = given.split("port: ").nth(1).unwrap().split(',').next().unwrap();
    let admin = given.lines().find(|line| line.starts_with("admin:")).unwrap();
    let text = here(site, RELAY_YAML)
        .replace("host: localhost", &format!("host: 127.0.0.1\n  port: {port}"))
        .replace("database: shop", &format!("database: {}", site.database.name()))
        .replace("slot: {name: outbox}", &format!("slot: {{name: {}}}", site.slot))
        .replace("localhost:9092", &site.bootstrap);
    format!("{text}{admin}\n")
}

fn is_the_event(record: &Record) {
    assert_eq!(record.key.as_deref(), Some(b"order-1".as_slice()));
    assert_eq!(record.value.as_deref(), Some(br#"{"total": 1780}"#.as_slice()));
    assert_eq!(record.header("ce_type"), Some("order.placed.v1"));
}

#[test]
fn the_page_shows_the_files_and_twelve_lines_are_enough() {
    assert!(blocks("sql").contains(&RELAY_SQL) && blocks("sql").contains(&EVENT_SQL));
    assert_eq!(blocks("yaml"), [RELAY_YAML]);
    assert_eq!(RELAY_YAML.lines().count(), 12);
}

#[tokio::test]
async fn the_tutorial_ends_in_its_record_and_a_crash_repeats_none() {
    let site = site().await;
    let doctor = site.command(net::free_port().unwrap(), |text| config(&site, &text), &["doctor"]).await;
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let relay = site.launch(|text| config(&site, &text));
    relay.until("/readyz", 200, "streaming").await;
    site.execute(&here(&site, EVENT_SQL)).await;
    let records = site.until_records(1).await;
    is_the_event(&records[0]);
    let (_, table) = PAGE.split_once("| header | value |").unwrap();
    let mut named: Vec<&str> =
        table.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
    let mut headers: Vec<&str> = records[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    named.sort_unstable();
    headers.sort_unstable();
    assert_eq!(named, headers, "the page, and the record");
    relay.kill().await;
    site.execute(&here(&site, EVENT_SQL)).await;
    let relay = site.launch(|text| config(&site, &text));
    site.until_records(2).await;
    site.until_confirmed(&relay).await;
    assert_eq!(site.records().await.len(), 2);
}

/// The containers themselves cannot run here.
#[tokio::test]
async fn the_relay_of_compose_delivers_with_its_environment() {
    let compose: Value = serde_saphyr::from_str(COMPOSE).unwrap();
    for mount in
        ["postgres", "relay"].iter().flat_map(|name| compose["services"][name]["volumes"].as_array().unwrap())
    {
        let file = mount.as_str().unwrap().split(':').next().unwrap();
        assert!(repository().join(file).is_file(), "{file} is mounted");
    }
    let mounted = COMPOSE.matches("- ./migrations/outbox/").count();
    assert_eq!(
        mounted,
        testbed::outbox_migrations().unwrap().len(),
        "every migration of the outbox is mounted"
    );
    let target = compose["services"]["relay"]["build"]["target"].as_str().unwrap();
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!(" AS {target}\n")), "{target}");

    let site = site().await;
    let environment = compose["services"]["relay"]["environment"].as_object().unwrap();
    let value_here = |name: &str, value: &str| match name {
        "OUTBOX_RELAY__SOURCE__HOST" => "127.0.0.1".to_owned(),
        "OUTBOX_RELAY__SINK__BOOTSTRAP_SERVERS" => site.bootstrap.clone(),
        "OUTBOX_RELAY_SOURCE_PASSWORD" => PASSWORD.to_owned(),
        _ => value.to_owned(),
    };
    let variables: Vec<(String, String)> = environment
        .iter()
        .map(|(name, value)| (name.clone(), value_here(name, value.as_str().unwrap())))
        // Its port is taken on this machine; another test has the address of all interfaces.
        .filter(|(name, _)| name != "OUTBOX_RELAY__ADMIN__LISTEN")
        .collect();
    assert_eq!(variables.len(), 3, "{variables:?}");
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // Without the environment it would look for servers that do not exist.
    let nowhere = |text: String| {
        let text = config(&site, &text).replace("host: 127.0.0.1", "host: nowhere.invalid");
        text.replace(&site.bootstrap, "nowhere.invalid:1")
    };
    let relay = site.launch_with(&variables, nowhere);
    relay.until("/readyz", 200, "streaming").await;
    site.execute(&here(&site, EVENT_SQL)).await;
    is_the_event(&site.until_records(1).await[0]);
}
