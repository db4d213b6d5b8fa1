//! TLS: which servers are trusted, and that nothing is sent in plain text instead.

use super::*;
use pg_replication::{ChannelBinding, ClientIdentity, Password, Pem, TlsError, TlsMode};
use testbed::certificates::{Authority, Certificate, Signature};
use testbed::postgres::{ServerTls, Shutdown};

impl Server {
    async fn presenting(version: PgVersion, certificate: Certificate, clients: Option<&Authority>) -> Server {
        let client_authority = clients.map(|authority| authority.pem().to_owned());
        let tls = Some(ServerTls { certificate, client_authority });
        let auth = Auth::Scram;
        Server::with(PostgresOptions { version, auth, tls, ..PostgresOptions::default() }).await
    }
}

/// With the password, and full verification by a CA.
pub fn trusting(server: &Server, authority: &Authority) -> ConnectOptions {
    let mut options = server.options();
    options.password = server.postgres.password().map(Password::new);
    options.tls = TlsOptions { ca: Some(Pem::new(authority.pem())), ..TlsOptions::default() };
    options
}

fn in_mode(mode: TlsMode, mut options: ConnectOptions) -> ConnectOptions {
    options.tls.mode = mode;
    options
}

pub async fn refused(options: &ConnectOptions) -> Error {
    let error = Client::connect(options).await.err().expect("it connected");
    assert!(!format!("{error} {error:?} {options:?}").contains("testbed-password"));
    error
}

#[tokio::test]
async fn a_trusted_server_with_the_right_name_is_accepted() {
    const ROWS: usize = 20_000;
    for version in [PgVersion::V15, PgVersion::V17, PgVersion::V18] {
        let authority = Authority::new("CA").unwrap();
        let certificate = authority.server(&["localhost", "127.0.0.1"]).unwrap();
        let server = Server::presenting(version, certificate, None).await;
        let mut options = trusting(&server, &authority);
        options.tls.channel_binding = ChannelBinding::Require;
        let mut client = Client::connect(&options).await.unwrap();
        let seen = format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {}", client.process_id());
        assert_eq!(server.value(&seen).await.as_deref(), Some("true"), "{version:?}");
        client.create_slot("s", &SlotOptions::default()).await.unwrap();
        let mut stream = client.start_replication("s", EndLsn::ZERO, &output(true)).await.unwrap();
        server.sql(&format!("INSERT INTO t SELECT n, '\\xff' FROM generate_series(1, {ROWS}) n")).await;
        let (_, end, rows) = transaction(&mut stream).await;
        assert_eq!(rows.len(), ROWS);
        stream.confirm(end).unwrap();
        stream.finish(SOON).await.unwrap();
        assert_eq!(server.confirmed("s").await, end);

        let host = Host::Tcp { host: "localhost".into(), port: server.postgres.port() };
        Client::connect(&ConnectOptions { hosts: vec![host], ..options }).await.unwrap();
    }
}

#[tokio::test]
async fn each_mode_requires_what_it_promises() {
    use TlsMode::{Require, VerifyCa, VerifyFull};
    let (ours, other) = (Authority::new("ours").unwrap(), Authority::new("other").unwrap());
    let mut server = Server::presenting(PgVersion::V18, ours.server(&["db.test"]).unwrap(), None).await;
    let error = refused(&trusting(&server, &ours)).await;
    assert!(matches!(error, Error::Tls(TlsError::WrongHost { .. })), "{error}");
    assert!(error.to_string().contains("db.test"), "{error}");
    Client::connect(&in_mode(VerifyCa, trusting(&server, &ours))).await.unwrap();
    for mode in [VerifyCa, VerifyFull] {
        let mut by_the_web = in_mode(mode, trusting(&server, &ours));
        by_the_web.tls.ca = None;
        for options in [in_mode(mode, trusting(&server, &other)), by_the_web] {
            let error = refused(&options).await;
            assert!(matches!(error, Error::Tls(TlsError::NotTrusted { .. })), "{error}");
        }
    }
    Client::connect(&in_mode(Require, trusting(&server, &other))).await.unwrap();

    server.postgres.stop(Shutdown::Fast).await.unwrap();
    server.postgres.present(&ours.expired_server(&["127.0.0.1"]).unwrap()).unwrap();
    server.postgres.start_again().await.unwrap();
    for mode in [VerifyCa, VerifyFull] {
        let error = refused(&in_mode(mode, trusting(&server, &ours))).await;
        assert!(
            matches!(&error, Error::Tls(TlsError::NotTrusted { what }) if what.contains("expired")),
            "{error}"
        );
    }
    Client::connect(&in_mode(Require, trusting(&server, &ours))).await.unwrap();
}

