//! Resources that reference CloudNativePG's Cluster, Strimzi's Kafka and KafkaUser. The definitions of these kinds have just the fields that
//! are read; what is behind them is a real PostgreSQL and a real Kafka.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};
use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::kafka::{Kafka, KafkaOptions, Login, Security};
use testbed::kubernetes::{Cluster, Kubernetes, shared_cluster};
use testbed::postgres::{Auth, Postgres, PostgresOptions, ServerTls};
use testbed::process::Launch;
use testbed::{net, shared, wait};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;

use crate::cluster::{apply, least, namespace, relay, with};
use crate::lifecycle::until_gone;
use crate::ownership::{has_slot, make_slot, register};
use crate::stage::{SOON, Stage, operator};

/// As the other operators would install them.
async fn define_kinds(cluster: &Cluster) {
    cluster.apply(include_str!("references/definitions.yaml")).await.unwrap();
    let names = ["clusters.postgresql.cnpg.io", "kafkas.kafka.strimzi.io", "kafkausers.kafka.strimzi.io"];
    cluster.until_established(&names).await.unwrap();
}

async fn kinds() {
    static DEFINED: OnceCell<()> = OnceCell::const_new();
    DEFINED.get_or_init(async || define_kinds(shared_cluster().await.unwrap()).await).await;
}

fn cluster(bootstrap: &Value, status: &Value) -> Value {
    json!({"apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster", "metadata": {"name": "shop-db"},
        "spec": {"bootstrap": {"initdb": bootstrap}}, "status": status})
}

/// With one listener, at this address.
fn kafka(listener: &str, bootstrap: &str) -> Value {
    let status = json!({"listeners": [{"name": listener, "bootstrapServers": bootstrap}]});
    json!({"apiVersion": "kafka.strimzi.io/v1", "kind": "Kafka", "metadata": {"name": "events"},
        "spec": {"kafka": {"listeners": [{"name": listener, "tls": false}]}}, "status": status})
}

fn secret(name: &str, values: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values})
}

async fn message(stage: &Stage, condition: &str) -> String {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].message}}");
    stage.namespace.kubectl(&["get", "obr", "shop", "-o", &path]).await.unwrap()
}

async fn until_message(stage: &Stage, said: &str) {
    wait::until(format!("ReferencesResolved to say {said:?}"), SOON, async || {
        let message = message(stage, "ReferencesResolved").await;
        if message.contains(said) { Ok(()) } else { Err(message) }
    })
    .await
    .unwrap();
}

async fn until_configured(stage: &Stage, part: &str) {
    wait::until(format!("a configuration with {part}"), SOON, async || {
        let stored = stage.namespace.kubectl(&["get", "configmap", "shop-relay", "-o", "json"]).await;
        match stored {
            Ok(stored) if stored.contains(part) => Ok(()),
            other => Err(format!("{other:?}\n{}", stage.operator.log_tail())),
        }
    })
    .await
    .unwrap();
}

/// The operator with a name that leads to an address, as the cluster's DNS would have it.
fn operator_that_knows(stage: &Stage, folder: &Folder, name: &str, address: Ipv4Addr) -> Launch {
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1 localhost\n{address} {name}\n")).unwrap();
    let port = net::free_port().unwrap();
    let program = std::env::var_os("OUTBOX_TEST_OPERATOR");
    Launch::new("outbox-operator", "unshare")
        .arg("--mount")
        .arg("sh")
        .arg("-c")
        .arg(format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display()))
        .arg("sh")
        .arg(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_outbox-operator").into()))
        .arg("run")
        .arg(format!("--namespace={}", stage.namespace.name()))
        .arg("--relay-image=outbox-relay:test")
        .env("KUBECONFIG", stage.namespace.cluster().kubeconfig())
        .env("OUTBOX_OPERATOR_LISTEN", format!("127.0.0.1:{port}"))
}

/// Clusters of CloudNativePG all have the same port.
async fn serve_on_usual_port(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, 5432)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                    copy_bidirectional(&mut client, &mut server).await.ok();
                }
            });
        }
    });
}

