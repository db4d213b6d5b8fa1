//! The chart as people install it: what it gives the program is what the program takes, and it does not give what cannot work.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::guard::Folder;
use testbed::kubernetes::shared_cluster;
use testbed::process::Launch;
use testbed::prometheus::define_monitors;
use testbed::{Database, net, shared};

use crate::service::{Service, TOKEN};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/basket-api");
const SOON: Duration = Duration::from_secs(60);
/// With nothing but what is required.
const LEAST: [&str; 6] = [
    "--set",
    "global.imageRegistry=registry.example",
    "--set",
    "database.secret=shop-db",
    "--set",
    "auth.mode=static-token,auth.staticToken.secret=token",
];

/// The arguments of a pod's container, and its environment, with what Secrets hold.
fn launch(pod: &Value, secret: impl Fn(&str, &str) -> String) -> Launch {
    let container = &pod["spec"]["containers"][0];
    let program = Launch::new("basket-api", env!("CARGO_BIN_EXE_basket-api"));
    let arguments = container["args"].as_array().unwrap().iter();
    let launch = arguments.fold(program, |launch, argument| launch.arg(argument.as_str().unwrap()));
    container["env"].as_array().unwrap().iter().fold(launch, |launch, variable| {
        let reference = &variable["valueFrom"]["secretKeyRef"];
        let value = match variable["value"].as_str() {
            Some(value) => value.to_owned(),
            None => secret(reference["name"].as_str().unwrap(), reference["key"].as_str().unwrap()),
        };
        launch.env(variable["name"].as_str().unwrap(), value)
    })
}