/// Managed servers ask for the tokens of IAM in this way.
#[tokio::test]
async fn a_password_in_clear_text_is_for_a_verified_server() {
    let authority = Authority::new("CA").unwrap();
    let certificate = authority.server(&["127.0.0.1"]).unwrap();
    let server = Server::presenting(PgVersion::V18, certificate, None).await;
    server.sql("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'sesame'").await;
    let rules = "host all plain all password\nlocal all all trust\nhost all all all scram-sha-256";
    let file = server.value("current_setting('hba_file')").await.unwrap();
    server.sql(&format!("COPY (SELECT unnest(string_to_array(E'{rules}', E'\n'))) TO '{file}'")).await;
    server.sql("SELECT pg_reload_conf()").await;
    let verified = || ConnectOptions {
        user: "plain".into(),
        password: Some(Password::new("sesame")),
        ..trusting(&server, &authority)
    };
    let mut bound = verified();
    bound.tls.channel_binding = ChannelBinding::Require;
    testbed::wait::until("a server that asks for the password", SOON, async || {
        match Client::connect(&bound).await {
            Err(error @ Error::Auth { .. }) => Ok(error.to_string()),
            other => Err(other.err().map_or_else(|| "connected".to_owned(), |error| error.to_string())),
        }
    })
    .await
    .unwrap();
    Client::connect(&verified()).await.unwrap();
    let encrypted = Client::connect(&in_mode(TlsMode::Require, verified())).await.err().unwrap();
    assert!(encrypted.to_string().contains("refused without TLS that verifies the server"), "{encrypted}");
    assert!(!encrypted.to_string().contains("sesame"), "{encrypted}");
    let open = Client::connect(&in_mode(TlsMode::Disable, verified())).await.err().unwrap();
    assert!(matches!(open, Error::Auth { .. }), "{open}");
}

/// What a server presents, what is trusted, how it is reached; and in which modes that connects, or which error it
/// gives.
struct Case {
    what: &'static str,
    presented: Certificate,
    trusted: String,
    host: &'static str,
    verify_ca: Result<(), &'static str>,
    verify_full: Result<(), &'static str>,
}

