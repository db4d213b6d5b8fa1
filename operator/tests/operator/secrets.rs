//! Secrets in the forms in which other operators make them are referenced as they are, and what they hold gives a relay that delivers.

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use outbox_operator::metrics::Metrics;
use outbox_operator::resource::OutboxRelay;
use outbox_operator::secrets::{PostgresSecrets, Reader};
use serde_json::{Value, json};
use testbed::certificates::{Authority, Certificate};
use testbed::guard::Folder;
use testbed::kafka::{BrokerTls, Kafka, KafkaOptions, Login, Security};
use testbed::postgres::{Auth, Postgres, PostgresOptions, ServerTls};
use testbed::shared;

use crate::cluster::{apply, least, namespace, relay, with};
use crate::desired;
use crate::stage::Stage;

/// As its operator makes it: all of its keys, of which some are no text.
fn secret(name: &str, values: &Value) -> Value {
    let noise = json!({"user.p12": "/////w=="});
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values, "data": noise})
}

/// Strimzi's Secret of a KafkaUser with `scram-sha-512`.
fn strimzi_scram(user: &str) -> Value {
    let jaas =
        format!("org.apache.kafka.common.security.scram.ScramLoginModule required username=\"{user}\";");
    secret(user, &json!({"password": format!("{user}-secret"), "sasl.jaas.config": jaas}))
}

/// Strimzi's Secret of a KafkaUser with `tls`.
fn strimzi_tls(user: &str, clients: &Authority, certificate: &Certificate) -> Value {
    secret(
        user,
        &json!({"ca.crt": clients.pem(), "user.crt": certificate.pem, "user.key": certificate.key, "user.password": "p"}),
    )
}

fn strimzi_certificate(user: &str) -> Value {
    json!({"name": user, "certificateKey": "user.crt", "privateKeyKey": "user.key"})
}

/// The user name is that of the KafkaUser, and in no Secret.
#[tokio::test]
async fn a_kafka_user_with_a_password() {
    let login = |user: &str| Login { user: user.to_owned(), password: format!("{user}-secret") };
    let security = Security { logins: vec![login("shipper"), login("admin")], ..Security::default() };
    let options = KafkaOptions { security: Some(security), ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await.unwrap();
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("strimzi", &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    for user in ["shipper", "admin"] {
        apply(&stage.namespace, &strimzi_scram(user)).await.unwrap();
    }
    let sink = &mut stage.spec["sink"]["kafka"];
    sink["bootstrapServers"] = json!(kafka.secure_bootstrap());
    sink["sasl"] = json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "shipper"}});
    stage.make_secret().await;
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "SecretUnusable")]).await;
    let said =
        stage.namespace.kubectl(&["get", "obr", "shop", "-o", "jsonpath={.status.conditions[*].message}"]);
    let said = said.await.unwrap();
    assert!(said.contains("Secret shipper has no key 'username': add it, or give the user name"), "{said}");
    let sink = &mut stage.spec["sink"]["kafka"];
    sink["sasl"]["credentialsSecretRef"]["username"] = json!("shipper");
    sink["adminCredentialsSecretRef"] = json!({"name": "admin", "username": "admin"});
    let folder = Folder::new("relay").unwrap();
    write(&folder, "kafka/password", "shipper-secret");
    let _relay = stage.until_streaming(&folder).await;
}

/// Brokers know the relay and the administrator by their certificates; the relay's may not create topics.
#[tokio::test]
async fn a_kafka_user_with_a_certificate() {
    let (brokers, clients) = (Authority::new("cluster-ca").unwrap(), Authority::new("clients-ca").unwrap());
    let tls = BrokerTls {
        certificate: brokers.server(&["127.0.0.1", "localhost"]).unwrap(),
        client_authority: Some(clients.pem().to_owned()),
    };
    let security = Security {
        tls: Some(tls),
        authorize: true,
        super_users: vec!["CN=admin".to_owned()],
        ..Security::default()
    };
    let options = KafkaOptions { security: Some(security), ..KafkaOptions::default() };
    let kafka = Kafka::start(options).await.unwrap();
    let servers = shared().await.unwrap();
    let mut stage = Stage::on("mtls", &servers.postgres_url("postgres"), &kafka.bootstrap()).await;
    stage.make_secret().await;
    for user in ["shipper", "admin"] {
        let certificate = clients.client(user).unwrap();
        apply(&stage.namespace, &strimzi_tls(user, &clients, &certificate)).await.unwrap();
    }
    let ca = secret("cluster-ca-cert", &json!({"ca.crt": brokers.pem()}));
    apply(&stage.namespace, &ca).await.unwrap();
    let sink = &mut stage.spec["sink"]["kafka"];
    sink["bootstrapServers"] = json!(kafka.secure_bootstrap());
    sink["tls"] = json!({
        "caSecretRef": {"name": "cluster-ca-cert"}, "certificateSecretRef": strimzi_certificate("shipper"),
    });
    stage.apply().await;
    stage.until(&[("KafkaReachable", "True", "Connected"), ("TopicsReady", "False", "TopicFailed")]).await;
    stage.spec["sink"]["kafka"]["adminCertificateSecretRef"] = strimzi_certificate("admin");
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
}

