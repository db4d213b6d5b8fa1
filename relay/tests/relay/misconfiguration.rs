//! Wrong settings and missing objects: one sentence that says what to do, no panic, no secret.

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use testbed::kafka::create_topic;
use testbed::postgres::{Auth, PgVersion, Postgres, PostgresOptions};
use testbed::{Database, shared};

use crate::fixture::{OwnServers, Relay, Site, TIMEOUT, heavy_permit};

pub async fn fresh() -> Site {
    let servers = shared().await.unwrap();
    Site::without_topic(Database::fresh("wrong").await.unwrap(), servers.kafka_bootstrap())
}

/// Asserts that the relay stays up, reports the reason, and shows no secret.
pub async fn shows(relay: &Relay, reason: &str, remedy: &str) {
    let text = relay.until("/readyz", 503, reason).await;
    assert!(text.contains(remedy), "{text}");
    assert_eq!(relay.ask("/livez").await.unwrap().0, 200);
    let status = relay.status().await;
    assert_eq!(status["problem"]["reason"], reason, "{status}");
    let said = format!("{}{status}{}", relay.program.log(), relay.ask("/metrics").await.unwrap().1);
    assert!(!said.contains("testbed-password") && !said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn a_bad_file_ends_with_64_and_names_the_field() {
    let site = fresh().await;
    let cases: [(&str, &str, &str); 10] = [
        ("version: 1", "version: [", "is not YAML"),
        ("name: relay", "name: relay\nnome: x", "nome"),
        ("{name: outbox}", "{name: outbox, creationPolicy: Sometimes}", "source.publication.creationPolicy"),
        ("slot: {name: ", "slot: {name: Not-", "source.slot.name: 'Not-"),
        ("user: postgres", "user: postgres, password: hunter2", "source.password"),
        ("mode: disable", "mode: prefer", "source.tls.mode"),
        ("mode: disable", "caFile: /no/such/ca.pem", "cannot read source.tls.caFile /no/such/ca.pem"),
        (
            "mode: disable",
            "mode: disable, channelBinding: require",
            "source.tls.channelBinding: require needs",
        ),
        ("host: 127.0.0.1", "host: '127.0.0.1,:'", "source.host: ':' is not a host"),
        ("sink: {", "sink: {producers: 99, ", "sink.producers: 99 is outside 1 to 16"),
    ];
    for (good, bad, said) in cases {
        let mut relay = site.launch(|text| text.replacen(good, bad, 1));
        let status = relay.program.wait(TIMEOUT).await.unwrap();
        let log = relay.program.log();
        assert_eq!(status.code(), Some(64), "{log}");
        assert!(log.contains(said) && log.contains("invalid configuration"), "{said}: {log}");
        assert!(!log.contains("hunter2") && !log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_bad_command_line_ends_with_64() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_outbox-relay")).arg("walk").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[tokio::test]
async fn a_database_that_does_not_exist() {
    let site = fresh().await;
    let port = testbed::net::free_port().unwrap();
    let name = site.database.name().to_owned();
    let nobody = site.launch(|text| {
        let at = text.find("port: ").unwrap();
        let until = at + text[at..].find(',').unwrap();
        format!("{}port: {port}{}", &text[..at], &text[until..])
    });
    shows(&nobody, "DatabaseUnreachable", "check that PostgreSQL runs").await;
    let other = site.launch(|text| text.replace(&name, "no_such_database"));
    shows(&other, "DatabaseMissing", "check source.database").await;
}

#[tokio::test]
async fn a_wrong_password() {
    let _permit = heavy_permit().await;
    let options = PostgresOptions { auth: Auth::Scram, ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let database = Database::on(&postgres.url("postgres"), "scram").await.unwrap();
    let site = Site::without_topic(database, shared().await.unwrap().kafka_bootstrap());
    site.relay().await.stop().await;
    site.execute("ALTER USER postgres PASSWORD 'another'").await;
    let relay = site.launch(|text| text);
    shows(&relay, "AuthenticationFailed", "check source.user and its password").await;
    // Over the socket the server requires no password.
    let socket = PgConnectOptions::new_without_pgpass().socket(postgres.socket_directory());
    let mut sql = socket.port(postgres.port()).username("postgres").connect().await.unwrap();
    sqlx::raw_sql("ALTER USER postgres PASSWORD 'testbed-password'").execute(&mut sql).await.unwrap();
    relay.until_ready().await;
}

#[tokio::test]
async fn missing_tables_and_a_publication_that_does_not_fit() {
    let site = fresh().await;
    site.execute("ALTER TABLE outbox RENAME TO outbox_gone").await;
    let relay = site.launch(|text| text);
    shows(&relay, "TableMissing", "migrations/outbox in its schema").await;
    site.execute(
        "ALTER TABLE outbox_gone RENAME TO outbox; ALTER TABLE outbox_checkpoint RENAME TO checkpoint_gone",
    )
    .await;
    shows(&relay, "CheckpointTableMissing", "migrations/outbox/*_outbox_checkpoint*.sql").await;
    site.execute(
        "ALTER TABLE checkpoint_gone RENAME TO outbox_checkpoint;
         CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'update', publish_via_partition_root = true)",
    )
    .await;
    shows(&relay, "PublicationUnsuitable", "alter the publication").await;
    site.execute("ALTER PUBLICATION outbox SET (publish = 'insert')").await;
    relay.until_ready().await;
}

#[tokio::test]
async fn a_server_without_logical_wal() {
    let _permit = heavy_permit().await;
    let servers = OwnServers::start(PgVersion::V18, &[("wal_level", "replica")]).await;
    let site = servers.site().await;
    shows(&site.launch(|text| text), "WalLevelTooLow", "set wal_level = logical").await;
}

#[tokio::test]
async fn a_slot_that_another_relay_holds() {
    let site = Site::shared().await;
    let first = site.relay().await;
    let second = site.relay().await;
    second.until("/readyz", 200, "standby").await;
    assert_eq!(second.status().await["problem"]["reason"], "SlotActive");
    first.kill().await;
    second.until("/readyz", 200, "streaming").await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
}

#[tokio::test]
async fn a_topic_that_does_not_exist() {
    let site = fresh().await;
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    shows(&relay, "TopicMissing", "create the topic").await;
    create_topic(&site.bootstrap, &site.topic(), 1, 1, &[]).await.unwrap();
    relay.until_ready().await;
    site.until_records(1).await;
}

#[tokio::test]
async fn a_kafka_that_is_not_reachable() {
    let mut site = fresh().await;
    site.bootstrap = format!("127.0.0.1:{}", testbed::net::free_port().unwrap());
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    let text = relay.until("/readyz", 503, "KafkaUnreachable").await;
    assert!(text.contains("sink.bootstrapServers"), "{text}");
}
