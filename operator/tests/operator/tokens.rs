//! Short-lived credentials: tokens for Kafka, and a password of PostgreSQL that only the relay's pods have.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::issuer::{Grant, Issuer};
use testbed::kafka::{BrokerTls, Kafka, KafkaOptions, Security, TokenCheck};
use testbed::postgres::{Auth, Postgres, PostgresOptions};
use testbed::{shared, wait};

use crate::cluster::apply;
use crate::desired;
use crate::stage::{SOON, Stage};

/// A broker that accepts nothing but tokens, and their issuer.
struct Tokens {
    kafka: Kafka,
    issuer: Arc<Issuer>,
    authority: Authority,
}

impl Tokens {
    async fn start() -> Tokens {
        let authority = Authority::new("brokers and issuer").unwrap();
        let certificate = authority.server(&["localhost"]).unwrap();
        let grant = Grant {
            client_id: "shipper".to_owned(),
            client_secret: "shipper-secret".to_owned(),
            audience: "kafka".to_owned(),
            lifetime: Duration::from_secs(600),
        };
        let issuer = Issuer::new(grant, Some(certificate.clone())).unwrap();
        let security = Security {
            tls: Some(BrokerTls { certificate, client_authority: None }),
            tokens: Some(TokenCheck {
                keys: issuer.keys().to_string(),
                issuer: issuer.name.clone(),
                audience: "kafka".to_owned(),
            }),
            ..Security::default()
        };
        let options = KafkaOptions { security: Some(security), ..KafkaOptions::default() };
        Tokens { kafka: Kafka::start(options).await.unwrap(), issuer, authority }
    }

    /// Creates the Secret of the CA, and writes it where a pod has it.
    async fn prepare(&self, stage: &mut Stage, folder: &Folder) {
        let ca = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca"},
                        "stringData": {"ca.crt": self.authority.pem()}});
        apply(&stage.namespace, &ca).await.unwrap();
        stage.make_secret().await;
        write(folder, "kafka-ca/ca.crt", self.authority.pem());
        let sink = &mut stage.spec["sink"]["kafka"];
        sink["bootstrapServers"] = json!(self.kafka.secure_bootstrap());
        sink["tls"] = json!({"caSecretRef": {"name": "ca"}});
    }
}