/// CloudNativePG's certificate of a role, and of the owner; no role has a password that is used.
#[tokio::test]
async fn a_role_that_logs_in_with_its_certificate_alone() {
    let (servers, clients) = (Authority::new("server-ca").unwrap(), Authority::new("client-ca").unwrap());
    let tls = ServerTls {
        certificate: servers.server(&["127.0.0.1"]).unwrap(),
        client_authority: Some(clients.pem().to_owned()),
    };
    let options = PostgresOptions { auth: Auth::Certificate, tls: Some(tls), ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let kafka = shared().await.unwrap().kafka_bootstrap().to_owned();
    let mut stage = Stage::on("certificate", &postgres.url("postgres"), &kafka).await;
    stage.database.execute("CREATE ROLE shipper LOGIN REPLICATION").await.unwrap();
    let grants =
        "GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO shipper; GRANT SELECT ON outbox TO shipper";
    stage.database.execute(grants).await.unwrap();
    let folder = Folder::new("relay").unwrap();
    for (role, name) in [("shipper", "shipper-cert"), ("postgres", "owner-cert")] {
        let certificate = clients.client(role).unwrap();
        let Certificate { pem, key } = &certificate;
        apply(&stage.namespace, &secret(name, &json!({"tls.crt": pem, "tls.key": key}))).await.unwrap();
        if role == "shipper" {
            write(&folder, "postgres-tls/tls.crt", pem);
            write(&folder, "postgres-tls/tls.key", key);
        }
    }
    write(&folder, "postgres-ca/ca.crt", servers.pem());
    apply(&stage.namespace, &secret("db-ca", &json!({"ca.crt": servers.pem()}))).await.unwrap();
    let source = stage.spec["source"]["postgres"].as_object_mut().unwrap();
    source.remove("credentialsSecretRef");
    source.insert("username".into(), json!("shipper"));
    source.insert(
        "tls".into(),
        json!({"caSecretRef": {"name": "db-ca"}, "certificateSecretRef": {"name": "shipper-cert"}}),
    );
    stage.apply().await;
    stage
        .until(&[
            ("DatabaseReachable", "True", "Connected"),
            ("PublicationReady", "False", "PermissionDenied"),
        ])
        .await;
    stage.spec["source"]["postgres"]["adminCertificateSecretRef"] =
        json!({"name": "owner-cert", "username": "postgres"});
    let _relay = stage.until_streaming(&folder).await;
}

/// A file as a pod has it.
fn write(folder: &Folder, path: &str, content: &str) {
    let path = folder.path().join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// A CA's private key, for example, is in the same Secret as its certificate.
#[tokio::test]
async fn of_a_secret_only_the_keys_that_are_referenced_are_kept() {
    let namespace = namespace("kept").await;
    let app = json!({"username": "app", "password": "p", "host": "shop-db-rw", "uri": "postgresql://", "pgpass": "x"});
    for (name, values) in [("shop-db-app", app), ("shop-db-ca", json!({"ca.crt": "c", "ca.key": "k"}))] {
        apply(&namespace, &secret(name, &values)).await.unwrap();
    }
    let spec = with(least(), "/source/postgres/credentialsSecretRef", json!({"name": "shop-db-app"}));
    let spec = with(spec, "/source/postgres/tls", json!({"caSecretRef": {"name": "shop-db-ca"}}));
    let relay: OutboxRelay = serde_json::from_value(relay(&spec)).unwrap();
    let kubeconfig = Kubeconfig::read_from(namespace.cluster().kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let secrets = Api::namespaced(Client::try_from(config).unwrap(), namespace.name());
    let metrics = Metrics::new().unwrap();
    let mut reader = Reader::new(secrets, &metrics, None);
    let read = PostgresSecrets::read(&mut reader, &relay.spec.source.postgres).await.unwrap();
    assert_eq!(read.user, "app");
    let used = reader.into_used();
    let names: Vec<_> = used.names().collect();
    assert_eq!(names, [("shop-db-app", "password"), ("shop-db-app", "username"), ("shop-db-ca", "ca.crt")]);
}

/// A user name that is a text of the resource is in the relay's configuration, and in no file.
#[test]
fn what_the_resource_says_itself_is_not_mounted() {
    let mut spec = desired::least();
    spec["source"]["postgres"]["credentialsSecretRef"] = json!({"name": "db", "username": "shipper"});
    spec["sink"]["kafka"]["sasl"] = json!({
        "mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "shop-user", "username": "shop-user"},
    });
    let config: Value = serde_saphyr::from_str(desired::file(&spec).as_str()).unwrap();
    assert_eq!(config["sink"]["sasl"]["username"], "shop-user");
    assert_eq!(config["sink"]["sasl"].get("usernameFile"), None);
    let workload = desired::built(&spec);
    let volumes = json!(desired::pod(&workload).volumes);
    let password = json!([{"key": "password", "path": "password"}]);
    assert_eq!(volumes[0]["secret"]["items"], password);
    assert_eq!(volumes[1]["secret"]["items"], password);
}

/// Keys of other names are files of the usual ones; an administrator's certificate is in no pod.
#[test]
fn a_certificate_is_mounted_by_the_names_of_its_keys() {
    let mut spec = desired::least();
    spec["sink"]["kafka"]["tls"] = json!({"certificateSecretRef": strimzi_certificate("shop-user")});
    spec["sink"]["kafka"]["adminCertificateSecretRef"] = strimzi_certificate("admin");
    let source = spec["source"]["postgres"].as_object_mut().unwrap();
    source.remove("credentialsSecretRef");
    source.insert("username".into(), json!("shipper"));
    source.insert("tls".into(), json!({"certificateSecretRef": {"name": "shipper-cert"}}));
    source.insert("adminCertificateSecretRef".into(), json!({"name": "owner-cert", "username": "owner"}));
    let config: Value = serde_saphyr::from_str(desired::file(&spec).as_str()).unwrap();
    assert_eq!(config["source"].get("passwordFile"), None);
    assert_eq!(config["sink"]["tls"]["certFile"], "/etc/outbox-relay/secrets/kafka-tls/tls.crt");
    let workload = desired::built(&spec);
    let volumes = json!(desired::pod(&workload).volumes);
    assert_eq!(volumes[0]["secret"]["secretName"], "shipper-cert");
    assert_eq!(
        volumes[1]["secret"]["items"],
        json!([{"key": "user.crt", "path": "tls.crt"}, {"key": "user.key", "path": "tls.key"}])
    );
    let all = volumes.to_string();
    assert!(!all.contains("admin") && !all.contains("owner"), "{all}");
}

#[tokio::test]
async fn references_that_contradict_each_other_are_refused_with_a_reason() {
    let namespace = namespace("references").await;
    let (postgres, kafka) = ("/source/postgres", "/sink/kafka");
    let secret = json!({"name": "s"});
    let both = json!({"name": "s", "username": "u", "usernameKey": "k"});
    let sasl = json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": secret});
    let plain = json!({"mode": "disable"});
    let (own, owner) = (json!({"certificateSecretRef": secret}), json!({"name": "s", "username": "o"}));
    let bound = json!({"channelBinding": "require", "certificateSecretRef": secret});
    let file = json!({"tokenFile": "/run/kafka/token"});
    let oauth =
        |oauthbearer: Value| json!({"sasl": {"mechanism": "OAUTHBEARER", "oauthbearer": oauthbearer}});
    let cases = [
        (postgres, json!({"credentialsSecretRef": both}), "give either username"),
        (postgres, json!({"credentialsSecretRef": null}), "credentialsSecretRef is required"),
        (postgres, json!({"username": "u", "tls": own}), "username is for a role without a password"),
        (postgres, json!({"username": "u", "credentialsSecretRef": null}), "set tls.certificateSecretRef"),
        (
            postgres,
            json!({"username": "u", "credentialsSecretRef": null, "tls": bound}),
            "without a password leave it at prefer",
        ),
        (
            postgres,
            json!({"tls": {"mode": "disable", "channelBinding": "require"}}),
            "channelBinding: require needs TLS",
        ),
        (postgres, json!({"tls": {"channelBinding": "always"}}), "supported values: \"prefer\", \"require\""),
        (
            postgres,
            json!({"adminCertificateSecretRef": owner, "adminCredentialsSecretRef": secret}),
            "give either adminCredentialsSecretRef or adminCertificateSecretRef",
        ),
        (
            postgres,
            json!({"adminCertificateSecretRef": owner, "tls": plain}),
            "adminCertificateSecretRef is not used without TLS",
        ),
        (postgres, json!({"adminCertificateSecretRef": secret}), "username: Required value"),
        (kafka, json!({"adminCertificateSecretRef": secret, "sasl": sasl}), "use adminCredentialsSecretRef"),
        (
            kafka,
            json!({"adminCertificateSecretRef": secret, "tls": plain}),
            "adminCertificateSecretRef is not used without TLS",
        ),
        (
            postgres,
            json!({"passwordFile": "/run/password", "adminCredentialsSecretRef": secret}),
            "passwordFile takes the place of credentialsSecretRef",
        ),
        (
            postgres,
            json!({"passwordFile": "/run/password", "username": "u", "credentialsSecretRef": null}),
            "the operator does not have passwordFile",
        ),
        (kafka, json!({"sasl": {"mechanism": "PLAIN"}}), "PLAIN and SCRAM need credentialsSecretRef"),
        (
            kafka,
            json!({"sasl": {"mechanism": "OAUTHBEARER"}}),
            "mechanism OAUTHBEARER needs the field oauthbearer",
        ),
        (
            kafka,
            json!({"sasl": {"mechanism": "PLAIN", "credentialsSecretRef": secret, "oauthbearer": file}}),
            "no other mechanism uses it",
        ),
        (
            kafka,
            oauth(json!({"tokenFile": "/t", "tokenEndpoint": {"url": "https://i"}})),
            "give either tokenEndpoint or tokenFile",
        ),
        (kafka, oauth(json!({"tokenEndpoint": {"url": "https://i"}})), "needs credentialsSecretRef"),
        (kafka, oauth(json!({"tokenEndpoint": {"url": "http://i"}})), "use https, or set allowHttp"),
        (kafka, oauth(file.clone()), "leave topics empty"),
        (
            kafka,
            oauth(json!({"tokenFile": "/t", "extensions": {"auth": "x"}})),
            "the name of a SASL extension",
        ),
        (
            kafka,
            oauth(json!({"tokenFile": "/t", "extensions": {"pool-1": "x"}})),
            "the name of a SASL extension",
        ),
        (kafka, json!({"sasl": {"mechanism": "AWS_MSK_IAM"}}), "needs the region of the cluster"),
        (
            kafka,
            json!({"sasl": {"mechanism": "AWS_MSK_IAM", "region": "eu-central-1", "credentialsSecretRef": secret}}),
            "uses the AWS credentials of the relay's pods",
        ),
        ("", json!({"heartbeat": {"intervalSeconds": 3601}}), "heartbeat.intervalSeconds"),
        ("", json!({"shutdown": {"graceSeconds": 0}}), "shutdown.graceSeconds"),
    ];
    for (place, values, said) in cases {
        let refused = apply(&namespace, &relay(&changed(place, &values))).await;
        let refused = refused.expect_err(&format!("{place}: {values}"));
        assert!(refused.contains(said), "{place}: {values}: {refused}");
    }
    for (place, values) in [
        (postgres, json!({"username": "u", "credentialsSecretRef": null, "tls": own})),
        (postgres, json!({"tls": {"channelBinding": "require"}})),
        (postgres, json!({"adminCertificateSecretRef": owner})),
        (kafka, json!({"adminCertificateSecretRef": secret})),
        (
            postgres,
            json!({"passwordFile": "/run/password", "username": "u", "credentialsSecretRef": null,
                   "adminCredentialsSecretRef": secret, "tls": {"channelBinding": "require"}}),
        ),
        (
            kafka,
            json!({"sasl": {"mechanism": "OAUTHBEARER", "credentialsSecretRef": secret,
                            "oauthbearer": {"tokenEndpoint": {"url": "https://i"}, "extensions": {"pool": "x"}}}}),
        ),
        ("", json!({"heartbeat": {"intervalSeconds": 0}})),
    ] {
        let accepted = apply(&namespace, &relay(&changed(place, &values))).await;
        assert!(accepted.is_ok(), "{place}: {values}: {accepted:?}");
    }
}

/// The least resource with these members of an object of it; `null` takes one away.
fn changed(place: &str, values: &Value) -> Value {
    let each = values.as_object().unwrap().iter();
    each.fold(least(), |spec, (name, value)| with(spec, &format!("{place}/{name}"), value.clone()))
}