/// A database with a certificate for the name of its Service, and the Secrets that CloudNativePG makes. The host, the database, the role, its
/// password and the CA are in none of the resource's own fields.
async fn stage_of_cloudnative_pg(folder: &Folder) -> (Stage, Postgres) {
    kinds().await;
    let (ca, namespace) = (Authority::new("server-ca").unwrap(), namespace("cnpg").await);
    let host = format!("shop-db-rw.{}.svc", namespace.name());
    let tls = ServerTls { certificate: ca.server(&[&host]).unwrap(), client_authority: None };
    let options = PostgresOptions { auth: Auth::Scram, tls: Some(tls), ..PostgresOptions::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let kafka = shared().await.unwrap().kafka_bootstrap().to_owned();
    let mut stage = Stage::within(namespace, &postgres.url("postgres"), &kafka).await;
    stage.operator.kill().await.unwrap();
    serve_on_usual_port(stage.pod_ip, postgres.port()).await;
    stage.operator = operator_that_knows(&stage, folder, &host, stage.pod_ip).start().unwrap();
    let owner = json!({"username": "postgres", "password": postgres.password()});
    apply(&stage.namespace, &secret("shop-db-app", &owner)).await.unwrap();
    apply(&stage.namespace, &secret("shop-db-ca", &json!({"ca.crt": ca.pem(), "ca.key": "k"})))
        .await
        .unwrap();
    let source = stage.spec["source"]["postgres"].as_object_mut().unwrap();
    for given in ["host", "port", "database", "tls", "credentialsSecretRef"] {
        source.remove(given);
    }
    source.insert("clusterRef".into(), json!({"name": "shop-db"}));
    (stage, postgres)
}

#[tokio::test]
async fn a_cluster_of_cloudnative_pg_stands_for_host_database_role_and_ca() {
    let folder = Folder::new("hosts").unwrap();
    let (stage, _postgres) = stage_of_cloudnative_pg(&folder).await;
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "ReferenceUnusable")]).await;
    until_message(&stage, "Cluster shop-db in namespace").await;
    until_message(&stage, "does not exist: create it, or correct the reference").await;
    let initdb = json!({"database": stage.database.name()});
    let new = json!({"phase": "Setting up primary", "readyInstances": 0});
    apply(&stage.namespace, &cluster(&initdb, &new)).await.unwrap();
    stage.until(&[("ReferencesResolved", "False", "ReferenceNotReady")]).await;
    until_message(&stage, "has no instance that is ready: Setting up primary").await;
    apply(&stage.namespace, &cluster(&initdb, &json!({"readyInstances": 1}))).await.unwrap();
    stage.until(&[("DatabaseReachable", "True", "Connected"), ("PublicationReady", "True", "Present")]).await;
    until_message(&stage, &format!("PostgreSQL is database {} of shop-db-rw.", stage.database.name())).await;
    until_configured(&stage, &format!("host: shop-db-rw.{}.svc", stage.namespace.name())).await;

    // Another database would have another slot.
    apply(&stage.namespace, &cluster(&json!({"database": "other"}), &json!({"readyInstances": 1})))
        .await
        .unwrap();
    stage.until(&[("ReferencesResolved", "False", "ReferenceUnusable")]).await;
    until_message(&stage, "the database cannot change, because the slot belongs to it").await;

    // A Cluster that is deleted first keeps nothing from being deleted.
    let slot = stage.database.name().to_owned();
    stage.database.execute(&make_slot(&slot)).await.unwrap();
    register(&stage, &slot).await;
    stage.namespace.kubectl(&["delete", "clusters.postgresql.cnpg.io", "shop-db"]).await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    until_gone(&stage).await;
    assert!(!has_slot(&stage, &slot).await, "{}", stage.operator.log_tail());
}

/// A resource with a topic that would be deleted with it, at a listener without TLS.
fn on_listener(stage: &mut Stage, listener: &str) {
    let sink = stage.spec["sink"]["kafka"].as_object_mut().unwrap();
    sink.remove("bootstrapServers");
    sink.insert("clusterRef".into(), json!({"name": "events", "listener": listener}));
    stage.spec["topics"][0]["deletionPolicy"] = json!("Delete");
}

