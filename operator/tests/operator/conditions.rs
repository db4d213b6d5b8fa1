//! Conditions by their causes, which are real; each clears when its cause is gone. Those of servers that are down, of topics and of
//! pods: lifecycle.rs.

use outbox_relay::config::quote;
use serde_json::json;
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions, Login, Security, create_topic};
use testbed::postgres::{Auth, Postgres, PostgresOptions, Shutdown};
use testbed::process::Program;
use testbed::shared;

use crate::stage::Stage;

async fn postgres(settings: &[(&str, &str)], auth: Auth) -> Postgres {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Postgres::start(PostgresOptions { settings, auth, ..PostgresOptions::default() }).await.unwrap()
}

async fn on(purpose: &str, postgres: &Postgres) -> Stage {
    let bootstrap = shared().await.unwrap().kafka_bootstrap().to_owned();
    Stage::on(purpose, &postgres.url("postgres"), &bootstrap).await
}

#[tokio::test]
async fn a_wrong_password() {
    let postgres = postgres(&[], Auth::Scram).await;
    let stage = on("password", &postgres).await;
    stage.database.execute("CREATE ROLE shop LOGIN SUPERUSER PASSWORD 'right'").await.unwrap();
    stage.secret("shop", "wrong").await;
    stage.apply().await;
    stage
        .until(&[
            ("DatabaseReachable", "False", "AuthenticationFailed"),
            ("Ready", "False", "AuthenticationFailed"),
            // What waits for the resource need not wait until its time is over.
            ("Stalled", "True", "AuthenticationFailed"),
            ("Reconciling", "False", "AuthenticationFailed"),
        ])
        .await;
    stage.secret("shop", "right").await;
    stage.until(&[("DatabaseReachable", "True", "Connected"), ("PublicationReady", "True", "Present")]).await;
    let events =
        stage.namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).await.unwrap();
    assert!(events.contains("AuthenticationFailed") && events.contains("PublicationCreated"), "{events}");
}

/// The relay's role has no rights yet; what the condition says is what gives it all it needs.
#[tokio::test]
async fn a_role_without_rights() {
    let mut stage = Stage::shared("grants").await;
    let role = format!("{}-relay", stage.database.name());
    let quoted = quote(&role);
    stage.database.execute(&format!("CREATE ROLE {quoted}")).await.unwrap();
    stage.database.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC").await.unwrap();
    stage.secret_named("credentials", &role, "unused").await;
    stage.secret_named("owner", "postgres", "unused").await;
    stage.spec["source"]["postgres"]["adminCredentialsSecretRef"] = json!({"name": "owner"});
    stage.apply().await;
    stage.until(&[("DatabaseReachable", "False", "PermissionDenied")]).await;
    let said = [
        "get",
        "obr",
        "shop",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"DatabaseReachable\")].message}",
    ];
    let said = stage.namespace.kubectl(&said).await.unwrap();
    let (_, statements) = said.split_once(": ").unwrap();
    let statements: Vec<&str> = statements.split("; ").collect();
    assert_eq!(statements.len(), 5, "{said}");
    for statement in &statements[..4] {
        stage.database.execute(statement).await.unwrap();
    }
    stage.until(&[("DatabaseReachable", "True", "Connected")]).await;
    let folder = Folder::new("relay").unwrap();
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let _relay = stage.start_relay(&folder).await;
    stage.say_that_pods_are_ready().await;
    stage.until(&[("Ready", "True", "Streaming")]).await;
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    stage.database.execute(&format!("DROP OWNED BY {quoted}; DROP ROLE {quoted}")).await.unwrap();
}

#[tokio::test]
async fn too_little_in_the_log_and_no_room_for_a_slot() {
    let mut postgres =
        postgres(&[("wal_level", "replica"), ("max_replication_slots", "1")], Auth::Trust).await;
    let stage = on("settings", &postgres).await;
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("DatabaseReachable", "False", "WalLevelTooLow")]).await;
    stage.database.execute("ALTER SYSTEM SET wal_level = logical").await.unwrap();
    postgres.stop(Shutdown::Fast).await.unwrap();
    postgres.start_again().await.unwrap();
    stage.database.execute("SELECT pg_create_physical_replication_slot('other')").await.unwrap();
    stage.until(&[("DatabaseReachable", "True", "Connected"), ("SlotReady", "False", "NoFreeSlot")]).await;
    stage.database.execute("SELECT pg_drop_replication_slot('other')").await.unwrap();
    stage.until(&[("SlotReady", "False", "WaitingForRelay")]).await;
}

/// What the relay meets shows with its reason, by its own account; the operator repairs nothing that would hide a loss.
#[tokio::test]
async fn what_a_running_relay_meets() {
    let stage = Stage::shared("meets").await;
    let folder = Folder::new("relay").unwrap();
    let relay = stage.until_streaming(&folder).await;
    let nowhere = format!("{}-nowhere", stage.topic);
    stage.insert(nowhere.trim_start_matches("outbox.event.")).await;
    stage.until(&[("Streaming", "False", "TopicMissing"), ("Ready", "False", "TopicMissing")]).await;
    create_topic(&stage.bootstrap, &nowhere, 1, 1, &[]).await.unwrap();
    stage.until(&[("Ready", "True", "Streaming")]).await;
    lose_slot(&stage, relay).await;
    let _relay = stage.start_relay(&folder).await;
    stage
        .until(&[
            ("SlotReady", "False", "SlotLost"),
            ("Ready", "False", "SlotLost"),
            ("Streaming", "False", "SlotLost"),
        ])
        .await;
}

