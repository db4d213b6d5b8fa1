//! Bearer tokens, with an issuer of our own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, Response};
use rsa::RsaPrivateKey;
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use testbed::certificates::{Authority, Certificate};
use testbed::guard::Folder;
use testbed::{Database, unique, wait};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::service::{Service, problem};

const ISSUER: &str = "https://issuer.test/";
const AUDIENCE: &str = "basket-api";
const SOON: Duration = Duration::from_secs(60);

/// A key pair of the issuer.
struct Pair {
    signs: EncodingKey,
    published: Value,
    algorithm: Algorithm,
}

/// RSA keys take a moment to make: one for all tests.
fn rsa() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let number = |bytes: Vec<u8>| URL_SAFE_NO_PAD.encode(bytes);
        Pair {
            signs: EncodingKey::from_rsa_der(key.to_pkcs1_der().unwrap().as_bytes()),
            published: json!({"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256",
                              "n": number(key.n().to_bytes_be()), "e": number(key.e().to_bytes_be())}),
            algorithm: Algorithm::RS256,
        }
    })
}

fn elliptic(kid: &str) -> Pair {
    let key = p256::SecretKey::random(&mut rsa::rand_core::OsRng);
    let mut published: Value = serde_json::from_str(&key.public_key().to_jwk_string()).unwrap();
    published["kid"] = json!(kid);
    let der = p256::pkcs8::EncodePrivateKey::to_pkcs8_der(&key).unwrap();
    Pair { signs: EncodingKey::from_ec_der(der.as_bytes()), published, algorithm: Algorithm::ES256 }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": now() + 600})
}

impl Pair {
    fn token(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = self.published["kid"].as_str().map(str::to_owned);
        encode(&header, claims, &self.signs).unwrap()
    }
}

/// The issuer's address for its keys.
struct Issuer {
    url: String,
    keys: Arc<Mutex<Value>>,
    fetched: Arc<AtomicUsize>,
    /// How long it takes to answer.
    delay: Arc<Mutex<Duration>>,
}

impl Issuer {
    async fn start(keys: &[&Pair]) -> Issuer {
        Issuer::listen("http", None, keys).await
    }

    /// At an https address, with this certificate.
    async fn secure(certificate: &Certificate, keys: &[&Pair]) -> Issuer {
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Issuer::listen("https", Some(TlsAcceptor::from(Arc::new(tls))), keys).await
    }