/// What a reference leads to may change: then the relay's pods are replaced, and another Kafka cluster is treated as after an edit of
/// bootstrapServers.
#[tokio::test]
async fn a_listener_of_strimzi_stands_for_the_brokers_and_is_followed() {
    kinds().await;
    let mut stage = Stage::shared("strimzi-cluster").await;
    stage.make_secret().await;
    on_listener(&mut stage, "tsl");
    apply(&stage.namespace, &kafka("plain", &stage.bootstrap)).await.unwrap();
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "ReferenceUnusable")]).await;
    until_message(&stage, "Kafka events has no listener tsl: it has plain").await;
    // The other side has what it needs.
    stage.until(&[("DatabaseReachable", "True", "Connected"), ("PublicationReady", "True", "Present")]).await;
    on_listener(&mut stage, "plain");
    stage.apply().await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    until_configured(&stage, &stage.bootstrap).await;
    let port = stage.bootstrap.rsplit_once(':').unwrap().1.to_owned();
    apply(&stage.namespace, &kafka("plain", &format!("localhost:{port}"))).await.unwrap();
    until_configured(&stage, &format!("localhost:{port}")).await;

    let other = Kafka::start(KafkaOptions::default()).await.unwrap();
    other.create_topic(&stage.topic, 3, 1, &[]).await.unwrap();
    apply(&stage.namespace, &kafka("plain", &other.bootstrap())).await.unwrap();
    until_configured(&stage, &other.bootstrap()).await;
    let events = ["get", "events", "--field-selector=reason=KafkaClusterChanged", "-o", "name"];
    assert_ne!(stage.namespace.kubectl(&events).await.unwrap(), "");
    stage.spec["topics"] = json!([]);
    stage.apply().await;
    let count = ["get", "obr", "shop", "-o", "jsonpath={.status.topicCount}"];
    wait::until("a status without topics", SOON, async || {
        let count = stage.namespace.kubectl(&count).await.unwrap();
        if count == "0" { Ok(()) } else { Err(count) }
    })
    .await
    .unwrap();
    assert!(stage.has_topic(&stage.topic).await, "what is in the former cluster is left as it is");
}

/// The mechanism, the user name and the Secret are Strimzi's; a user that has none yet is waited for.
#[tokio::test]
async fn a_kafka_user_stands_for_the_credentials() {
    kinds().await;
    let login = Login { user: "shipper".to_owned(), password: "shipper-secret".to_owned() };
    let security = Security { logins: vec![login], ..Security::default() };
    let broker =
        Kafka::start(KafkaOptions { security: Some(security), ..KafkaOptions::default() }).await.unwrap();
    let postgres = shared().await.unwrap().postgres_url("postgres");
    let mut stage = Stage::on("strimzi-user", &postgres, &broker.bootstrap()).await;
    stage.make_secret().await;
    on_listener(&mut stage, "scram");
    stage.spec["sink"]["kafka"]["userRef"] = json!({"name": "relay"});
    apply(&stage.namespace, &kafka("scram", &broker.secure_bootstrap())).await.unwrap();
    let user = |status: Value| {
        json!({"apiVersion": "kafka.strimzi.io/v1", "kind": "KafkaUser", "metadata": {"name": "relay"},
            "spec": {"authentication": {"type": "scram-sha-512"}}, "status": status})
    };
    apply(&stage.namespace, &user(json!({}))).await.unwrap();
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "ReferenceNotReady")]).await;
    until_message(&stage, "KafkaUser relay has no Secret yet").await;
    let values = json!({"password": "shipper-secret", "sasl.jaas.config": "x"});
    apply(&stage.namespace, &secret("prefix-relay", &values)).await.unwrap();
    let made = json!({"username": "shipper", "secret": "prefix-relay"});
    apply(&stage.namespace, &user(made)).await.unwrap();
    let folder = Folder::new("relay").unwrap();
    let password = folder.path().join("kafka/password");
    std::fs::create_dir_all(password.parent().unwrap()).unwrap();
    std::fs::write(password, "shipper-secret").unwrap();
    let _relay = stage.until_streaming(&folder).await;
}

