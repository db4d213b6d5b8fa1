//! SASL OAUTHBEARER: tokens of an issuer, and of a file that another process renews. When a token expires or is rejected, or the issuer is
//! down, no event is lost or sent twice, and the cause is reported.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use testbed::certificates::{Authority, Certificate};
use testbed::guard::Folder;
use testbed::issuer::{Grant, Issuer};
use testbed::kafka::{BrokerTls, Kafka, KafkaOptions, Security, TokenCheck};
use testbed::{Database, net, shared, wait};

use crate::fixture::{PARTITIONS, Relay, Site, TIMEOUT, assert_correct, heavy_permit};

const CLIENT: &str = "shipper";
const SECRET: &str = "first: secret";
/// A fifth of it is left when a token is renewed, on a machine that runs other tests meanwhile.
const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);

/// A broker that accepts only tokens, their issuer, and the files of a relay.
struct Tokens {
    kafka: Kafka,
    issuer: Arc<Issuer>,
    certificate: Certificate,
    site: Site,
    folder: Folder,
}

/// Brokers that accept tokens which are signed with the issuer's present key.
fn security(issuer: &Issuer, certificate: &Certificate) -> Security {
    Security {
        tls: Some(BrokerTls { certificate: certificate.clone(), client_authority: None }),
        tokens: Some(TokenCheck {
            keys: issuer.keys().to_string(),
            issuer: issuer.name.clone(),
            audience: "kafka".to_owned(),
        }),
        ..Security::default()
    }
}