async fn lose_slot(stage: &Stage, mut relay: Program) {
    relay.kill().await.unwrap();
    stage.until(&[("Streaming", "Unknown", "RelayUnreachable")]).await;
    let slot = stage.database.name();
    stage.database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    stage.until(&[("SlotReady", "False", "SlotLost")]).await;
}

/// A topic that another resource has, by another name of the same cluster.
#[tokio::test]
async fn of_two_resources_for_one_topic_the_older_has_it() {
    let kafka = Kafka::start(KafkaOptions::default()).await.unwrap();
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("topics", &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    stage.another_second().await;
    let slot = format!("{}_rival", stage.database.name());
    stage.spec["source"]["postgres"]["slot"]["name"] = json!(slot);
    stage.spec["sink"]["kafka"]["bootstrapServers"] =
        json!(kafka.bootstrap().replace("127.0.0.1", "localhost"));
    stage.apply_as("rival").await;
    stage
        .until_of(
            "rival",
            &[("TopicsReady", "False", "ResourceConflict"), ("KafkaReachable", "True", "Connected")],
        )
        .await;
    stage.namespace.kubectl(&["delete", "obr", "shop", "--timeout=120s"]).await.unwrap();
    stage.until_of("rival", &[("TopicsReady", "True", "AsDeclared")]).await;
}

/// Credentials without permissions, and an administrator's.
#[tokio::test]
async fn kafka_credentials_that_may_not_create_topics() {
    let login = |user: &str| Login { user: user.to_owned(), password: format!("{user}-secret") };
    let security = Security {
        logins: vec![login("shipper"), login("admin")],
        authorize: true,
        super_users: vec!["admin".to_owned()],
        ..Security::default()
    };
    let options = KafkaOptions { security: Some(security), ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await.unwrap();
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("rights", &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    stage.make_secret().await;
    stage.secret_named("shipper", "shipper", "shipper-secret").await;
    stage.secret_named("admin", "admin", "admin-secret").await;
    let sink = &mut stage.spec["sink"]["kafka"];
    sink["bootstrapServers"] = json!(kafka.secure_bootstrap());
    sink["sasl"] = json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "shipper"}});
    stage.apply().await;
    stage.until(&[("KafkaReachable", "True", "Connected"), ("TopicsReady", "False", "TopicFailed")]).await;
    // An existing topic that the user cannot see is not taken for one that is as declared.
    create_topic(&stage.bootstrap, &stage.topic, 3, 1, &[]).await.unwrap();
    stage.until(&[("TopicsReady", "False", "TopicFailed")]).await;
    stage.spec["sink"]["kafka"]["adminCredentialsSecretRef"] = json!({"name": "admin"});
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
}

/// Credentials are the user's name and the password: a resource that knows the name alone gets no client that the operator has open for
/// others, and closes none. A corrected password is used.
#[tokio::test]
async fn a_wrong_password_of_kafka_affects_only_its_own_resource() {
    let login = |user: &str| Login { user: user.to_owned(), password: format!("{user}-secret") };
    let security = Security { logins: vec![login("first"), login("second")], ..Security::default() };
    let options = KafkaOptions { security: Some(security), ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await.unwrap();
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("passwords", &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    stage.make_secret().await;
    stage.spec["sink"]["kafka"]["bootstrapServers"] = json!(kafka.secure_bootstrap());
    let slot = stage.database.name().to_owned();
    let apply = async |stage: &mut Stage, name: &str, user: &str, password: &str| {
        stage.secret_named(name, user, password).await;
        stage.spec["sink"]["kafka"]["sasl"] =
            json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": name}});
        stage.spec["source"]["postgres"]["slot"]["name"] =
            json!(format!("{slot}_{}", name.replace('-', "_")));
        stage.spec["topics"][0]["name"] = json!(format!("{}.{name}", stage.topic));
        stage.apply_as(name).await;
    };
    apply(&mut stage, "right", "first", "first-secret").await;
    apply(&mut stage, "also-wrong", "second", "nonsense").await;
    stage.until_of("right", &[("TopicsReady", "True", "AsDeclared")]).await;
    stage.until_of("also-wrong", &[("KafkaReachable", "False", "KafkaAuthenticationFailed")]).await;
    // Each way: beside an open client of the right password, and of a wrong one.
    apply(&mut stage, "wrong", "first", "nonsense").await;
    apply(&mut stage, "also-right", "second", "second-secret").await;
    stage.until_of("also-right", &[("TopicsReady", "True", "AsDeclared")]).await;
    stage.until_of("wrong", &[("KafkaReachable", "False", "KafkaAuthenticationFailed")]).await;
    stage.until_of("right", &[("KafkaReachable", "True", "Connected")]).await;
    stage.secret_named("wrong", "first", "first-secret").await;
    stage.until_of("wrong", &[("TopicsReady", "True", "AsDeclared")]).await;
}

/// It is made again, and the relay does not take it for the one it knew: rows may be missing from the stream.
#[tokio::test]
async fn a_publication_that_is_dropped_under_a_running_relay() {
    let stage = Stage::shared("dropped").await;
    let folder = Folder::new("relay").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    stage.database.execute("DROP PUBLICATION outbox").await.unwrap();
    stage.insert(stage.database.name()).await;
    stage
        .until(&[("Streaming", "False", "PublicationChanged"), ("PublicationReady", "True", "Present")])
        .await;
}
