//! Several hosts: the first writable one is used.

use super::*;
use pg_replication::Target;
use testbed::postgres::Shutdown;

fn at(address: &str, port: u16) -> Host {
    Host::Tcp { host: address.into(), port }
}

#[tokio::test]
async fn the_first_writable_host_is_used() {
    let (mut standby, primary) = tokio::join!(Server::version_18(), Server::version_18());
    standby.postgres.stop(Shutdown::Fast).await.unwrap();
    standby.postgres.start_as_standby().await.unwrap();
    let dead = at("127.0.0.1", testbed::net::free_port().unwrap());
    let unknown = at("no-such-host.invalid", 5432);
    let behind = at("127.0.0.1", standby.postgres.port());
    let wanted = at("127.0.0.1", primary.postgres.port());

    let mut options = primary.options();
    options.hosts = vec![unknown.clone(), dead.clone(), behind.clone(), wanted.clone()];
    let mut client = Client::connect(&options).await.unwrap();
    assert_eq!(client.host(), &wanted);
    let in_recovery = client.simple_query("SELECT pg_is_in_recovery()").await.unwrap();
    assert_eq!(in_recovery, [[Some("f".to_owned())]]);

    options.hosts = vec![behind.clone()];
    let alone = Client::connect(&options).await.err().unwrap();
    assert!(matches!(alone, Error::ReadOnly { .. }), "{alone}");
    options.hosts = vec![unknown.clone(), dead.clone(), behind.clone()];
    let Error::NoServer { skipped } = Client::connect(&options).await.err().unwrap() else {
        panic!("not all hosts are named")
    };
    assert!(matches!(
        skipped.iter().map(|server| &server.error).collect::<Vec<_>>()[..],
        [Error::Connect { .. }, Error::Connect { .. }, Error::ReadOnly { .. }]
    ));
    let text = Error::NoServer { skipped }.to_string();
    for host in [unknown, dead, behind.clone()] {
        assert!(text.contains(&host.to_string()), "{host} is not in: {text}");
    }

    options.target = Target::Any;
    assert_eq!(Client::connect(&options).await.unwrap().host(), &behind);
    standby.sql("SELECT pg_promote()").await;
    options.target = Target::ReadWrite;
    assert_eq!(Client::connect(&options).await.unwrap().host(), &behind, "promoted");
}

#[tokio::test]
async fn a_primary_that_is_set_read_only_is_skipped() {
    let options = PostgresOptions {
        version: PgVersion::V15,
        settings: vec![("default_transaction_read_only".into(), "on".into())],
        ..PostgresOptions::default()
    };
    let server = Server { postgres: Postgres::start(options).await.unwrap() };
    let mut options = server.options();
    assert!(matches!(Client::connect(&options).await, Err(Error::ReadOnly { .. })));
    options.hosts.clear();
    let none = Client::connect(&options).await.err().unwrap();
    assert!(none.to_string().contains("no host was given"), "{none}");
}
