//! TLS to PostgreSQL: all connections are encrypted, no other server is trusted, and rotated credentials are used
//! without a restart.

use std::path::{Path, PathBuf};

use testbed::certificates::{Authority, Certificate};
use testbed::guard::Folder;
use testbed::postgres::{Auth, Postgres, PostgresOptions, ServerTls, Shutdown};
use testbed::shared;

use crate::fixture::{Relay, Site, heavy_permit};
use crate::misconfiguration::shows;

/// A PostgreSQL with TLS, CAs, and the files of a relay.
struct Encrypted {
    postgres: Postgres,
    site: Site,
    servers: Authority,
    clients: Authority,
    folder: Folder,
}

impl Encrypted {
    /// With a certificate for 127.0.0.1, and client certificates required. The relay's role has its password in a file.
    async fn start() -> Encrypted {
        let (servers, clients) = (Authority::new("servers").unwrap(), Authority::new("clients").unwrap());
        let tls = ServerTls {
            certificate: servers.server(&["127.0.0.1"]).unwrap(),
            client_authority: Some(clients.pem().to_owned()),
        };
        let options = PostgresOptions { auth: Auth::Scram, tls: Some(tls), ..PostgresOptions::default() };
        let postgres = Postgres::start(options).await.unwrap();
        let kafka = shared().await.unwrap().kafka_bootstrap();
        let site = Site::on(&postgres.url("postgres"), kafka).await;
        site.execute("CREATE ROLE shipper LOGIN SUPERUSER PASSWORD 'first-secret'").await;
        let folder = Folder::new("relay-files").unwrap();
        let encrypted = Encrypted { postgres, site, servers, clients, folder };
        encrypted.write("password", "first-secret\n");
        encrypted.write("ca.pem", encrypted.servers.pem());
        encrypted.clients.client("shipper").unwrap().write(encrypted.folder.path(), "client").unwrap();
        encrypted
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.file(name), content).unwrap();
    }

    /// Starts a relay with these TLS settings in addition to the files.
    fn relay(&self, tls: &str) -> Relay {
        self.relay_with(tls, |text| text)
    }

    fn relay_with(&self, tls: &str, edit: impl FnOnce(String) -> String) -> Relay {
        let password = self.file("password");
        self.site.launch(|text| {
            edit(text)
                .replacen("mode: disable", tls, 1)
                .replace("user: postgres", &format!("user: shipper, passwordFile: {}", password.display()))
        })
    }

    fn ca(&self) -> String {
        format!("caFile: {}", self.file("ca.pem").display())
    }

    fn identity(&self) -> String {
        let shown = |path: &Path| path.display().to_string();
        format!("certFile: {}, keyFile: {}", shown(&self.file("client.pem")), shown(&self.file("client.key")))
    }

    async fn present(&mut self, certificate: &Certificate) {
        self.postgres.stop(Shutdown::Fast).await.unwrap();
        self.postgres.present(certificate).unwrap();
        self.postgres.start_again().await.unwrap();
    }
}