/// Certificates as in PostgreSQL's manual ("Creating Certificates"), and some that must fail.
fn cases() -> Vec<Case> {
    let (ours, other) = (Authority::new("ours").unwrap(), Authority::new("other").unwrap());
    let own = Certificate::self_signed("localhost").unwrap();
    let old = Certificate::expired_self_signed("localhost").unwrap();
    let version_1 = || ours.version_1("localhost").unwrap();
    let mut list = Vec::new();
    let mut case = |what, presented: &Certificate, trusted: &str, host, verify_ca, verify_full| {
        let (presented, trusted) = (presented.clone(), trusted.to_owned());
        list.push(Case { what, presented, trusted, host, verify_ca, verify_full });
    };
    case("self-signed and trusted", &own, &own.pem, "localhost", Ok(()), Ok(()));
    case(
        "the same by another name",
        &own,
        &own.pem,
        "127.0.0.1",
        Ok(()),
        Err("it is for localhost (its common name)"),
    );
    case("self-signed and not trusted", &own, ours.pem(), "localhost", Err("CA:TRUE"), Err("CA:TRUE"));
    case(
        "self-signed and expired",
        &old,
        &old.pem,
        "localhost",
        Err("expired on 2020-02-01"),
        Err("expired on 2020"),
    );
    case("version 1", &version_1(), ours.pem(), "localhost", Ok(()), Ok(()));
    case(
        "version 1 by another name",
        &version_1(),
        ours.pem(),
        "127.0.0.1",
        Ok(()),
        Err("it is for localhost"),
    );
    let one = version_1();
    case("version 1, itself trusted", &one, &one.pem, "localhost", Ok(()), Ok(()));
    let unknown = Err("it (X.509 version 1) was issued by 'ours'");
    case("version 1 of another CA", &version_1(), other.pem(), "localhost", unknown, unknown);
    let named = ours.server_by_common_name("localhost").unwrap();
    case("no subjectAltName", &named, ours.pem(), "localhost", Ok(()), Ok(()));
    case(
        "no subjectAltName, another name",
        &named,
        ours.pem(),
        "127.0.0.1",
        Ok(()),
        Err("it is for localhost"),
    );
    let issued = ours.server(&["127.0.0.1"]).unwrap();
    case("a subjectAltName", &issued, ours.pem(), "127.0.0.1", Ok(()), Ok(()));
    case("issued by a CA, itself trusted", &issued, &issued.pem, "127.0.0.1", Ok(()), Ok(()));
    let unknown = Err("it was issued by 'ours', of which no trusted certificate is the issuer's");
    case("of another CA", &issued, other.pem(), "127.0.0.1", unknown, unknown);
    let client = ours.client("localhost").unwrap();
    case(
        "for clients",
        &client,
        ours.pem(),
        "localhost",
        Err("extended key usage"),
        Err("extended key usage"),
    );
    list
}

#[tokio::test]
async fn certificates_as_in_the_manual_connect_or_one_sentence_says_why_not() {
    let first = Certificate::self_signed("localhost").unwrap();
    let mut server = Server::presenting(PgVersion::V18, first, None).await;
    for case in cases() {
        server.postgres.stop(Shutdown::Fast).await.unwrap();
        server.postgres.present(&case.presented).unwrap();
        server.postgres.start_again().await.unwrap();
        let mut options = server.options();
        options.hosts = vec![Host::Tcp { host: case.host.into(), port: server.postgres.port() }];
        options.password = server.postgres.password().map(Password::new);
        options.tls = TlsOptions { ca: Some(Pem::new(case.trusted)), ..TlsOptions::default() };
        let expected = [
            (TlsMode::Require, Ok(())),
            (TlsMode::VerifyCa, case.verify_ca),
            (TlsMode::VerifyFull, case.verify_full),
        ];
        for (mode, expected) in expected {
            let met = Client::connect(&in_mode(mode, options.clone())).await;
            match (met, expected) {
                (Ok(client), Ok(())) => drop(client),
                (Err(error), Err(part)) => {
                    let text = error.to_string();
                    assert!(text.contains(part), "{}, {mode:?}: {text}", case.what);
                    assert!(!text.contains("Other(") && !text.contains("Error("), "{}: {text}", case.what);
                }
                (met, _) => panic!("{}, {mode:?}: {:?}", case.what, met.err()),
            }
        }
    }
}