/// The kinds need not be there when the operator starts, and the right to read them need not be given.
#[tokio::test]
async fn kinds_may_be_installed_and_rights_be_given_later() {
    let server = Kubernetes::start().await.unwrap();
    let mut stage = Stage::in_cluster("later", &server).await;
    stage.operator.kill().await.unwrap();
    let rules: Value =
        serde_saphyr::from_str(include_str!("../../../charts/outbox-operator/files/rules.yaml")).unwrap();
    give(&stage, "most", &rules).await;
    let kubeconfig = server.kubeconfig_of(stage.namespace.name(), "limited").await.unwrap();
    stage.operator = operator(stage.namespace.name(), &kubeconfig).start().unwrap();
    stage.make_secret().await;
    on_listener(&mut stage, "plain");
    stage.apply().await;
    stage.until(&[("ReferencesResolved", "False", "ReferenceUnusable")]).await;
    until_message(&stage, "the API server serves no kafka.strimzi.io/v1 or v1beta2; install Strimzi").await;
    define_kinds(&server).await;
    apply(&stage.namespace, &kafka("plain", &stage.bootstrap)).await.unwrap();
    until_message(&stage, "the operator may not read Kafka events in namespace").await;
    let said = doctor(&stage, &kubeconfig).await;
    assert!(said.contains("it may not get clusters, get kafkas, get kafkausers in namespace"), "{said}");
    let rules: Value =
        serde_saphyr::from_str(include_str!("../../../charts/outbox-operator/files/reference-rules.yaml"))
            .unwrap();
    give(&stage, "references", &rules).await;
    stage.until(&[("TopicsReady", "True", "AsDeclared")]).await;
    wait::until("no warning about references", SOON, async || {
        let said = doctor(&stage, &kubeconfig).await;
        let is_well = said.contains("that it needs in namespace") && !said.contains("rights on references");
        if is_well { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
}

async fn doctor(stage: &Stage, kubeconfig: &Path) -> String {
    let mut doctor = crate::stage::program(kubeconfig)
        .arg("doctor")
        .arg(format!("--namespace={}", stage.namespace.name()))
        .start()
        .unwrap();
    doctor.wait(SOON).await.unwrap();
    doctor.log()
}

/// Gives an account these rights in the namespace; makes the account, where it is not there.
async fn give(stage: &Stage, role: &str, rules: &Value) {
    let namespace = &stage.namespace;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "limited"}});
    apply(namespace, &account).await.unwrap();
    let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": role}, "rules": rules});
    apply(namespace, &object).await.unwrap();
    let account = format!("--serviceaccount={}:limited", namespace.name());
    let bind = ["create", "rolebinding", role, &format!("--role={role}"), &account];
    namespace.kubectl(&bind).await.unwrap();
}

#[tokio::test]
async fn references_that_contradict_other_fields_are_refused_with_a_reason() {
    let namespace = namespace("reference-rules").await;
    let (postgres, kafka) = ("/source/postgres", "/sink/kafka");
    let (cluster, listener) = (json!({"name": "shop-db"}), json!({"name": "events", "listener": "tls"}));
    let elsewhere = json!({"name": "events", "listener": "tls", "namespace": "kafka"});
    let user = json!({"name": "relay"});
    let sasl = json!({"mechanism": "SCRAM-SHA-512", "credentialsSecretRef": {"name": "s"}});
    let certificate = json!({"certificateSecretRef": {"name": "s"}});
    let managed = json!({"name": "shop-db", "role": "relay"});
    let cases = [
        (postgres, json!({"clusterRef": cluster}), Some("give either host, or clusterRef")),
        (postgres, json!({"host": null}), Some("give either host, or clusterRef")),
        (postgres, json!({"database": null}), Some("database is required")),
        (postgres, json!({"clusterRef": cluster, "host": null, "port": 5433}), Some("is 5432")),
        (postgres, json!({"clusterRef": managed, "host": null}), Some("clusterRef.role stands for")),
        (postgres, json!({"clusterRef": cluster, "host": null}), None),
        (kafka, json!({"clusterRef": listener}), Some("give either bootstrapServers, or clusterRef")),
        (kafka, json!({"bootstrapServers": null}), Some("give either bootstrapServers, or clusterRef")),
        (
            kafka,
            json!({"clusterRef": elsewhere, "bootstrapServers": null}),
            Some("no Secret is read in another"),
        ),
        (kafka, json!({"userRef": user, "sasl": sasl}), Some("userRef stands for sasl")),
        (
            kafka,
            json!({"userRef": user, "tls": certificate}),
            Some("userRef stands for tls.certificateSecretRef"),
        ),
        (kafka, json!({"clusterRef": listener, "bootstrapServers": null, "userRef": user}), None),
        (kafka, json!({"userRef": user, "adminCredentialsSecretRef": {"name": "s"}}), None),
    ];
    for (number, (place, values, said)) in cases.into_iter().enumerate() {
        let each = values.as_object().unwrap().iter();
        let spec =
            each.fold(least(), |spec, (name, value)| with(spec, &format!("{place}/{name}"), value.clone()));
        let mut object = relay(&spec);
        object["metadata"]["name"] = json!(format!("case-{number}"));
        match (apply(&namespace, &object).await, said) {
            (Ok(_), None) => {}
            (Err(refused), Some(said)) if refused.contains(said) => {}
            (other, _) => panic!("{place}: {values}: {other:?}"),
        }
    }
}