#[tokio::test]
async fn a_pod_of_the_chart_migrates_serves_and_is_found_well() {
    let cluster = shared_cluster().await.unwrap();
    let namespace = cluster.namespace("chart").await.unwrap();
    cluster.restrict(namespace.name()).await.unwrap();
    let of_release = ["shop", CHART, "--namespace", namespace.name()];
    // No node would run the hook.
    let install = [&["install", "--no-hooks"], &of_release[..], &LEAST].concat();
    let notes = cluster.helm(&install).await.unwrap();
    assert!(notes.contains("rollout status deployment/shop-basket-api"), "{notes}");
    assert!(notes.contains(&format!("helm test shop --namespace {}", namespace.name())), "{notes}");

    let postgres = shared().await.unwrap().postgres_url("postgres");
    let database = Database::empty_on(&postgres, "chart").await.unwrap();
    let url = database.url().to_owned();
    let secret = |name: &str, key: &str| match (name, key) {
        ("shop-db", "url") => url.clone(),
        ("token", "token") => TOKEN.to_owned(),
        other => panic!("{other:?}"),
    };
    let hook = async |template: &str| -> Value {
        let hook = ["template", "--show-only", template];
        let hook = cluster.helm(&[&hook[..], &of_release, &LEAST].concat()).await.unwrap();
        let hook = namespace.kubectl_with(&["create", "-f", "-", "-o", "json"], &hook).await.unwrap();
        serde_json::from_str(&hook).unwrap()
    };
    let (port, admin) = (net::free_port().unwrap(), net::free_port().unwrap());
    let mut test = hook("templates/tests/doctor.yaml").await;
    let address = &mut test["spec"]["containers"][0]["args"][1];
    // The Service's name does not resolve here.
    assert_eq!(address.take(), "--url=http://shop-basket-api:80");
    *address = json!(format!("--url=http://127.0.0.1:{port}"));
    let mut doctor = launch(&test, secret).start().unwrap();
    assert_eq!(doctor.wait(SOON).await.unwrap().code(), Some(69), "{}", doctor.log());
    let problems = doctor.log().lines().filter(|line| line.starts_with("problem ")).count();
    assert_eq!(problems, 2, "neither schema nor service: {}", doctor.log());

    let hook = hook("templates/migration.yaml").await;
    for _ in 0..2 {
        let mut migrate = launch(&hook["spec"]["template"], secret).start().unwrap();
        let ended = migrate.wait(SOON).await.unwrap();
        assert_eq!(ended.code(), Some(0), "{}", migrate.log());
    }
    let deployment = ["get", "deployment", "shop-basket-api", "-o", "json"];
    let deployment: Value = serde_json::from_str(&namespace.kubectl(&deployment).await.unwrap()).unwrap();
    let program = launch(&deployment["spec"]["template"], secret)
        .env("BASKET_LISTEN", format!("127.0.0.1:{port}"))
        .env("BASKET_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .start()
        .unwrap();
    let service = Service::around(database, program, port, admin);
    service.until_ready(200).await;
    let basket = service.basket().await;
    assert_eq!(service.get(&format!("/v1/baskets/{basket}")).await.status(), 200);
    assert!(service.program.log().starts_with('{'), "{}", service.program.log());
    let mut doctor = launch(&test, secret).start().unwrap();
    assert_eq!(doctor.wait(SOON).await.unwrap().code(), Some(0), "{}", doctor.log());
    let checks = doctor.log();
    assert!(checks.lines().count() == 4 && checks.lines().all(|line| line.starts_with("ok ")), "{checks}");
}

/// A variable that the program does not know would be a value that does nothing.
#[tokio::test]
async fn every_setting_of_the_chart_is_one_of_the_program() {
    let cluster = shared_cluster().await.unwrap();
    let jwt = "auth.jwt.issuer=i,auth.jwt.audience=a,auth.jwt.jwksUrl=https://x,auth.jwt.caSecret=ca";
    let more =
        format!("{jwt},retention.keepCommands=365d,database.secret=db,image.registry=registry.example");
    let rendered = cluster.helm(&["template", "shop", CHART, "--set", &more]).await.unwrap();
    let mut help = Launch::new("basket-api", env!("CARGO_BIN_EXE_basket-api"))
        .arg("serve")
        .arg("--help")
        .start()
        .unwrap();
    help.wait(SOON).await.unwrap();
    let known = help.log() + "BASKET_DATABASE_URL";
    let mut found = 0;
    for variable in rendered
        .split(|c: char| !(c.is_ascii_uppercase() || c == '_'))
        .filter(|word| word.starts_with("BASKET_"))
    {
        assert!(known.contains(variable), "{variable}\n{known}");
        found += 1;
    }
    assert!(found >= 18, "{found}");
}

/// Everything that can be switched on is what the API server takes.
#[tokio::test]
async fn every_object_is_accepted() {
    let cluster = shared_cluster().await.unwrap();
    let namespace = cluster.namespace("objects").await.unwrap();
    cluster.restrict(namespace.name()).await.unwrap();
    // The pod of helm test names both.
    namespace.kubectl(&["create", "serviceaccount", "shop-basket-api"]).await.unwrap();
    cluster.kubectl(&["create", "priorityclass", "high", "--value=1"]).await.unwrap();
    cluster.apply(include_str!("../../../crds/outboxrelays.outbox.dev.yaml")).await.unwrap();
    cluster.until_established(&["outboxrelays.outbox.dev"]).await.unwrap();
    define_monitors(cluster).await.unwrap();
    let resources =
        "ingress.enabled=true,ingress.tlsSecret=tls,ingress.className=nginx,autoscaling.enabled=true";
    let pods = "priorityClassName=high,nodeSelector.disk=fast,podAnnotations.a=b,image.tag=v1";
    let lists = r#"{"outboxRelay": {"enabled": true, "spec": {"source": {"postgres": {"host": "db", "database": "shop",
          "credentialsSecretRef": {"name": "db"}, "publication": {"name": "outbox"}, "slot": {"name": "outbox"}}},
          "sink": {"kafka": {"bootstrapServers": "kafka:9092"}}}},
        "extraEnv": [{"name": "A", "value": "b"}], "tolerations": [{"operator": "Exists"}],
        "serviceAccount": {"annotations": {"a": "b"}}, "migration": {"annotations": {"a": "b"}, "podLabels": {"c": "d"}},
        "test": {"podAnnotations": {"a": "b"}}, "extraArgs": ["--a=b"], "imagePullSecrets": [{"name": "registry"}],
        "extraVolumes": [{"name": "v", "emptyDir": {}}], "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]}"#;
    let values = Folder::new("values").unwrap();
    let file = values.path().join("values.json");
    std::fs::write(&file, lists).unwrap();
    let file = file.to_str().unwrap();
    for more in [
        ["--set", resources],
        ["--set", pods],
        ["--set", "migration.secret=owner,migration.key=dsn"],
        ["--set", "service.type=NodePort"],
        ["--set", "podMonitor.enabled=true,podMonitor.labels.a=b"],
        ["--values", file],
    ] {
        let template = ["template", "shop", CHART, "--namespace", namespace.name()];
        let rendered = cluster.helm(&[&template[..], &LEAST, &more].concat()).await.unwrap();
        let dry_run = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        namespace.kubectl_with(&dry_run, &rendered).await.unwrap();
    }
}