#[tokio::test]
async fn a_server_with_older_tls_proves_its_key_too() {
    let ours = Authority::new("ours").unwrap();
    for presented in [ours.version_1("localhost").unwrap(), Certificate::self_signed("localhost").unwrap()] {
        let settings = [("ssl_max_protocol_version".to_owned(), "TLSv1.2".to_owned())].into();
        let trusted = format!("{}{}", presented.pem, ours.pem());
        let tls = Some(ServerTls { certificate: presented, client_authority: None });
        let server = Server::with(PostgresOptions { settings, tls, ..PostgresOptions::default() }).await;
        let mut options = server.options();
        options.hosts = vec![Host::Tcp { host: "localhost".into(), port: server.postgres.port() }];
        options.tls = TlsOptions { ca: Some(Pem::new(trusted)), ..TlsOptions::default() };
        let mut client = Client::connect(&options).await.unwrap();
        let version = client
            .simple_query("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            .await
            .unwrap();
        assert_eq!(version, [vec![Some("TLSv1.2".to_owned())]]);
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_without_tls() {
    let authority = Authority::new("CA").unwrap();
    let server = Server::start(PgVersion::V18, &[("log_connections", "on")], Auth::Scram).await;
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let error = refused(&in_mode(mode, trusting(&server, &authority))).await;
        assert!(matches!(error, Error::Tls(TlsError::NotOffered)), "{error}");
    }
    assert!(!server.postgres.log().contains("replication connection authorized"));
    Client::connect(&in_mode(TlsMode::Disable, trusting(&server, &authority))).await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_sent_where_it_is_required() {
    let (servers, clients) = (Authority::new("servers").unwrap(), Authority::new("clients").unwrap());
    let certificate = servers.server(&["127.0.0.1"]).unwrap();
    let server = Server::presenting(PgVersion::V18, certificate, Some(&clients)).await;
    let identified = |certificate: Certificate| {
        let mut options = trusting(&server, &servers);
        let (certificates, key) = (Pem::new(certificate.pem), Pem::new(certificate.key));
        options.tls.identity = Some(ClientIdentity { certificates, key });
        options
    };
    Client::connect(&identified(clients.client("relay").unwrap())).await.unwrap();
    Client::connect(&identified(clients.version_1("relay").unwrap())).await.unwrap();

    let missing = refused(&trusting(&server, &servers)).await;
    assert_eq!(missing.sqlstate().map(|code| code.class().to_owned()).as_deref(), Some("28"), "{missing}");
    let strange = refused(&identified(servers.client("relay").unwrap())).await;
    assert!(matches!(strange, Error::Tls(TlsError::Handshake { .. })), "{strange}");
    assert!(strange.to_string().contains("the server rejects the client certificate"), "{strange}");
    let ours = clients.client("relay").unwrap();
    let torn = Certificate { key: clients.client("relay").unwrap().key, ..ours };
    let torn = refused(&identified(torn)).await;
    assert!(matches!(torn, Error::Tls(TlsError::Identity { .. })), "{torn}");
    assert!(torn.to_string().contains("its key belongs to another certificate"), "{torn}");
}

#[tokio::test]
async fn scram_is_bound_with_every_hash_and_required_binding_is_enforced() {
    for signature in [Signature::EcdsaSha256, Signature::EcdsaSha384, Signature::Ed25519] {
        let authority = Authority::signing_with("CA", signature).unwrap();
        let certificate = authority.server(&["127.0.0.1"]).unwrap();
        let server = Server::presenting(PgVersion::V18, certificate, None).await;
        Client::connect(&trusting(&server, &authority)).await.unwrap();
        let mut required = trusting(&server, &authority);
        required.tls.channel_binding = ChannelBinding::Require;
        if signature == Signature::Ed25519 {
            assert!(matches!(refused(&required).await, Error::Auth { .. }), "no binding is defined for it");
            continue;
        }
        Client::connect(&required).await.unwrap();
        let plain = refused(&in_mode(TlsMode::Disable, required.clone())).await;
        assert!(matches!(plain, Error::Auth { .. }), "{plain}");
        let (directory, port) = (server.postgres.socket_directory().to_owned(), server.postgres.port());
        let trusted = ConnectOptions { hosts: vec![Host::Unix { directory, port }], ..required };
        assert!(matches!(refused(&trusted).await, Error::Auth { .. }), "let in without a password");
    }
}