/// Writes a file as a pod has it.
fn write(folder: &Folder, path: &str, content: &str) {
    let path = folder.path().join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

async fn messages(stage: &Stage) -> String {
    let messages = ["get", "obr", "shop", "-o", "jsonpath={.status.conditions[*].message}"];
    stage.namespace.kubectl(&messages).await.unwrap()
}

#[tokio::test]
async fn topics_are_declared_and_events_delivered_with_tokens_of_an_endpoint() {
    let tokens = Tokens::start().await;
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("tokens", &servers.postgres_url("postgres"), &tokens.kafka.bootstrap()).await;
    let folder = Folder::new("relay").unwrap();
    tokens.prepare(&mut stage, &folder).await;
    stage.secret_named("client", "shipper", "wrong-secret").await;
    stage.spec["sink"]["kafka"]["sasl"] = json!({
        "mechanism": "OAUTHBEARER", "credentialsSecretRef": {"name": "client"},
        "oauthbearer": {"tokenEndpoint": {"url": tokens.issuer.token_endpoint(), "caSecretRef": {"name": "ca"}}},
    });
    stage.apply().await;
    stage.until(&[("KafkaReachable", "False", "KafkaAuthenticationFailed")]).await;
    let said = messages(&stage).await;
    assert!(said.contains("the token endpoint https://localhost"), "{said}");

    let _answering = tokens.issuer.answer().await.unwrap();
    let refused = wait::until("the refusal", SOON, async || {
        let said = messages(&stage).await;
        if said.contains("401 (invalid_client") { Ok(said) } else { Err(said) }
    });
    let refused = refused.await.unwrap();
    assert!(!refused.contains("wrong-secret"), "{refused}");
    stage.secret_named("client", "shipper", "shipper-secret").await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;

    write(&folder, "kafka/username", "shipper");
    write(&folder, "kafka/password", "shipper-secret");
    write(&folder, "kafka-token-endpoint-ca/ca.crt", tokens.authority.pem());
    let _relay = stage.until_streaming(&folder).await;
    stage.insert(stage.database.name()).await;
    stage.until_records(1).await;

    // From now on only the pods have credentials: topics stay, and are managed no more.
    stage.spec["sink"]["kafka"]["sasl"] =
        json!({"mechanism": "OAUTHBEARER", "oauthbearer": {"tokenFile": "/run/kafka/token"}});
    stage.spec["topics"] = json!([]);
    stage.apply().await;
    stage.until(&[("KafkaReachable", "Unknown", "NoCredentials")]).await;
    let topics = stage.namespace.kubectl(&["get", "obr", "shop", "-o", "jsonpath={.status.topics}"]).await;
    assert_eq!(topics.unwrap().trim_start_matches("[]"), "");
    assert!(stage.has_topic(&stage.topic).await);
    wait::until("the Event", SOON, async || {
        let events = ["get", "events", "-o", "jsonpath={.items[*].message}"];
        let events = stage.namespace.kubectl(&events).await.unwrap();
        let is_told = events.contains("is left as it is: the operator has no credentials");
        if is_told { Ok(()) } else { Err(events) }
    })
    .await
    .unwrap();
}

/// The operator has neither the token nor the relay's password: it reports that, and does the rest as an administrator.
#[tokio::test]
async fn credentials_that_only_the_pods_have() {
    let tokens = Tokens::start().await;
    let postgres =
        Postgres::start(PostgresOptions { auth: Auth::Scram, ..PostgresOptions::default() }).await.unwrap();
    let mut stage = Stage::on("pods", &postgres.url("postgres"), &tokens.kafka.bootstrap()).await;
    let folder = Folder::new("relay").unwrap();
    tokens.prepare(&mut stage, &folder).await;
    tokens.kafka.create_topic(&stage.topic, 3, 1, &[]).await.unwrap();
    for statement in [
        "CREATE ROLE shipper LOGIN REPLICATION PASSWORD 'first'",
        "GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO shipper",
        "GRANT SELECT ON outbox TO shipper",
    ] {
        stage.database.execute(statement).await.unwrap();
    }
    stage.secret_named("owner", "postgres", "testbed-password").await;
    let (password, token) = (folder.path().join("password"), folder.path().join("token"));
    write(&folder, "password", "first");
    write(&folder, "token", &tokens.issuer.token().unwrap());
    let source = stage.spec["source"]["postgres"].as_object_mut().unwrap();
    source.remove("credentialsSecretRef");
    source.insert("username".into(), json!("shipper"));
    source.insert("passwordFile".into(), json!(password));
    source.insert("adminCredentialsSecretRef".into(), json!({"name": "owner"}));
    stage.spec["sink"]["kafka"]["sasl"] =
        json!({"mechanism": "OAUTHBEARER", "oauthbearer": {"tokenFile": token}});
    stage.spec["topics"] = json!([]);
    let _relay = stage.until_streaming(&folder).await;
    stage
        .until(&[("KafkaReachable", "Unknown", "NoCredentials"), ("TopicsReady", "True", "AsDeclared")])
        .await;
    stage.insert(stage.database.name()).await;
    stage.until_records(1).await;
}

#[test]
fn the_relay_gets_what_the_resource_says_of_tokens() {
    let mut spec = desired::least();
    spec["sink"]["kafka"]["sasl"] = json!({
        "mechanism": "OAUTHBEARER", "credentialsSecretRef": {"name": "client", "username": "shipper"},
        "oauthbearer": {
            "tokenEndpoint": {"url": "https://issuer.test/token", "scope": "kafka", "caSecretRef": {"name": "issuer-ca"}},
            "extensions": {"logicalCluster": "lkc-1"},
        },
    });
    let config: Value = serde_saphyr::from_str(desired::file(&spec).as_str()).unwrap();
    assert_eq!(
        config["sink"]["sasl"],
        json!({
            "mechanism": "OAUTHBEARER",
            "clientCredentials": {
                "tokenEndpoint": "https://issuer.test/token", "scope": "kafka", "clientId": "shipper",
                "caFile": "/etc/outbox-relay/secrets/kafka-token-endpoint-ca/ca.crt",
                "clientSecretFile": "/etc/outbox-relay/secrets/kafka/password",
            },
            "extensions": {"logicalCluster": "lkc-1"},
        })
    );
    let workload = desired::built(&spec);
    let volumes = json!(desired::pod(&workload).volumes).to_string();
    assert!(volumes.contains("issuer-ca") && volumes.contains("client"), "{volumes}");

    spec["sink"]["kafka"]["sasl"] = json!({"mechanism": "OAUTHBEARER", "oauthbearer": {"tokenFile": "/run/kafka/token", "tokenLifetimeSeconds": 60}});
    let source = spec["source"]["postgres"].as_object_mut().unwrap();
    source.remove("credentialsSecretRef");
    source.insert("username".into(), json!("shipper"));
    source.insert("passwordFile".into(), json!("/run/database/password"));
    let config: Value = serde_saphyr::from_str(desired::file(&spec).as_str()).unwrap();
    assert_eq!(
        config["sink"]["sasl"],
        json!({"mechanism": "OAUTHBEARER", "tokenFile": "/run/kafka/token", "tokenLifetimeSeconds": 60})
    );
    assert_eq!(config["source"]["passwordFile"], "/run/database/password");

    spec["sink"]["kafka"]["sasl"] = json!({"mechanism": "AWS_MSK_IAM", "region": "eu-central-1"});
    let config: Value = serde_saphyr::from_str(desired::file(&spec).as_str()).unwrap();
    assert_eq!(config["sink"]["sasl"], json!({"mechanism": "AWS_MSK_IAM", "region": "eu-central-1"}));
}
