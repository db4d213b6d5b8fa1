//! `basket-api doctor`: what it says is so, and what is wrong is named with its remedy, never with a password.

use std::time::Duration;

use testbed::process::Launch;
use testbed::{Database, net, shared, unique};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::service::Service;

const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "not-to-be-printed";

pub fn program(url: &str) -> Launch {
    Launch::new("basket-api", env!("CARGO_BIN_EXE_basket-api")).env("BASKET_DATABASE_URL", url)
}

/// The exit code and what is printed.
pub async fn ended(launch: Launch) -> (Option<i32>, String) {
    let mut program = launch.start().unwrap();
    let code = program.wait(SOON).await.unwrap().code();
    assert!(!program.log().contains(PASSWORD), "{}", program.log());
    (code, program.log())
}

/// The lines that do not say `ok`; the exit code agrees.
async fn found(database: &str, service: &str) -> Vec<String> {
    let (code, lines) = ended(program(database).arg("doctor").arg(format!("--url={service}"))).await;
    let bad = lines.lines().any(|line| line.starts_with("problem "));
    assert_eq!(code, Some(if bad { 69 } else { 0 }), "{lines}");
    lines.lines().filter(|line| !line.starts_with("ok ")).map(str::to_owned).collect()
}

/// One line does not say `ok`, and it has these words.
async fn only(database: &str, service: &str, says: &[&str]) {
    let found = found(database, service).await;
    assert_eq!(found.len(), 1, "{found:?}");
    for part in says {
        assert!(found[0].contains(part), "{part}: {found:?}");
    }
}

/// Migrated by the program itself, which notes what it has applied.
async fn migrated() -> Database {
    let server = shared().await.unwrap().postgres_url("postgres");
    let database = Database::empty_on(&server, "doctor").await.unwrap();
    let (code, log) = ended(program(database.url()).arg("migrate")).await;
    assert_eq!(code, Some(0), "{log}");
    database
}

/// An address where every request gets this answer.
async fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn a_service_that_is_well_and_one_that_is_not() {
    let service = Service::launch(migrated().await, &["--auth=static-token"]).await;
    let (database, url) = (service.database.url(), format!("http://{}", service.address()));
    assert_eq!(found(database, &url).await, Vec::<String>::new());
    let (code, json) = ended(program(database).arg("doctor").arg("--json")).await;
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["findings"][1]["check"], "schema");

    let nobody = format!("http://127.0.0.1:{}", net::free_port().unwrap());
    only(database, &nobody, &["problem  service", "onnection refused", "its pods are ready"]).await;
    let refusing = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    only(database, &refusing, &["problem  service", "503"]).await;
    only(database, &answering("").await, &["problem  service", "no answer within 10 s"]).await;
    let another = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
    only(database, &another, &["warn     service", "of another release or service"]).await;
    for refused in ["shop", "https://shop", "http://me:secret@shop"] {
        let (code, said) = ended(program(database).arg("doctor").arg(format!("--url={refused}"))).await;
        assert!(code == Some(64) && said.contains("an address such as"), "{said}");
    }
}

#[tokio::test]
async fn a_database_that_is_down_or_not_as_the_service_needs_it() {
    let service = Service::launch(migrated().await, &["--auth=static-token"]).await;
    let (database, url) = (&service.database, format!("http://{}", service.address()));
    let away = format!("postgres://shop:{PASSWORD}@127.0.0.1:{}/shop", net::free_port().unwrap());
    only(&away, &url, &["problem  database", "onnection refused", "check that it runs"]).await;
    let none = database.url().replace(database.name(), "no_such_database");
    only(&none, &url, &["problem  database", "\"no_such_database\" does not exist"]).await;

    for (statement, says) in [
        (
            "INSERT INTO _sqlx_migrations VALUES (99, 'n', now(), true, '', 0)",
            ["warn     schema", "migration 99", "run the release"],
        ),
        (
            "UPDATE _sqlx_migrations SET checksum = '' WHERE version = 3",
            ["problem  schema", "migration 3 (basket) was applied with another content", "which release"],
        ),
        (
            "UPDATE _sqlx_migrations SET success = false WHERE version = 2",
            [
                "problem  schema",
                "migration 2 (outbox checkpoint) was not applied to its end",
                "delete its row",
            ],
        ),
        (
            "DELETE FROM _sqlx_migrations WHERE version = 1",
            ["problem  schema", "migration 1 (outbox) was not applied", "basket-api migrate"],
        ),
        (
            "DROP TABLE _sqlx_migrations",
            ["problem  schema", "migration 1 (outbox) was not applied", "basket-api migrate"],
        ),
    ] {
        database.execute(statement).await.unwrap();
        only(database.url(), &url, &says).await;
    }
}

/// As where the migrations belong to another role.
#[tokio::test]
async fn migrations_that_may_not_be_read_are_worth_a_look() {
    let database = migrated().await;
    let role = unique("doctor");
    database.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
    let granted = program(database.url()).arg("migrate").arg("--grant-to").arg(&role);
    assert_eq!(ended(granted).await.0, Some(0));
    database.execute(&format!("REVOKE SELECT ON _sqlx_migrations FROM {role}")).await.unwrap();
    let server = database.url().rsplit_once('@').unwrap().1;
    let as_role = program(&format!("postgres://{role}:{PASSWORD}@{server}"));
    let (code, lines) = ended(as_role.arg("doctor")).await;
    assert_eq!(code, Some(0), "{lines}");
    let remedy = "may not be read; GRANT SELECT ON _sqlx_migrations";
    assert!(lines.contains("warn     schema") && lines.contains(remedy), "{lines}");
    database.execute(&format!("GRANT SELECT ON _sqlx_migrations TO {role}")).await.unwrap();
    let as_role = program(&format!("postgres://{role}:{PASSWORD}@{server}"));
    let (code, lines) = ended(as_role.arg("doctor")).await;
    assert!(code == Some(0) && !lines.contains("warn "), "{lines}");
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}
