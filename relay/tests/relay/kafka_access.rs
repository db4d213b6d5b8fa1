//! Access to Kafka: TLS, credentials and permissions. No other server is trusted, no secret is shown, and rotated
//! credentials are used without a restart.

use std::path::PathBuf;

use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::kafka::{BrokerTls, Kafka, KafkaOptions, Login, Security};
use testbed::{Database, shared, wait};

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, heavy_permit};

pub const USER: &str = "shipper";
pub const PASSWORD: &str = "first-secret";

/// A broker that requires authentication, and the files of a relay.
pub struct Guarded {
    pub kafka: Kafka,
    pub site: Site,
    folder: Folder,
    brokers: Authority,
    clients: Authority,
}

fn login(password: &str) -> Login {
    Login { user: USER.to_owned(), password: password.to_owned() }
}

impl Guarded {
    /// With TLS, client certificates and SASL users. If `authorize` is set, no user has any permission.
    pub async fn start(authorize: bool) -> Guarded {
        Guarded::start_brokers(1, authorize).await
    }

    async fn start_brokers(count: usize, authorize: bool) -> Guarded {
        let (brokers, clients) = (Authority::new("brokers").unwrap(), Authority::new("clients").unwrap());
        let security = Security {
            tls: Some(BrokerTls {
                certificate: brokers.server(&["localhost"]).unwrap(),
                client_authority: Some(clients.pem().to_owned()),
            }),
            logins: vec![login(PASSWORD), Login { user: "other".into(), password: "other-secret".into() }],
            authorize,
            ..Security::default()
        };
        let options = KafkaOptions { brokers: count, security: Some(security), ..KafkaOptions::default() };
        let kafka = Kafka::start(options).await.unwrap();
        let database =
            Database::on(&shared().await.unwrap().postgres_url("postgres"), "relay").await.unwrap();
        // The testbed reads and creates topics through the plain listener.
        let site = Site::without_topic(database, &kafka.bootstrap());
        kafka.create_topic(&site.topic(), PARTITIONS, 1, &[]).await.unwrap();
        let guarded = Guarded { kafka, site, folder: Folder::new("relay-files").unwrap(), brokers, clients };
        guarded.write("user", USER);
        guarded.write("password", &format!("{PASSWORD}\n"));
        guarded.write("ca.pem", guarded.brokers.pem());
        guarded.write("others.pem", guarded.clients.pem());
        guarded.clients.client(USER).unwrap().write(guarded.folder.path(), "client").unwrap();
        guarded
    }

    pub fn write(&self, name: &str, content: &str) {
        std::fs::write(self.file(name), content).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `caFile` and the client's certificate.
    pub fn tls(&self, ca: &str) -> String {
        let [ca, certificate, key] = [ca, "client.pem", "client.key"].map(|name| self.file(name));
        format!("caFile: {}, certFile: {}, keyFile: {}", ca.display(), certificate.display(), key.display())
    }

    pub fn sasl(&self, mechanism: &str) -> String {
        let (user, password) = (self.file("user"), self.file("password"));
        format!(
            "sasl: {{mechanism: {mechanism}, usernameFile: {}, passwordFile: {}}}",
            user.display(),
            password.display()
        )
    }

    pub fn relay(&self, tls: &str, sasl: &str) -> Relay {
        let plain = format!("bootstrapServers: '{}', tls: {{mode: disable}}", self.kafka.bootstrap());
        let guarded =
            format!("bootstrapServers: '{}', tls: {{{tls}}}, {sasl}", self.kafka.secure_bootstrap());
        self.site.launch(|text| {
            assert!(text.contains(&plain), "{text}");
            text.replace(&plain, &guarded)
        })
    }
}

#[tokio::test]
async fn every_way_in_works_and_what_is_rotated_is_used_without_a_restart() {
    let _permit = heavy_permit().await;
    let mut guarded = Guarded::start(false).await;
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let relay = guarded.relay(&guarded.tls("ca.pem"), &guarded.sasl(mechanism));
        relay.until_ready().await;
        guarded.site.insert([(mechanism, 1)]).await;
        guarded.site.until_confirmed(&relay).await;
        assert_eq!(relay.stop().await.0, Some(0));
    }
    assert_eq!(guarded.site.records().await.len(), 2);

    let relay = guarded.relay(&guarded.tls("ca.pem"), &guarded.sasl("SCRAM-SHA-512"));
    relay.until_ready().await;
    let load = guarded.site.start_load(300.0).await;
    guarded.site.until_records(100).await;
    // Rotate to another user while everything works.
    guarded.write("password", "other-secret");
    guarded.write("user", "other");
    relay.until("/metrics", 200, "reason=\"CredentialsRotated\"").await;
    relay.until_ready().await;

    // Another CA: the broker's certificate is trusted once the file contains it.
    guarded.kafka.stop().await.unwrap();
    let brokers = Authority::new("new brokers").unwrap();
    guarded
        .kafka
        .secure_differently(Security {
            tls: Some(BrokerTls {
                certificate: brokers.server(&["localhost"]).unwrap(),
                client_authority: Some(guarded.clients.pem().to_owned()),
            }),
            logins: vec![login(PASSWORD)],
            ..Security::default()
        })
        .unwrap();
    guarded.kafka.start_again().await.unwrap();
    relay.until("/readyz", 503, "KafkaAuthenticationFailed").await;
    guarded.write("ca.pem", brokers.pem());
    relay.until_ready().await;
    load.stop().await.unwrap();
    guarded.site.judge_table(&relay).await;
}

