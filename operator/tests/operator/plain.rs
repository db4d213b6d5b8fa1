//! The sample of a relay without the operator: it is what the operator would make, a cluster takes it, and its relay delivers.

use std::fs;

use outbox_relay::config::Config;
use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kafka::create_topic;
use testbed::kubernetes::Namespace;
use testbed::process::Launch;
use testbed::prometheus::define_monitors;
use testbed::records::read_all;
use testbed::{Database, net, shared, wait};

use crate::cluster::namespace;
use crate::rendered;
use crate::stage::{SOON, relay_program};

const SAMPLE: &str = include_str!("../../../docs/samples/relay-without-operator.yaml");
const LEAST: &str = include_str!("../../../docs/samples/least.yaml");

/// With what stands in the comment at its end.
fn with_monitor() -> String {
    let (manifest, monitor) = SAMPLE.split_once("# With the Prometheus operator:\n").unwrap();
    let monitor: Vec<&str> = monitor.lines().map(|line| line.strip_prefix("# ").unwrap()).collect();
    format!("{manifest}{}\n", monitor.join("\n"))
}

/// As kubectl reads it.
async fn objects(namespace: &Namespace) -> Vec<Value> {
    let read = ["create", "--dry-run=client", "--output=json", "--filename=-"];
    let read = namespace.kubectl_with(&read, SAMPLE).await.unwrap();
    serde_json::Deserializer::from_str(&read).into_iter().map(Result::unwrap).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

fn remove(value: &mut Value, path: &str, member: &str) {
    if let Some(Value::Object(members)) = value.pointer_mut(path) {
        members.remove(member);
    }
}

/// Pods too, where Pod Security is restricted.
#[tokio::test]
async fn a_restricted_namespace_takes_it() {
    let namespace = namespace("plain").await;
    namespace.cluster().restrict(namespace.name()).await.unwrap();
    define_monitors(namespace.cluster()).await.unwrap();
    let apply = ["apply", "--server-side", "--validate=strict", "--filename=-"];
    namespace.kubectl_with(&apply, &with_monitor()).await.unwrap();
    let pods = ["get", "pods", "-l", "app.kubernetes.io/name=outbox-relay", "-o", "name"];
    wait::until("a pod", SOON, async || match namespace.kubectl(&pods).await {
        Ok(pods) if pods.lines().count() == 1 => Ok(()),
        other => Err(format!("{other:?}\n{:?}", namespace.kubectl(&["get", "events"]).await)),
    })
    .await
    .unwrap();
    let found = ["get", "podmonitor", "shop-relay", "-o", "name"];
    namespace.kubectl(&found).await.unwrap();
}

/// What differs is named here.
#[tokio::test]
async fn it_is_what_the_operator_makes_of_the_least_there_can_be() {
    let namespace = namespace("plain-same").await;
    let (mut plain, mut made) = (objects(&namespace).await, rendered::objects(LEAST));
    for object in plain.iter_mut().chain(&mut made) {
        for member in ["namespace", "ownerReferences"] {
            remove(object, "/metadata", member);
        }
        for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
            remove(object, labels, "app.kubernetes.io/managed-by");
        }
        // Who applies the sample rolls the pods.
        remove(object, "/spec/template/metadata", "annotations");
        // The operator's are those of the resource, which has none.
        remove(object, "/spec/template/spec/containers/0", "resources");
        if let Some(file) = object.pointer_mut("/data/relay.yaml") {
            let mut config: Config = serde_saphyr::from_str(file.as_str().unwrap()).unwrap();
            config.name = "shop".to_owned();
            config.owner = String::new();
            *file = json!(config);
        }
        // kubectl's own way to say that there is none.
        for path in ["/metadata", "/spec/template/metadata"] {
            remove(object, path, "creationTimestamp");
        }
        remove(object, "", "status");
    }
    assert_eq!(plain.len(), made.len());
    for (plain, made) in plain.iter().zip(&made) {
        assert_eq!(plain, made);
    }
}

