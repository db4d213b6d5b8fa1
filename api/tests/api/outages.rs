//! Bad days of the database and of the network to it: what clients are answered meanwhile, and that the service recovers
//! without a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use testbed::postgres::{Postgres, PostgresOptions, Shutdown};
use testbed::process::Signal;
use testbed::proxy::{Fault, Proxy};
use testbed::{Database, shared, wait};
use tokio::task::JoinSet;
use url::Url;

use crate::service::{Service, TOKEN, problem};

const SOON: Duration = Duration::from_secs(60);
/// For what has to wait for a statement whose answer was lost.
const LONG: Duration = Duration::from_secs(180);
/// More than there are connections to the database.
const CLIENTS: usize = 32;
const ARGUMENTS: [&str; 2] = ["--auth=static-token", "--drain-timeout=3s"];

/// A service whose connections to the shared server pass a proxy.
pub async fn behind_a_proxy() -> (Proxy, Service) {
    behind_a_proxy_with(&[]).await
}

async fn behind_a_proxy_with(arguments: &[&str]) -> (Proxy, Service) {
    let database = Database::fresh("outages").await.unwrap();
    let mut url = Url::parse(database.url()).unwrap();
    let proxy = Proxy::before(url.port().unwrap()).await.unwrap();
    url.set_port(Some(proxy.port())).unwrap();
    let service = Service::through(database, url.as_str(), &[&ARGUMENTS, arguments].concat()).await;
    (proxy, service)
}

/// Clients that create baskets, and read lists and commands, until they are dropped.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<StatusCode>>,
}

impl Load {
    async fn on(service: &Service) -> Load {
        Load::of(CLIENTS, service).await
    }

    async fn of(number: usize, service: &Service) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..number {
            let (http, address, stop) =
                (service.client.clone(), service.address().to_owned(), Arc::clone(&stop));
            clients.spawn(async move {
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let n = client + answers.len();
                    let request = match n % 4 {
                        0 => http.get(format!("http://{address}/v1/baskets?limit=1")),
                        1 => http.get(format!("http://{address}/v1/commands?limit=1")),
                        _ => http
                            .post(format!("http://{address}/v1/baskets"))
                            .header("Idempotency-Key", format!("load-{client}-{n}"))
                            .json(&json!({"buyer_id": "ann"})),
                    };
                    let sent = request.bearer_auth(TOKEN).send().await;
                    answers.extend(sent.map(|response| response.status()));
                }
                answers
            });
        }
        wait::until("work for every connection", SOON, async || {
            let baskets = service.count("SELECT count(*) FROM basket").await;
            if baskets > 2 * number as i64 { Ok(()) } else { Err(baskets) }
        })
        .await
        .unwrap();
        Load { stop, clients }
    }

    /// Every answer there was.
    async fn end(self) -> Vec<StatusCode> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await.concat()
    }
}

fn assert_honest(answers: &[StatusCode]) {
    let other: Vec<_> = answers.iter().filter(|status| ![200, 201, 503].contains(&status.as_u16())).collect();
    assert!(other.is_empty(), "{other:?}");
}