#[tokio::test]
async fn no_other_server_is_trusted_and_no_secret_is_shown() {
    let _permit = heavy_permit().await;
    let mut guarded = Guarded::start(true).await;
    let (tls, sasl) = (guarded.tls("ca.pem"), guarded.sasl("PLAIN"));
    let bare = format!("caFile: {}", guarded.file("ca.pem").display());
    guarded.site.insert([("a", 1)]).await;
    // If a broker refuses after the handshake, librdkafka only sees a closed connection. Its message is shown.
    for (tls, sasl, reason, words) in [
        (&guarded.tls("others.pem"), &sasl, "KafkaAuthenticationFailed", "certificate"),
        (&bare, &sasl, "KafkaUnreachable", "certificate"),
        (&tls, &String::new(), "KafkaUnreachable", "closed by peer"),
    ] {
        let relay = guarded.relay(tls, sasl);
        let shown = relay.until("/readyz", 503, reason).await;
        assert!(shown.contains(words), "{shown}");
        relay.kill().await;
    }

    guarded.write("password", "wrong-secret");
    let relay = guarded.relay(&tls, &sasl);
    relay.until("/readyz", 503, "KafkaAuthenticationFailed").await;
    let everything = format!("{}{}", relay.status_text().await, relay.program.log());
    assert!(!everything.contains("wrong-secret"), "{everything}");

    // The right password, first without a permission, then with one.
    guarded.write("password", PASSWORD);
    relay.until("/readyz", 503, "KafkaPermissionDenied").await;
    guarded.kafka.stop().await.unwrap();
    guarded
        .kafka
        .secure_differently(Security {
            tls: Some(BrokerTls {
                certificate: guarded.brokers.server(&["elsewhere.test"]).unwrap(),
                client_authority: Some(guarded.clients.pem().to_owned()),
            }),
            logins: vec![login(PASSWORD)],
            authorize: true,
            super_users: vec![USER.to_owned()],
            ..Security::default()
        })
        .unwrap();
    guarded.kafka.start_again().await.unwrap();
    // A trusted certificate, for another host.
    relay.until("/readyz", 503, "KafkaAuthenticationFailed").await;
    relay.kill().await;
    let relay = guarded.relay(&format!("mode: verify-ca, {tls}"), &sasl);
    relay.until_ready().await;
    guarded.site.until_records(1).await;
    guarded.site.judge_table(&relay).await;
}

/// One broker of three restarts with an untrusted certificate. The other two receive their records.
#[tokio::test]
async fn one_broker_that_is_not_trusted_does_not_end_the_session() {
    let _permit = heavy_permit().await;
    let mut guarded = Guarded::start_brokers(3, false).await;
    let relay = guarded.relay(&guarded.tls("ca.pem"), &guarded.sasl("PLAIN"));
    relay.until_ready().await;
    let keys: Vec<String> = (0..30).map(|n| format!("key-{n}")).collect();
    let everywhere = keys.iter().map(|key| (key.as_str(), 1));
    guarded.site.insert(everywhere.clone()).await;
    guarded.site.until_records(30).await;
    let with = |authority: &Authority, guarded: &Guarded| Security {
        tls: Some(BrokerTls {
            certificate: authority.server(&["localhost"]).unwrap(),
            client_authority: Some(guarded.clients.pem().to_owned()),
        }),
        logins: vec![login(PASSWORD)],
        ..Security::default()
    };
    let others = with(&Authority::new("others").unwrap(), &guarded);
    guarded.kafka.secure_differently(others).unwrap();
    guarded.kafka.brokers()[2].stop().await.unwrap();
    guarded.kafka.start_again().await.unwrap();
    let rebuilds = relay.metric("outbox_relay_producer_rebuilds_total").await;
    let in_vain = |log: &str| log.matches("authentication with a Kafka broker failed").count();
    // The last row goes to a partition with another leader.
    let records = wait::until("records of the other brokers, and a complaint", TIMEOUT, async || {
        guarded.site.insert(everywhere.clone()).await;
        let records = guarded.site.records().await;
        let log = relay.program.log();
        if records.len() >= 50 && in_vain(&log) > 0 {
            Ok(records)
        } else {
            Err(format!("{} records\n{log}", records.len()))
        }
    })
    .await
    .unwrap();
    assert!(!records.is_empty());
    assert_eq!(
        relay.metric("outbox_relay_producer_rebuilds_total").await,
        rebuilds,
        "{}",
        relay.program.log()
    );
    assert!(!relay.program.log().contains("KafkaAuthenticationFailed"), "{}", relay.program.log());
    let trusted = with(&guarded.brokers, &guarded);
    guarded.kafka.secure_differently(trusted).unwrap();
    guarded.kafka.brokers()[2].stop().await.unwrap();
    guarded.kafka.start_again().await.unwrap();
    relay.until_ready().await;
    guarded.site.judge_table(&relay).await;
}
