//! What a token has to say, and how it has to be signed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::issuer::{AUDIENCE, ISSUER, Issuer, claims, elliptic, now, rsa};
use super::list;
use crate::service::problem;

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