impl Tokens {
    async fn start(lifetime: Duration) -> Tokens {
        let authority = Authority::new("brokers and issuer").unwrap();
        let certificate = authority.server(&["localhost"]).unwrap();
        let grant = Grant {
            client_id: CLIENT.to_owned(),
            client_secret: "first%3A+secret".to_owned(),
            audience: "kafka".to_owned(),
            lifetime,
        };
        let issuer = Issuer::new(grant, Some(certificate.clone())).unwrap();
        let security = Some(security(&issuer, &certificate));
        let options = KafkaOptions { security, ..KafkaOptions::default() };
        let kafka = Kafka::start(options).await.unwrap();
        let database =
            Database::on(&shared().await.unwrap().postgres_url("postgres"), "relay").await.unwrap();
        // The testbed reads and creates topics by the plain listener.
        let site = Site::without_topic(database, &kafka.bootstrap());
        kafka.create_topic(&site.topic(), PARTITIONS, 1, &[]).await.unwrap();
        let tokens = Tokens { kafka, issuer, certificate, site, folder: Folder::new("relay-files").unwrap() };
        tokens.write("ca.pem", authority.pem());
        tokens.write("secret", &format!("{SECRET}\n"));
        tokens
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.file(name), content).unwrap();
    }

    /// As a kubelet does it: another file takes the name.
    fn replace(&self, name: &str, content: &str) {
        self.write("new", content);
        std::fs::rename(self.file("new"), self.file(name)).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client_credentials(&self) -> String {
        format!(
            "clientCredentials: {{tokenEndpoint: '{}', caFile: {}, clientId: {CLIENT}, clientSecretFile: {}, scope: 'kafka write'}}",
            self.issuer.token_endpoint(),
            self.file("ca.pem").display(),
            self.file("secret").display(),
        )
    }

    fn token_file(&self) -> String {
        format!("tokenFile: {}", self.file("token").display())
    }

    /// Edits a relay's configuration to authenticate this way.
    fn edit(&self, way: &str) -> impl Fn(String) -> String + use<> {
        let plain = format!("bootstrapServers: '{}', tls: {{mode: disable}}", self.kafka.bootstrap());
        let secure = format!(
            "bootstrapServers: '{}', tls: {{caFile: {}}}, sasl: {{mechanism: OAUTHBEARER, extensions: {{logicalCluster: lkc}}, {way}}}",
            self.kafka.secure_bootstrap(),
            self.file("ca.pem").display(),
        );
        move |text| {
            assert!(text.contains(&plain), "{text}");
            text.replace(&plain, &secure)
        }
    }

    fn relay(&self, way: &str) -> Relay {
        self.site.launch(self.edit(way))
    }

    /// Waits until the status shows the reason with these words.
    async fn until_unauthenticated(&self, relay: &Relay, words: &str) -> String {
        wait::until(format!("KafkaAuthenticationFailed: {words}"), TIMEOUT, async || {
            let status = relay.status_text().await;
            let is_so = status.contains("KafkaAuthenticationFailed") && status.contains(words);
            if is_so { Ok(status) } else { Err(format!("{status}\n{}", relay.program.log_tail())) }
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn tokens_expire_and_their_issuer_is_down_for_a_while_and_every_event_arrives_once() {
    let _permit = heavy_permit().await;
    let tokens = Tokens::start(SHORT).await;
    let answering = tokens.issuer.answer().await.unwrap();
    let relay = tokens.relay(&tokens.client_credentials());
    relay.until_ready().await;
    let load = tokens.site.start_load(200.0).await;
    // Several lifetimes: a broker closes a connection that does not authenticate again with a newer token.
    wait::until("four tokens", TIMEOUT, async || {
        let asked = tokens.issuer.asked();
        if asked.len() >= 4 { Ok(()) } else { Err(format!("{asked:?}")) }
    })
    .await
    .unwrap();
    let request = tokens.issuer.asked().remove(0);
    assert_eq!(request, "grant_type=client_credentials&scope=kafka+write");
    assert_eq!(relay.metric("outbox_relay_reconnects_total").await, 0.0, "{}", relay.program.log());

    drop(answering);
    let status = tokens.until_unauthenticated(&relay, "the token endpoint https://localhost").await;
    assert!(status.contains("refused"), "{status}");
    relay.until("/readyz", 503, "KafkaAuthenticationFailed").await;
    let _answering = tokens.issuer.answer().await.unwrap();
    relay.until_ready().await;
    assert_correct(&tokens.site.verdict(load, &relay).await);
}

#[tokio::test]
async fn an_issuer_that_is_down_or_refuses_is_named_and_no_secret_is_shown() {
    let _permit = heavy_permit().await;
    let tokens = Tokens::start(LONG).await;
    tokens.site.insert([("a", 1)]).await;
    tokens.write("secret", "wrong-secret");
    let relay = tokens.relay(&tokens.client_credentials());
    tokens.until_unauthenticated(&relay, "the token endpoint https://localhost").await;
    let edit = tokens.edit(&tokens.client_credentials());
    let doctor = tokens.site.command(net::free_port().unwrap(), &edit, &["doctor"]).await;
    assert!(doctor.out.contains("the token endpoint https://localhost"), "{doctor:?}");
    assert_eq!(doctor.code, Some(69), "{doctor:?}");

    let _answering = tokens.issuer.answer().await.unwrap();
    let refused = tokens.until_unauthenticated(&relay, "401 (invalid_client: no such client").await;
    assert!(refused.contains("check client ID, client secret and scope"), "{refused}");
    let shown = format!("{refused}{}{doctor:?}", relay.program.log());
    assert!(!shown.contains("wrong-secret"), "{shown}");

    // The relay is not restarted.
    tokens.write("secret", SECRET);
    relay.until_ready().await;
    tokens.site.until_records(1).await;
    let doctor = tokens.site.command(net::free_port().unwrap(), &edit, &["doctor"]).await;
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let token = tokens.issuer.token().unwrap();
    let signed = token.split('.').next().unwrap();
    let shown = format!("{}{}", relay.status_text().await, relay.program.log());
    assert!(!shown.contains(SECRET) && !shown.contains(signed), "{shown}");
    tokens.site.judge_table(&relay).await;
}

#[tokio::test]
async fn a_token_file_is_read_again_when_another_process_renews_it() {
    let _permit = heavy_permit().await;
    let tokens = Arc::new(Tokens::start(SHORT).await);
    tokens.replace("token", &tokens.issuer.token().unwrap());
    let process = Arc::clone(&tokens);
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(SHORT / 10).await;
            process.replace("token", &format!("{}\n", process.issuer.token().unwrap()));
        }
    });
    let relay = tokens.relay(&tokens.token_file());
    relay.until_ready().await;
    let load = tokens.site.start_load(200.0).await;
    // Beyond the lifetime of the token that it has authenticated with first.
    let first_ends = Instant::now() + SHORT;
    wait::until("records of a later token", TIMEOUT, async || {
        let count = tokens.site.records().await.len();
        let is_later = Instant::now() > first_ends && count > 100;
        if is_later { Ok(()) } else { Err(format!("{count} records")) }
    })
    .await
    .unwrap();
    assert_eq!(relay.metric("outbox_relay_reconnects_total").await, 0.0, "{}", relay.program.log());

    renewing.abort();
    let status = tokens.until_unauthenticated(&relay, "gave a token that has expired").await;
    assert!(status.contains("/token"), "{status}");
    tokens.replace("token", "opaque");
    tokens.until_unauthenticated(&relay, "set sink.sasl.tokenLifetimeSeconds").await;
    tokens.issuer.grant(|grant| grant.lifetime = LONG);
    tokens.replace("token", &tokens.issuer.token().unwrap());
    relay.until_ready().await;
    assert_correct(&tokens.site.verdict(load, &relay).await);
}

#[tokio::test]
async fn a_token_that_brokers_reject_is_replaced_before_it_expires() {
    let _permit = heavy_permit().await;
    let mut tokens = Tokens::start(LONG).await;
    let _answering = tokens.issuer.answer().await.unwrap();
    let relay = tokens.relay(&tokens.client_credentials());
    relay.until_ready().await;
    let load = tokens.site.start_load(100.0).await;
    tokens.site.until_records(50).await;
    let before = tokens.issuer.asked().len();
    tokens.kafka.stop().await.unwrap();
    tokens.issuer.replace_key().unwrap();
    let security = security(&tokens.issuer, &tokens.certificate);
    tokens.kafka.secure_differently(security).unwrap();
    tokens.kafka.start_again().await.unwrap();
    wait::until("another token", TIMEOUT, async || {
        let asked = tokens.issuer.asked().len();
        if asked > before { Ok(()) } else { Err(relay.status_text().await) }
    })
    .await
    .unwrap();
    relay.until_ready().await;
    assert_correct(&tokens.site.verdict(load, &relay).await);
}
