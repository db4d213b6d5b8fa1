//! The service works with the privileges that are documented, and with no more.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use testbed::process::Launch;
use testbed::{Database, shared, unique, wait};

use crate::housekeeping;
use crate::service::{Service, problem, tea};

const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "testbed-password";

/// A database migrated by a role that owns it and is nothing else, and its address for a role that has what
/// `migrate --grant-to` grants.
async fn with_role() -> (Database, String, String) {
    let server = shared().await.unwrap().postgres_url("postgres");
    let database = Database::empty_on(&server, "role").await.unwrap();
    let (role, name) = (unique("shop"), database.name());
    database.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
    database.execute(&format!("CREATE ROLE {role}_owner LOGIN PASSWORD '{PASSWORD}'")).await.unwrap();
    database.execute(&format!("ALTER DATABASE {name} OWNER TO {role}_owner")).await.unwrap();
    let place = database.url().rsplit_once('@').unwrap().1;
    let url = |role: &str| format!("postgres://{role}:{PASSWORD}@{place}");
    let (code, said) = run(&url(&format!("{role}_owner")), &["migrate", "--grant-to", &role]).await;
    assert_eq!(code, Some(0), "{said}");
    let url = url(&role);
    (database, role, url)
}

async fn run(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut launch =
        Launch::new("basket-api", env!("CARGO_BIN_EXE_basket-api")).env("BASKET_DATABASE_URL", url);
    for argument in arguments {
        launch = launch.arg(*argument);
    }
    let mut program = launch.start().unwrap();
    let status = program.wait(SOON).await.unwrap();
    (status.code(), program.log())
}

async fn drop_role(database: &Database, role: &str) {
    let owned = format!("REASSIGN OWNED BY {role}_owner TO CURRENT_USER");
    for statement in [format!("DROP OWNED BY {role}"), format!("DROP ROLE {role}"), owned] {
        database.execute(&statement).await.unwrap();
    }
    database.execute(&format!("DROP OWNED BY {role}_owner; DROP ROLE {role}_owner")).await.unwrap();
}

#[tokio::test]
async fn the_documented_privileges_are_enough_for_everything() {
    let (database, role, url) = with_role().await;
    let arguments = [
        "--auth=static-token",
        "--housekeeping-every=100ms",
        "--abandon-after=1h",
        "--keep-keys=24h",
        "--keep-commands=30d",
    ];
    let service = Service::through(database, &url, &arguments).await;
    every_endpoint(&service).await;
    every_job(&service).await;
    let (code, said) = run(&url, &["doctor"]).await;
    assert!(
        code == Some(0) && said.contains("may do what the service does") && !said.contains("warn "),
        "{said}"
    );
    let (code, said) = run(&url, &["rebuild-read-model"]).await;
    assert_eq!(code, Some(0), "{said}");
    let Service { database, program, .. } = service;
    drop(program);
    drop_role(&database, &role).await;
}

async fn every_endpoint(service: &Service) {
    let id = service.basket().await;
    let (basket, items) = (format!("/v1/baskets/{id}"), format!("/v1/baskets/{id}/items"));
    let ok = async |response: reqwest::Response| assert_eq!(response.status(), 200, "{}", response.url());
    ok(service.post(&items, "tea", &tea(1)).await).await;
    ok(service.post(&items, "tea", &tea(1)).await).await;
    ok(service.change(Method::PATCH, &format!("{items}/tea"), Some(json!({"quantity": 2}))).await).await;
    ok(service.change(Method::DELETE, &format!("{items}/tea"), None).await).await;
    ok(service.change(Method::DELETE, &items, None).await).await;
    ok(service.command(&items, &tea(1)).await).await;
    ok(service.command(&format!("{basket}/checkout"), &json!({"payment_method": "card"})).await).await;
    problem(service.command(&items, &tea(1)).await, 409).await;
    ok(service.change(Method::DELETE, &format!("/v1/baskets/{}", service.basket().await), None).await).await;
    ok(service.get(&basket).await).await;
    ok(service.get("/v1/baskets?status=checked_out&buyer_id=ann").await).await;
    let commands: Value = service.get("/v1/commands?outcome=refused").await.json().await.unwrap();
    let refused = commands["commands"][0]["id"].as_str().unwrap();
    ok(service.get(&format!("/v1/commands/{refused}")).await).await;
}

/// Something for each job to do, and that it was done.
async fn every_job(service: &Service) {
    let stale = housekeeping::age(service, &service.basket().await, "2 hours").await;
    housekeeping::age_keys(service, "%").await;
    // As its owner, which is who made it then.
    let old = "DO $$ BEGIN
        EXECUTE (SELECT format('SET LOCAL ROLE %I', tableowner) FROM pg_tables WHERE tablename = 'command_log');
        CREATE TABLE command_log_m202001 PARTITION OF command_log FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
        END $$";
    service.database.execute(old).await.unwrap();
    wait::until("an abandoned basket, no old keys, no old month", SOON, async || {
        let basket: Value = service.get(&format!("/v1/baskets/{stale}")).await.json().await.unwrap();
        let left =
            "SELECT (SELECT count(*) FROM idempotency_key WHERE received_at < now() - interval '24 hours')
                         + (SELECT count(*) FROM pg_class WHERE relname = 'command_log_m202001')";
        let left = service.count(left).await;
        if basket["status"] == "abandoned" && left == 0 { Ok(()) } else { Err(format!("{basket} {left}")) }
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", service.program.log()));
}

#[tokio::test]
async fn each_privilege_that_is_missing_is_named_by_readiness_and_by_doctor() {
    let (database, role, url) = with_role().await;
    let service = Service::through(database, &url, &["--auth=static-token"]).await;
    for (missing, grant) in [
        ("INSERT (traceparent) ON outbox", "GRANT INSERT (id, aggregatetype"),
        ("INSERT ON command_log", "GRANT INSERT ON command_log TO"),
        (
            "EXECUTE ON FUNCTION command_log_maintain(interval)",
            "GRANT EXECUTE ON FUNCTION command_log_maintain",
        ),
    ] {
        service.database.execute(&format!("REVOKE {missing} FROM {role}")).await.unwrap();
        service.until_ready(503).await;
        let reason = service.readiness().await;
        assert!(reason.contains(grant), "{reason}");
        let (code, said) = run(&url, &["doctor"]).await;
        assert!(code == Some(69) && said.contains(grant), "{said}");
        service.database.execute(&format!("GRANT {missing} TO {role}")).await.unwrap();
        service.until_ready(200).await;
    }
    let Service { database, program, .. } = service;
    drop(program);
    drop_role(&database, &role).await;
}

#[tokio::test]
async fn the_role_may_not_change_the_log_nor_remove_events() {
    let (database, role, url) = with_role().await;
    let mut sql = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    for forbidden in [
        "UPDATE command_log SET principal = 'x'",
        "DELETE FROM command_log",
        "TRUNCATE command_log",
        "DELETE FROM outbox",
        "SELECT FROM outbox",
        "SELECT outbox_maintain('1 day', '1 day')",
        "DELETE FROM basket",
        "CREATE TABLE x (y int)",
    ] {
        let refused = sqlx::raw_sql(AssertSqlSafe(forbidden)).execute(&mut sql).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("42501"), "{forbidden}");
    }
    drop(sql);
    drop_role(&database, &role).await;
}