/// The relay of the Deployment, with its file; only addresses and the places of files are others.
fn relay(objects: &[Value], database: &Database, bootstrap: &str, folder: &Folder) -> Launch {
    let (config, password) = (folder.path().join("relay.yaml"), folder.path().join("password"));
    let file = of_kind(objects, "ConfigMap")["data"]["relay.yaml"].as_str().unwrap();
    fs::write(&config, file).unwrap();
    fs::write(&password, "unused").unwrap();
    let container = &of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let mounted = "/etc/outbox-relay/config/relay.yaml";
    let arguments: Vec<&str> =
        container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    assert!(arguments.contains(&mounted), "{arguments:?}");
    let launch = arguments.iter().fold(Launch::new("outbox-relay", relay_program()), |launch, argument| {
        if *argument == mounted { launch.arg(&config) } else { launch.arg(argument) }
    });
    let port = url::Url::parse(database.url()).unwrap().port().unwrap();
    launch
        .env("OUTBOX_RELAY__SOURCE__HOST", "127.0.0.1")
        .env("OUTBOX_RELAY__SOURCE__PORT", port.to_string())
        .env("OUTBOX_RELAY__SOURCE__TLS__MODE", "disable")
        .env("OUTBOX_RELAY__SOURCE__DATABASE", database.name())
        .env("OUTBOX_RELAY__SOURCE__USER", "postgres")
        .env("OUTBOX_RELAY__SOURCE__PASSWORD_FILE", &password)
        .env("OUTBOX_RELAY__SOURCE__SLOT__NAME", database.name())
        .env("OUTBOX_RELAY__SINK__BOOTSTRAP_SERVERS", bootstrap)
        .env("OUTBOX_RELAY__SINK__TLS__MODE", "disable")
        .env("OUTBOX_RELAY__ADMIN__LISTEN", format!("127.0.0.1:{}", net::free_port().unwrap()))
}

/// Also after it was given the name that the operator has for it, as one does who goes over.
#[tokio::test]
async fn its_relay_delivers() {
    let namespace = namespace("plain-relay").await;
    let objects = objects(&namespace).await;
    let servers = shared().await.unwrap();
    let (postgres, bootstrap) = (servers.postgres_url("postgres"), servers.kafka_bootstrap());
    let database = Database::on(&postgres, "plain").await.unwrap();
    let publication = "CREATE PUBLICATION outbox FOR TABLE outbox
        WITH (publish = 'insert', publish_via_partition_root = true)";
    database.execute(publication).await.unwrap();
    let topic = format!("outbox.event.{}", database.name());
    create_topic(bootstrap, &topic, 1, 1, &[]).await.unwrap();
    let folder = Folder::new("plain").unwrap();
    for (name, count) in [("shop", 1), ("team/shop", 2)] {
        let rename = format!("UPDATE outbox_checkpoint SET relay = '{name}' WHERE relay = 'shop'");
        database.execute(&rename).await.unwrap();
        let relay = relay(&objects, &database, bootstrap, &folder);
        let mut relay =
            if name == "shop" { relay } else { relay.env("OUTBOX_RELAY__NAME", name) }.start().unwrap();
        let insert = format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), '{}', 'k', 't.v1', '{count}')",
            database.name()
        );
        database.execute(&insert).await.unwrap();
        let records = wait::until("the event", SOON, async || match read_all(bootstrap, &[&topic]).await {
            Ok(records) if records.len() >= count => Ok(records),
            other => Err(format!("{other:?}\n{}", relay.log_tail())),
        })
        .await
        .unwrap();
        assert_eq!(records.len(), count);
        assert_eq!(records[count - 1].value.as_deref(), Some(count.to_string().as_bytes()));
        relay.terminate().unwrap();
        let ended = relay.wait(SOON).await.unwrap();
        assert_eq!(ended.code(), Some(0), "{}", relay.log());
    }
}