/// As after a failover, or when a firewall forgets its connections: the server's packets for them are lost, new ones pass.
#[tokio::test]
async fn connections_that_went_silent_are_replaced_under_load() {
    let (proxy, service) = behind_a_proxy().await;
    let load = Load::on(&service).await;
    proxy.silence_open();
    service.until_created().await;
    service.until_ready(200).await;
    let answers = load.end().await;
    assert_honest(&answers);
    let used = "basket_api_db_pool_connections{state=\"used\"} 0";
    wait::until("no connection in use", SOON, async || {
        let metrics = service.metrics().await;
        if metrics.contains(used) { Ok(()) } else { Err(metrics) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_network_that_is_silent_for_a_while_is_survived_under_load() {
    let (proxy, service) = behind_a_proxy().await;
    let load = Load::on(&service).await;
    proxy.set(Fault::Silence);
    service.until_ready(503).await;
    let reason = service.readiness().await;
    assert!(reason.contains("PostgreSQL at 127.0.0.1") && reason.contains("answer"), "{reason}");
    problem(service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await, 503).await;
    proxy.silence_open();
    proxy.set(Fault::None);
    service.until_created().await;
    service.until_ready(200).await;
    assert_honest(&load.end().await);
}

/// Ends what the network has carried so far, as a failover does: connections that are open stay silent, new ones pass. The
/// server ends the sessions of those, and their locks with them.
async fn fail_over(proxy: &Proxy, service: &Service) {
    proxy.set(Fault::Silence);
    service.until_ready(503).await;
    proxy.silence_open();
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'basket-api'";
    service.database.execute(end_sessions).await.unwrap();
    proxy.set(Fault::None);
}

/// Requests that hang do not keep connections from those that can be served until their own time is up.
#[tokio::test]
async fn requests_without_an_answer_end_with_the_outage_however_long_they_may_take() {
    // More than there are connections, and so few that new connections can be opened beside them.
    for clients in [CLIENTS, 3] {
        let (proxy, service) = behind_a_proxy_with(&["--request-timeout=10m"]).await;
        let load = Load::of(clients, &service).await;
        fail_over(&proxy, &service).await;
        service.until_created().await;
        assert_eq!(service.get("/v1/baskets").await.status(), 200);
        let answers = tokio::time::timeout(SOON, load.end()).await.expect("an answer to every request");
        assert_honest(&answers);
    }
}

/// The commands of housekeeping have no client that stops waiting for them.
#[tokio::test]
async fn housekeeping_continues_after_an_outage() {
    let arguments = ["--abandon-after=1h", "--housekeeping-every=100ms", "--request-timeout=10m"];
    let (proxy, service) = behind_a_proxy_with(&arguments).await;
    // More than are abandoned before the network is silent.
    let idle = "INSERT INTO basket (id, owner, buyer_id, status, lines, version, created_at, updated_at)
                SELECT overlay(uuidv7()::text PLACING '01900000-0000' FROM 1 FOR 13)::uuid, 'shop', 'ann', 'open', '[]', 1,
                       timestamptz '2024-06-10', timestamptz '2024-06-10' FROM generate_series(1, 300)";
    service.database.execute(idle).await.unwrap();
    const OPEN: &str = "SELECT count(*) FROM basket WHERE status = 'open'";
    wait::until("the first abandoned baskets", SOON, async || {
        let open = service.count(OPEN).await;
        if (1..295).contains(&open) { Ok(()) } else { Err(open) }
    })
    .await
    .unwrap();
    fail_over(&proxy, &service).await;
    assert!(service.count(OPEN).await > 0, "housekeeping was interrupted");
    wait::until("the other baskets", LONG, async || {
        let open = service.count(OPEN).await;
        if open == 0 { Ok(()) } else { Err(open) }
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", service.program.log()));
}

#[tokio::test]
async fn a_stop_ends_although_no_connection_answers() {
    let (proxy, mut service) = behind_a_proxy().await;
    let load = Load::on(&service).await;
    proxy.set(Fault::Silence);
    service.program.signal(Signal::Term).unwrap();
    let ended = service.program.wait(SOON).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", service.program.log());
    load.stop.store(true, Ordering::Relaxed);
}

#[tokio::test]
async fn a_slow_way_to_the_database_makes_answers_late_and_nothing_else() {
    let (proxy, service) = behind_a_proxy().await;
    proxy.set(Fault::Delay { by: Duration::from_millis(50), jitter: Duration::from_millis(50) });
    for _ in 0..3 {
        service.basket().await;
    }
    assert_eq!(service.readiness().await, "serving");
}

#[tokio::test]
async fn a_database_that_hangs_is_503_and_comes_back() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let service = Service::over(Database::on(&postgres.url("postgres"), "hangs").await.unwrap()).await;
    let load = Load::on(&service).await;
    postgres.pause().unwrap();
    service.until_ready(503).await;
    problem(service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await, 503).await;
    postgres.resume().unwrap();
    service.until_created().await;
    service.until_ready(200).await;
    assert_honest(&load.end().await);
}

/// As a managed server whose disk is full, and as a role that a DBA has restricted.
#[tokio::test]
async fn a_server_that_accepts_no_writes_is_unready_until_it_does() {
    let service = Service::start().await;
    let superuser = shared().await.unwrap().postgres_url("postgres");
    let elsewhere = async |sql: &str| {
        let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&superuser).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    };
    let name = service.database.name();
    let end_sessions =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    elsewhere(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    elsewhere(&end_sessions).await;
    service.until_ready(503).await;
    wait::until("the reason", SOON, async || {
        let reason = service.readiness().await;
        if reason.contains("accepts no writes") { Ok(()) } else { Err(reason) }
    })
    .await
    .unwrap();
    let refused = service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    problem(refused, 503).await;
    elsewhere(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
    service.until_ready(200).await;
    service.until_created().await;
}

/// Sessions that exist stay what they were: read-only ones are replaced, too.
#[tokio::test]
async fn a_switch_to_read_only_and_back_leaves_no_session_behind() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let service = Service::over(Database::on(&postgres.url("postgres"), "switch").await.unwrap()).await;
    let load = Load::on(&service).await;
    let set = async |mode: &str| {
        let sql = [
            format!("ALTER SYSTEM SET default_transaction_read_only = {mode}"),
            "SELECT pg_reload_conf()".into(),
        ];
        let mut connection = service.sql().await;
        for statement in sql {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        }
    };
    set("on").await;
    service.until_ready(503).await;
    problem(service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await, 503).await;
    set("off").await;
    service.until_ready(200).await;
    service.until_created().await;
    assert_honest(&load.end().await);
}

#[tokio::test]
async fn a_standby_is_unready_until_it_is_promoted() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let service = Service::over(Database::on(&postgres.url("postgres"), "standby").await.unwrap()).await;
    postgres.stop(Shutdown::Fast).await.unwrap();
    postgres.start_as_standby().await.unwrap();
    wait::until("the reason", SOON, async || {
        let reason = service.readiness().await;
        if reason.contains("it is a standby") { Ok(()) } else { Err(reason) }
    })
    .await
    .unwrap();
    problem(service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await, 503).await;
    service.database.execute("SELECT pg_promote()").await.unwrap();
    service.until_ready(200).await;
    service.until_created().await;
}

/// Of several servers that an address names, the one that accepts writes is used, before and after a failover.
#[tokio::test]
async fn the_primary_is_found_among_several_servers() {
    let mut former = Postgres::start(PostgresOptions::default()).await.unwrap();
    let mut next = Postgres::start(PostgresOptions::default()).await.unwrap();
    // The same name on both, as replication would have it.
    for server in [&former, &next] {
        let mut connection =
            <sqlx::PgConnection as sqlx::Connection>::connect(&server.url("postgres")).await.unwrap();
        for migration in testbed::migrations().unwrap() {
            sqlx::raw_sql(sqlx::AssertSqlSafe(migration)).execute(&mut connection).await.unwrap();
        }
    }
    next.stop(Shutdown::Fast).await.unwrap();
    next.start_as_standby().await.unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", next.port(), former.port());
    // Its own database is not used: it is where the helpers of the test connect to.
    let service = Service::through(Database::fresh("several").await.unwrap(), &url, &ARGUMENTS).await;
    service.until_created().await;
    let load_after = |server: &Postgres| {
        let url = server.url("postgres");
        async move {
            let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM basket").fetch_one(&mut connection).await.unwrap();
            count
        }
    };
    assert!(load_after(&former).await > 0);
    former.stop(Shutdown::Fast).await.unwrap();
    service.until_ready(503).await;
    let mut promoting =
        <sqlx::PgConnection as sqlx::Connection>::connect(&next.url("postgres")).await.unwrap();
    sqlx::query("SELECT pg_promote()").execute(&mut promoting).await.unwrap();
    service.until_ready(200).await;
    service.until_created().await;
    assert!(load_after(&next).await > 0);
}