    async fn listen(scheme: &str, tls: Option<TlsAcceptor>, keys: &[&Pair]) -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}/keys", listener.local_addr().unwrap());
        let issuer = Issuer { url, keys: Arc::default(), fetched: Arc::default(), delay: Arc::default() };
        issuer.publish(keys);
        let (keys, fetched) = (Arc::clone(&issuer.keys), Arc::clone(&issuer.fetched));
        let delay = Arc::clone(&issuer.delay);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream: Box<dyn Stream> = match &tls {
                    None => Box::new(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        // A client that does not trust the certificate asks nothing.
                        Err(_) => continue,
                    },
                };
                fetched.fetch_add(1, Ordering::SeqCst);
                let (body, delay) = (keys.lock().unwrap().to_string(), *delay.lock().unwrap());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    answer(stream, &body).await;
                });
            }
        });
        issuer
    }

    fn publish(&self, keys: &[&Pair]) {
        let keys: Vec<&Value> = keys.iter().map(|pair| &pair.published).collect();
        *self.keys.lock().unwrap() = json!({ "keys": keys });
    }

    async fn service(&self) -> Service {
        self.service_with(&[]).await
    }

    async fn service_with(&self, more: &[&str]) -> Service {
        let service = self.unready_service_with(more).await;
        service.until_ready(200).await;
        service
    }

    async fn unready_service_with(&self, more: &[&str]) -> Service {
        let source = format!("--jwks-url={}", self.url);
        let issuer = format!("--jwt-issuer={ISSUER}");
        let arguments = [source.as_str(), &issuer, "--jwt-audience=basket-api"];
        let arguments = [&arguments, more].concat();
        Service::launch_unready(Database::fresh("tokens").await.unwrap(), &arguments)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn answer(mut stream: Box<dyn Stream>, body: &str) {
    let mut head = [0; 4096];
    drop(stream.read(&mut head).await);
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
    let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
    drop(stream.write_all(answer.as_bytes()).await);
    drop(stream.shutdown().await);
}

async fn list(service: &Service, token: &str) -> Response {
    service
        .client
        .get(format!("http://{}/v1/baskets", service.address()))
        .bearer_auth(token)
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn tokens_of_the_issuer_are_taken_and_no_others() {
    let (ec, stranger) = (elliptic("ec"), elliptic("ec"));
    let issuer = Issuer::start(&[rsa(), &ec]).await;
    let service = issuer.service().await;
    assert_eq!(list(&service, &rsa().token(&claims())).await.status(), 200);
    assert_eq!(list(&service, &ec.token(&claims())).await.status(), 200);
    let mut several = claims();
    several["aud"] = json!(["other", AUDIENCE]);
    assert_eq!(list(&service, &ec.token(&several)).await.status(), 200);

    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        ec.token(&claims)
    };
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        ec.token(&claims)
    };
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!("{}.{}.", part(&json!({"alg": "none", "kid": "ec"})), part(&claims()));
    // The public key as the secret of a MAC: the oldest trick.
    let public = rsa().published.to_string();
    let mut confused = Header::new(Algorithm::HS256);
    confused.kid = Some("rsa".to_owned());
    let confused = encode(&confused, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    let mut crossed = Header::new(Algorithm::RS256);
    crossed.kid = Some("ec".to_owned());
    let refused = [
        ("another key", stranger.token(&claims())),
        ("alg none", none),
        ("HS256", confused),
        ("the key of another type", encode(&crossed, &claims(), &rsa().signs).unwrap()),
        ("another issuer", with("iss", json!("https://elsewhere.test/"))),
        ("another audience", with("aud", json!("other"))),
        ("expired", with("exp", json!(now() - 3600))),
        ("exp as text", with("exp", json!((now() + 600).to_string()))),
        ("not yet", with("nbf", json!(now() + 3600))),
        ("nbf as text", with("nbf", json!("0"))),
        ("an empty subject", with("sub", json!(""))),
        ("a subject with a control character", with("sub", json!("a\u{0}b"))),
        ("no exp", without("exp")),
        ("no iss", without("iss")),
        ("no aud", without("aud")),
        ("no sub", without("sub")),
        ("nonsense", "x.y.z".to_owned()),
        ("too long", format!("{}{}", ec.token(&claims()), "a".repeat(9000))),
    ];
    for (case, token) in refused {
        let response = list(&service, &token).await;
        assert_eq!(response.status(), 401, "{case}");
        let challenge = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
        assert!(challenge.contains("invalid_token"), "{case}: {challenge}");
        let body = problem(response, 401).await.to_string();
        assert!(!body.contains(&token) && !service.program.log().contains(&token), "{case}");
    }
}

#[tokio::test]
async fn a_new_key_is_found_and_made_up_keys_do_not_hammer_the_issuer() {
    let (old, new, made_up) = (elliptic("old"), elliptic("new"), elliptic("made-up"));
    let issuer = Issuer::start(&[&old]).await;
    let service = issuer.service().await;
    assert_eq!(list(&service, &old.token(&claims())).await.status(), 200);
    issuer.publish(&[&new]);
    wait::until("the new key to be known", SOON, async || {
        let status = list(&service, &new.token(&claims())).await.status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
    assert_eq!(list(&service, &old.token(&claims())).await.status(), 401, "a withdrawn key is withdrawn");
    let before = issuer.fetched.load(Ordering::SeqCst);
    for _ in 0..50 {
        assert_eq!(list(&service, &made_up.token(&claims())).await.status(), 401);
    }
    assert!(issuer.fetched.load(Ordering::SeqCst) <= before + 2);
    // Keys stay in use when the issuer has none to show.
    issuer.publish(&[]);
    assert_eq!(list(&service, &new.token(&claims())).await.status(), 200);
}

#[tokio::test]
async fn without_keys_there_is_no_service_until_they_come() {
    let folder = testbed::guard::Folder::new("keys").unwrap();
    let file = folder.path().join("keys.json");
    let ec = elliptic("ec");
    let (issuer, source) = (format!("--jwt-issuer={ISSUER}"), format!("--jwks-file={}", file.display()));
    let arguments = [issuer.as_str(), "--jwt-audience=basket-api", &source];
    let service = Service::launch_unready(Database::fresh("tokens").await.unwrap(), &arguments);
    wait::until("the reason in the log", SOON, async || {
        let log = service.program.log();
        if log.contains("keys cannot be read") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    service.until_ready(503).await;
    let away = list(&service, &ec.token(&claims())).await;
    assert_eq!(away.headers()["retry-after"], "1");
    assert_eq!(problem(away, 503).await["type"], "/problems/unavailable");
    std::fs::write(&file, json!({"keys": [ec.published]}).to_string()).unwrap();
    wait::until("the keys to be read", SOON, async || {
        let status = list(&service, &ec.token(&claims())).await.status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await
    .unwrap();
    service.until_ready(200).await;
}

/// Clients that leave while the set is read, and an issuer that takes its time.
#[tokio::test]
async fn clients_that_leave_do_not_keep_the_keys_from_being_read() {
    let (old, new, made_up) = (elliptic("old"), elliptic("new"), elliptic("made-up"));
    let issuer = Issuer::start(&[&old]).await;
    let service = issuer.service().await;
    *issuer.delay.lock().unwrap() = Duration::from_millis(200);
    issuer.publish(&[&new]);
    let token = made_up.token(&claims());
    let request = format!("GET /v1/baskets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    let leave = async {
        loop {
            let mut stream = tokio::net::TcpStream::connect(service.address()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let read = wait::until("the new key to be known and the old one to be withdrawn", SOON, async || {
        let (new, old) = (new.token(&claims()), old.token(&claims()));
        let (new, old) = (list(&service, &new).await.status(), list(&service, &old).await.status());
        if new == 200 && old == 401 { Ok(()) } else { Err(format!("{new} {old}")) }
    });
    tokio::select! {
        () = leave => {}
        read = read => read.unwrap(),
    }
}

/// Requests with unknown keys would take all the room.
#[tokio::test]
async fn an_issuer_that_does_not_answer_holds_up_no_request_with_a_known_key() {
    let (known, made_up) = (elliptic("known"), elliptic("made-up"));
    let issuer = Issuer::start(&[&known]).await;
    let service = issuer.service_with(&["--max-requests=24"]).await;
    *issuer.delay.lock().unwrap() = Duration::from_secs(3600);
    let (known, made_up) = (known.token(&claims()), made_up.token(&claims()));
    let before = issuer.fetched.load(Ordering::SeqCst);
    wait::until("a reading that does not end", SOON, async || {
        list(&service, &made_up).await;
        if issuer.fetched.load(Ordering::SeqCst) > before { Ok(()) } else { Err("none") }
    })
    .await
    .unwrap();
    let unknown = futures::future::join_all((0..100).map(|_| list(&service, &made_up)));
    let known = async {
        for _ in 0..10 {
            assert_eq!(list(&service, &known).await.status(), 200);
        }
    };
    let (unknown, ()) = tokio::join!(unknown, known);
    for response in unknown {
        assert_eq!(response.headers()["retry-after"], "1");
        problem(response, 503).await;
    }
}

#[tokio::test]
async fn types_and_times_of_tokens_are_those_of_the_rfcs() {
    let ec = elliptic("ec");
    let issuer = Issuer::start(&[&ec]).await;
    let (any, strict) = tokio::join!(issuer.service(), issuer.service_with(&["--jwt-require-at-jwt"]));
    let typed = |media_type: Option<&str>| {
        let mut header = Header::new(Algorithm::ES256);
        (header.typ, header.kid) = (media_type.map(str::to_owned), Some("ec".to_owned()));
        encode(&header, &claims(), &ec.signs).unwrap()
    };
    let cases = [
        (None, 200, 401),
        (Some("JWT"), 200, 401),
        (Some("application/jwt"), 200, 401),
        (Some("at+jwt"), 200, 200),
        (Some("AT+JWT"), 200, 200),
        (Some("application/at+jwt"), 200, 200),
        (Some("dpop+jwt"), 401, 401),
        (Some("logout+jwt"), 401, 401),
    ];
    for (media_type, by_default, with_required) in cases {
        let token = typed(media_type);
        assert_eq!(list(&any, &token).await.status(), by_default, "{media_type:?}");
        assert_eq!(list(&strict, &token).await.status(), with_required, "{media_type:?}, at+jwt required");
    }
    let at = |name: &str, time: Value| {
        let mut claims = claims();
        claims[name] = time;
        ec.token(&claims)
    };
    let soon = now() as f64 + 600.25;
    for token in [at("exp", json!(soon)), at("exp", json!(4.1e9)), at("nbf", json!(soon - 1200.0))] {
        assert_eq!(list(&any, &token).await.status(), 200);
    }
    let expired = list(&any, &at("exp", json!(soon - 7200.0))).await;
    let challenge = expired.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.contains("it has expired"), "{challenge}");
}

/// As Cognito issues them: no audience, the client instead; groups and scopes in separate claims.
#[tokio::test]
async fn claims_are_found_under_the_names_that_the_issuer_gives_them() {
    let ec = elliptic("ec");
    let issuer = Issuer::start(&[&ec]).await;
    let names = ["--jwt-audience-claim=client_id", "--jwt-subject-claim=username"];
    let roles = ["--jwt-roles-claim=cognito:groups,scope", "--jwt-auditor-role=shop/audit"];
    let service = issuer.service_with(&[names, roles].concat()).await;
    let token = |more: Value| {
        let mut claims = json!({"iss": ISSUER, "exp": now() + 600, "sub": "opaque", "username": "ann",
                                "client_id": AUDIENCE, "token_use": "access"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ec.token(&claims)
    };
    let commands = async |token: &str| {
        let url = format!("http://{}/v1/commands?principal=bob", service.address());
        service.client.get(url).bearer_auth(token).send().await.unwrap().status()
    };
    assert_eq!(commands(&token(json!({}))).await, 403);
    assert_eq!(commands(&token(json!({"scope": "openid shop/audit"}))).await, 200);
    assert_eq!(commands(&token(json!({"cognito:groups": ["shop/audit"]}))).await, 200);
    assert_eq!(commands(&token(json!({"client_id": "other"}))).await, 401);
    let created = service.client.post(format!("http://{}/v1/baskets", service.address()));
    let created = created.bearer_auth(token(json!({}))).header("Idempotency-Key", "k");
    assert_eq!(created.json(&json!({"buyer_id": "b"})).send().await.unwrap().status(), 201);
    assert_eq!(service.count("SELECT count(*) FROM basket WHERE owner = 'ann'").await, 1);
}

/// Only a certificate of the trusted CA for the issuer's address is accepted. Refused are one of another
/// CA, one for another host, and one of the trusted CA where only the public root CAs are trusted.
#[tokio::test]
async fn keys_over_https_come_only_from_a_server_with_a_trusted_certificate() {
    let folder = Folder::new("ca").unwrap();
    let (trusted, other) = (Authority::new("trusted").unwrap(), Authority::new("other").unwrap());
    let trust = folder.path().join("trusted.pem");
    std::fs::write(&trust, trusted.pem()).unwrap();
    let trust = format!("--jwks-ca-file={}", trust.display());
    let ec = elliptic("ec");

    let issuer = Issuer::secure(&trusted.server(&["127.0.0.1"]).unwrap(), &[&ec]).await;
    let service = issuer.service_with(&[&trust]).await;
    assert_eq!(list(&service, &ec.token(&claims())).await.status(), 200);
    assert!(issuer.fetched.load(Ordering::SeqCst) > 0);

    let cases = [
        ("another CA", other.server(&["127.0.0.1"]), vec![trust.as_str()]),
        ("another host", trusted.server(&["issuer.test"]), vec![trust.as_str()]),
        ("no CA named", trusted.server(&["127.0.0.1"]), vec![]),
    ];
    for (case, certificate, trust) in cases {
        let issuer = Issuer::secure(&certificate.unwrap(), &[&ec]).await;
        let service = issuer.unready_service_with(&trust).await;
        wait::until("the reason in the log", SOON, async || {
            let log = service.program.log();
            if log.contains("keys cannot be read") { Ok(()) } else { Err(log) }
        })
        .await
        .unwrap();
        let refused = problem(list(&service, &ec.token(&claims())).await, 503).await;
        assert_eq!(refused["type"], "/problems/unavailable", "{case}");
        assert_eq!(issuer.fetched.load(Ordering::SeqCst), 0, "{case}: it was asked for its keys");
        let log = service.program.log();
        assert!(!log.contains("panicked"), "{case}: {log}");
    }
}

#[tokio::test]
async fn each_principal_has_separate_baskets_and_commands_and_an_auditor_reads_all_commands() {
    let ec = elliptic("ec");
    let issuer = Issuer::start(&[&ec]).await;
    let service = issuer.service_with(&["--jwt-roles-claim=realm_access.roles"]).await;
    let token = |subject: &str, roles: &[&str]| {
        let mut claims = claims();
        claims["sub"] = json!(subject);
        claims["realm_access"] = json!({ "roles": roles });
        ec.token(&claims)
    };
    let (ann, bob, auditor) = (token("ann", &[]), token("bob", &["buyer"]), token("eve", &["auditor"]));
    let send = async |method: Method, path: &str, token: &str| {
        let request = service.client.request(method, format!("http://{}{path}", service.address()));
        let request = request.bearer_auth(token).header("Idempotency-Key", unique("k"));
        request.json(&json!({"buyer_id": "b"})).send().await.unwrap()
    };
    let created = send(Method::POST, "/v1/baskets", &ann).await;
    let command = created.headers()["command-id"].to_str().unwrap().to_owned();
    let basket =
        created.url().join(created.headers()["location"].to_str().unwrap()).unwrap().path().to_owned();
    assert_eq!(send(Method::GET, &basket, &ann).await.status(), 200);
    let absent = "/v1/baskets/00000000-0000-0000-0000-000000000000";
    for method in [Method::GET, Method::DELETE] {
        let foreign = problem(send(method.clone(), &basket, &bob).await, 404).await;
        let absent = problem(send(method, absent, &bob).await, 404).await;
        for member in ["type", "title", "detail"] {
            assert_eq!(foreign[member], absent[member], "a foreign basket looks like none");
        }
    }
    let baskets: Value = send(Method::GET, "/v1/baskets", &bob).await.json().await.unwrap();
    assert_eq!(baskets["baskets"], json!([]));

    let command = format!("/v1/commands/{command}");
    for (reader, status) in [(&ann, 200), (&bob, 404), (&auditor, 200)] {
        assert_eq!(send(Method::GET, &command, reader).await.status(), status);
    }
    let theirs = "/v1/commands?principal=ann";
    for (reader, status) in [(&ann, 200), (&bob, 403), (&auditor, 200)] {
        assert_eq!(send(Method::GET, theirs, reader).await.status(), status);
    }
    let all: Value = send(Method::GET, "/v1/commands", &auditor).await.json().await.unwrap();
    assert_eq!(all["commands"].as_array().unwrap().len(), 3);
    assert_eq!(
        send(Method::GET, &basket, &auditor).await.status(),
        404,
        "an auditor reads commands, not baskets"
    );
}

#[tokio::test]
async fn the_same_key_of_two_principals_is_two_keys() {
    let ec = elliptic("ec");
    let issuer = Issuer::start(&[&ec]).await;
    let service = issuer.service().await;
    let mut seen = Vec::new();
    for subject in ["ann", "bob"] {
        let mut claims = claims();
        claims["sub"] = json!(subject);
        let request = service.client.post(format!("http://{}/v1/baskets", service.address()));
        let request = request.bearer_auth(ec.token(&claims)).header("Idempotency-Key", "one-key");
        let created = request.json(&json!({"buyer_id": "b"})).send().await.unwrap();
        assert_eq!(created.status(), 201);
        assert!(!created.headers().contains_key("idempotent-replayed"));
        seen.push(created.headers()["location"].clone());
    }
    assert_ne!(seen[0], seen[1]);
}