/// An address with a private certificate, or nodes with taints: the migration would wait forever, and the install
/// with it.
#[tokio::test]
async fn every_pod_gets_the_files_and_the_place_of_the_service() {
    let cluster = shared_cluster().await.unwrap();
    let values = Folder::new("values").unwrap();
    let file = values.path().join("values.json");
    let of_pods = r#"{"extraEnv": [{"name": "PGSSLROOTCERT", "value": "/v/ca.crt"}],
        "extraVolumes": [{"name": "v", "configMap": {"name": "ca"}}], "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
        "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "priorityClassName": "high", "podLabels": {"team": "shop"}, "podAnnotations": {"note": "a"}}"#;
    std::fs::write(&file, of_pods).unwrap();
    let template = [&["template", "shop", CHART, "--values", file.to_str().unwrap()], &LEAST[..]].concat();
    let rendered = cluster.helm(&template).await.unwrap();
    let pods = ["deployment.yaml", "migration.yaml", "tests/doctor.yaml"];
    for source in pods {
        let (_, object) = rendered.split_once(&format!("templates/{source}\n")).unwrap();
        let object = object.split("\n---").next().unwrap();
        for given in [
            "PGSSLROOTCERT",
            "mountPath: /v",
            "name: ca",
            "disk: fast",
            "key: dedicated",
            "priorityClassName: high",
            "team: shop",
            "note: a",
        ] {
            assert!(object.contains(given), "{given} is not in {source}: {object}");
        }
    }
}

/// Each with the value it is about.
#[tokio::test]
async fn values_that_cannot_work_are_refused() {
    let cluster = shared_cluster().await.unwrap();
    for (value, said) in [
        ("database.secret=", "database.secret is not set"),
        ("auth.mode=jwt", "auth.jwt.issuer is not set"),
        ("auth.mode=jwt,auth.jwt.issuer=i", "auth.jwt.audience is not set"),
        ("auth.mode=jwt,auth.jwt.issuer=i,auth.jwt.audience=a", "auth.jwt.jwksUrl is not set"),
        ("auth.staticToken.secret=", "auth.staticToken.secret is not set"),
        ("auth.mode=ldap", "'/auth/mode'"),
        ("auth.jwt.jwksUrl=ftp://x", "'/auth/jwt/jwksUrl'"),
        ("auth.token=x", "'/auth': additional properties 'token'"),
        ("database.url=postgres://x", "'/database': additional properties 'url'"),
        ("replicas=many", "'/replicas'"),
        ("replicaCount=2", "'replicaCount' not allowed"),
        ("image.digest=sha256:1", "'/image/digest'"),
        ("image.pullPolicy=Sometimes", "'/image/pullPolicy'"),
        ("limits.databaseConnections=501", "'/limits/databaseConnections'"),
        ("limits.requests=0", "'/limits/requests'"),
        ("limits.rate=-1", "'/limits/rate'"),
        ("limits.requestTimeout=10", "'/limits/requestTimeout'"),
        ("limits.drainTimeoutSeconds=20s", "'/limits/drainTimeoutSeconds'"),
        ("retention.keepKeys=3 days", "'/retention/keepKeys'"),
        ("retention.abandonAfter=1w", "'/retention/abandonAfter'"),
        ("service.type=External", "'/service/type'"),
        ("service.port=0", "'/service/port'"),
        ("ingress.path=x", "'/ingress/path'"),
        ("autoscaling.targetCPUUtilizationPercentage=0", "targetCPUUtilizationPercentage"),
        ("migration.deadline=0", "'/migration/deadline'"),
        ("outboxRelay.enabled=true", "outboxRelay.spec is empty, and outboxRelay.enabled is true"),
        ("outboxRelay.name=x", "'/outboxRelay'"),
        ("podMonitor.interval=often", "'/podMonitor/interval'"),
    ] {
        let template = [&["template", "shop", CHART], &LEAST[..], &["--set", value]].concat();
        let refused = cluster.helm(&template).await.map_err(|error| error.to_string()).expect_err(value);
        assert!(refused.contains(said), "{value}: {refused}");
    }
}
