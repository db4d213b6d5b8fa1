//! Who may connect, how they authenticate, and the errors of a rejection.

use super::*;
use pg_replication::{Password, SqlState, SystemIdentity};
use testbed::wait;

#[tokio::test]
async fn scram_unix_sockets_and_a_wrong_password() {
    let server = Server::start(PgVersion::V18, &[], Auth::Scram).await;
    let mut options = server.options();
    options.password = server.postgres.password().map(Password::new);
    let mut client = Client::connect(&options).await.unwrap();
    let identity = client.identify_system().await.unwrap();
    assert_eq!((identity.timeline, identity.database.as_str()), (1, "postgres"));
    let system_id = server.value("SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(Some(identity.system_id.to_string()), system_id);

    options.password = Some(Password::new("wrong-password"));
    let error = Client::connect(&options).await.err().unwrap();
    assert_eq!(error.sqlstate(), Some(SqlState::INVALID_PASSWORD));
    assert!(!format!("{error} {error:?} {options:?}").contains("wrong-password"));

    let directory = server.postgres.socket_directory().to_owned();
    let host = Host::Unix { directory, port: server.postgres.port() };
    let mut client = Client::connect(&ConnectOptions::new(host, "postgres", "postgres")).await.unwrap();
    assert_eq!(client.identify_system().await.unwrap(), identity_at(&identity, &mut client).await);
}

/// The same identity with the present flush LSN.
async fn identity_at(identity: &SystemIdentity, client: &mut Client) -> SystemIdentity {
    let now = client.identify_system().await.unwrap();
    assert!(now.flush_lsn >= identity.flush_lsn);
    SystemIdentity { flush_lsn: now.flush_lsn, ..identity.clone() }
}

#[tokio::test]
async fn a_missing_server_and_a_missing_database_have_their_errors() {
    let server = Server::version_18().await;
    let port = testbed::net::free_port().unwrap();
    let nobody =
        ConnectOptions { hosts: vec![Host::Tcp { host: "127.0.0.1".into(), port }], ..server.options() };
    assert!(matches!(Client::connect(&nobody).await, Err(Error::Connect { .. })));
    let unknown = ConnectOptions { database: "unknown".into(), ..server.options() };
    assert_eq!(
        Client::connect(&unknown).await.err().unwrap().sqlstate(),
        Some(SqlState::INVALID_CATALOG_NAME)
    );
}

#[tokio::test]
async fn md5_is_spoken_and_clear_text_is_not() {
    let server = Server::version_18().await;
    server
        .sql("SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'sesame'")
        .await;
    server.sql("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'sesame'").await;
    let rules =
        "host all hashed all md5\nhost all plain all password\nlocal all all trust\nhost all all all trust";
    let file = server.value("current_setting('hba_file')").await.unwrap();
    server.sql(&format!("COPY (SELECT unnest(string_to_array(E'{rules}', E'\n'))) TO '{file}'")).await;
    server.sql("SELECT pg_reload_conf()").await;

    let named = |user: &str, password: &str| {
        let password = Some(Password::new(password));
        ConnectOptions { user: user.into(), password, ..server.options() }
    };
    wait::until("a refusal to send the password", SOON, async || {
        match Client::connect(&named("plain", "sesame")).await {
            Err(error @ Error::Auth { .. }) if !format!("{error} {error:?}").contains("sesame") => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(_) => Err("connected".to_owned()),
        }
    })
    .await
    .unwrap();
    Client::connect(&named("hashed", "sesame")).await.unwrap();
    let wrong = Client::connect(&named("hashed", "wrong")).await.err().unwrap();
    assert_eq!(wrong.sqlstate(), Some(SqlState::INVALID_PASSWORD));
    let none = ConnectOptions { password: None, ..named("hashed", "") };
    assert!(matches!(Client::connect(&none).await, Err(Error::Auth { .. })));
}

#[tokio::test]
async fn the_role_needs_replication_and_a_free_walsender() {
    let server = Server::start(PgVersion::V18, &[("max_wal_senders", "1")], Auth::Trust).await;
    server.sql("CREATE ROLE reader LOGIN").await;
    let reader = ConnectOptions { user: "reader".into(), ..server.options() };
    let refused = Client::connect(&reader).await.err().unwrap();
    assert_eq!(refused.sqlstate(), Some(SqlState::INSUFFICIENT_PRIVILEGE));
    // The server rejects the connection before it has freed the walsender.
    let one = wait::until("a free walsender", SOON, async || Client::connect(&server.options()).await);
    let _only = one.await.unwrap();
    let full = Client::connect(&server.options()).await.err().unwrap();
    assert_eq!(full.sqlstate(), Some(SqlState::TOO_MANY_CONNECTIONS));
}

#[tokio::test]
async fn connecting_to_a_silent_server_times_out() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut options = ConnectOptions::new(Host::Tcp { host: "127.0.0.1".into(), port }, "relay", "shop");
    options.tls = TlsOptions::disabled();
    options.connect_timeout = Duration::from_millis(200);
    let error = tokio::time::timeout(SOON, Client::connect(&options)).await.expect("it waits forever");
    assert!(matches!(error, Err(Error::Timeout { .. })));
}

#[tokio::test]
async fn a_failed_statement_leaves_the_connection_usable_and_an_abandoned_one_does_not() {
    let server = Server::version_18().await;
    let mut client = server.client().await;
    let refused = client.simple_query("SELECT * FROM nowhere").await.unwrap_err();
    assert_eq!(refused.sqlstate(), Some(SqlState::UNDEFINED_TABLE));
    let rows = client.simple_query("SELECT 1, NULL; SELECT 2, ''").await.unwrap();
    assert_eq!(rows, [[Some("1".to_owned()), None], [Some("2".to_owned()), Some(String::new())]]);

    let sleep = client.simple_query("SELECT pg_sleep(60)");
    assert!(tokio::time::timeout(Duration::from_millis(50), sleep).await.is_err());
    assert!(matches!(client.identify_system().await, Err(Error::Interrupted)));
}
