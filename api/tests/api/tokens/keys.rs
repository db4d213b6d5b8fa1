//! The issuer's keys: when they are read, and from where.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use testbed::certificates::Authority;
use testbed::guard::Folder;
use testbed::{Database, wait};
use tokio::io::AsyncWriteExt;

use super::issuer::{ISSUER, Issuer, claims, elliptic};
use super::list;
use crate::service::{Service, problem};

const SOON: Duration = Duration::from_secs(60);

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