#[tokio::test]
async fn everything_is_encrypted_and_rotated_credentials_are_used_without_a_restart() {
    let _permit = heavy_permit().await;
    let mut on = Encrypted::start().await;
    let relay = on.relay(&format!("channelBinding: require, {}, {}", on.ca(), on.identity()));
    relay.until_ready().await;
    let load = on.site.start_load(50.0).await;
    // A fourth connection, for maintenance, comes and goes.
    let connections = "SELECT string_agg(DISTINCT application_name, ', ' ORDER BY application_name)
                       FROM pg_stat_activity WHERE usename = 'shipper'
                       AND application_name <> 'outbox-relay maintenance'";
    let all = "outbox-relay, outbox-relay observer, outbox-relay session";
    on.site.until_value(connections, all).await;
    let unencrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                       WHERE usename = 'shipper' AND (NOT ssl OR client_dn IS NULL)";
    assert_eq!(on.site.value(unencrypted).await.as_deref(), Some("0"));

    // From now on another CA issues the server's certificate.
    let next = Authority::new("next").unwrap();
    on.present(&next.server(&["127.0.0.1"]).unwrap()).await;
    shows(&relay, "CertificateNotTrusted", "source.tls.caFile").await;
    on.write("ca.pem", next.pem());
    relay.until_ready().await;

    // The role's password changes, and its connections end.
    on.site.execute("ALTER ROLE shipper PASSWORD 'second-secret'").await;
    on.site.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shipper'").await;
    shows(&relay, "AuthenticationFailed", "source.user and its password").await;
    std::fs::remove_file(on.file("password")).unwrap();
    shows(&relay, "CredentialsUnreadable", "reads it again at each attempt").await;
    on.write("password", "second-secret");
    relay.until_ready().await;

    let verdict = on.site.verdict(load, &relay).await;
    crate::fixture::assert_correct(&verdict);
    let (code, log) = relay.stop().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("-secret") && !log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn a_server_with_the_wrong_certificate_gets_no_connection() {
    let _permit = heavy_permit().await;
    let mut on = Encrypted::start().await;
    let (ca, identity) = (on.ca(), on.identity());
    let full = format!("{ca}, {identity}");

    shows(&on.relay(&identity), "CertificateNotTrusted", "source.tls.caFile").await;
    shows(&on.relay(&ca), "AuthenticationFailed", "source.tls.certFile").await;
    on.servers.client("shipper").unwrap().write(on.folder.path(), "client").unwrap();
    shows(&on.relay(&full), "TlsFailed", "source.tls.certFile").await;
    on.clients.client("shipper").unwrap().write(on.folder.path(), "client").unwrap();

    let elsewhere = on.servers.server(&["db.test"]).unwrap();
    on.present(&elsewhere).await;
    shows(&on.relay(&full), "CertificateForOtherHost", "set source.host to a name").await;
    on.relay(&format!("mode: verify-ca, {full}")).until_ready().await;
    let expired = on.servers.expired_server(&["127.0.0.1"]).unwrap();
    on.present(&expired).await;
    shows(&on.relay(&full), "CertificateNotTrusted", "renew").await;
    on.relay(&format!("mode: require, {identity}")).until_ready().await;
}

#[tokio::test]
async fn a_server_without_tls_gets_no_plain_text_connection() {
    let site = Site::shared().await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let relay = site.launch(|text| text.replacen("mode: disable", &format!("mode: {mode}"), 1));
        shows(&relay, "TlsNotOffered", "set ssl = on in PostgreSQL").await;
    }
    let seen = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND backend_type = 'client backend'";
    assert_eq!(site.value(seen).await.as_deref(), Some("1"), "only the test itself is connected");
}

/// Stream and SQL connections accept the same certificates: those that PostgreSQL's manual creates and psql accepts.
#[tokio::test]
async fn a_certificate_created_as_in_the_manual_is_accepted() {
    let _permit = heavy_permit().await;
    let mut on = Encrypted::start().await;
    let own = Certificate::self_signed("localhost").unwrap();
    let tls = |on: &Encrypted, mode: &str| format!("mode: {mode}, {}, {}", on.ca(), on.identity());
    let by_name = |text: String| text.replacen("host: 127.0.0.1", "host: localhost", 1);
    on.write("ca.pem", &own.pem);
    on.present(&own).await;
    let relay = on.relay_with(&tls(&on, "verify-full"), by_name);
    relay.until_ready().await;
    on.site.insert([("k", 1)]).await;
    on.site.until_records(1).await;
    relay.stop().await;
    on.relay(&tls(&on, "verify-ca")).until_ready().await;
    let named = "it is for localhost (its common name), not for 127.0.0.1";
    let relay = on.relay(&tls(&on, "verify-full"));
    assert!(relay.until("/readyz", 503, "CertificateForOtherHost").await.contains(named));
    drop(relay);

    let version_1 = on.servers.version_1("localhost").unwrap();
    on.write("ca.pem", on.servers.pem());
    on.present(&version_1).await;
    let relay = on.relay_with(&tls(&on, "verify-full"), by_name);
    relay.until_ready().await;
    on.present(&own).await;
    let text = relay.until("/readyz", 503, "CertificateNotTrusted").await;
    assert!(text.contains("CA:TRUE") && !text.contains("Other("), "{text}");
}
