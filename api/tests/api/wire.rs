//! What a client sends that is not a request as HTTP libraries make them.

use std::time::Duration;

use serde_json::json;
use testbed::unique;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::service::{Service, TOKEN};

/// Far longer than any timeout of the service under test.
const SOON: Duration = Duration::from_secs(60);

/// Everything the service answers until it closes the connection.
async fn exchange(service: &Service, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(service.address()).await.unwrap();
    // The service may close while it is still being written to.
    drop(stream.write_all(sent).await);
    let mut answer = Vec::new();
    drop(
        tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection is closed"),
    );
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(request: &str, headers: &str) -> Vec<u8> {
    format!("{request}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("closed")
}

#[tokio::test]
async fn what_two_servers_could_read_differently_is_refused() {
    let service = Service::start().await;
    let host = "Host: x\r\n";
    let get = "GET /v1/baskets HTTP/1.1";
    let post = "POST /v1/baskets HTTP/1.1";
    let cases = [
        ("no Host", head(get, ""), &["400"][..]),
        ("two Hosts", head(get, "Host: a\r\nHost: b\r\n"), &["400"]),
        ("HTTP/1.0 without Host", head("GET /v1/baskets HTTP/1.0", ""), &["400"]),
        ("HTTP/1.0", head("GET /v1/baskets HTTP/1.0", host), &["200"]),
        ("two lengths", head(post, &format!("{host}Content-Length: 3\r\nContent-Length: 4\r\n")), &["400"]),
        ("NUL in a header", head(get, &format!("{host}X: a\0b\r\n")), &["400"]),
        ("CR in a header", head(get, &format!("{host}X: a\rb\r\n")), &["400"]),
        ("a folded header", head(get, &format!("{host}X: a\r\n b\r\n")), &["400"]),
        ("no HTTP", b"hello\r\n\r\n".to_vec(), &["400"]),
        (
            "a long URI",
            head(&format!("GET /v1/baskets?buyer_id={} HTTP/1.1", "a".repeat(10_000)), host),
            &["414"],
        ),
        ("long headers", head(get, &format!("{host}X: {}\r\n", "a".repeat(20_000))), &["431"]),
        (
            "a header that fits nowhere",
            head(get, &format!("{host}X: {}\r\n", "a".repeat(1_000_000))),
            &["431", "closed"],
        ),
        ("a made-up method", head("BREW /v1/baskets HTTP/1.1", host), &["405"]),
        ("CONNECT, which ends in a panic in some servers", head("CONNECT x:443 HTTP/1.1", host), &["400"]),
        ("OPTIONS *", head("OPTIONS * HTTP/1.1", host), &["404"]),
        ("an absolute URI", head("GET http://x/v1/baskets HTTP/1.1", host), &["200"]),
    ];
    for (case, sent, expected) in cases {
        let answer = exchange(&service, &sent).await;
        assert!(expected.contains(&status(&answer)), "{case}: {answer}");
    }
    assert_eq!(service.count("SELECT count(*) FROM basket").await, 0);
    let metrics = service.metrics().await;
    let counted = "basket_api_http_requests_total{method=\"other\",route=\"unknown\",status=\"400\"} 1";
    assert!(metrics.contains(counted), "CONNECT is counted, too: {metrics}");
}

#[tokio::test]
async fn after_a_body_in_chunks_the_connection_ends() {
    let service = Service::start().await;
    let headers = format!("Host: x\r\nAuthorization: Bearer {TOKEN}\r\n");
    let both = format!(
        "POST /v1/baskets HTTP/1.1\r\n{headers}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let smuggled = format!("GET /v1/baskets HTTP/1.1\r\n{headers}\r\n");
    let answer = exchange(&service, format!("{both}0\r\n\r\n{smuggled}").as_bytes()).await;
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), ("415", 1), "{answer}");
}

#[tokio::test]
async fn problems_of_the_head_are_problem_details_too() {
    let service = Service::start().await;
    for path in [format!("/v1/baskets?buyer_id={}", "a".repeat(10_000)), "/v1/baskets".to_owned()] {
        let sent =
            head(&format!("GET {path} HTTP/1.1"), &format!("Host: x\r\nX: {}\r\n", "a".repeat(20_000)));
        let answer = exchange(&service, &sent).await;
        assert!(answer.contains("application/problem+json") && answer.contains("x-request-id"), "{answer}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let service = Service::start().await;
    let first = format!("GET /v1/baskets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    let sent = [first.into_bytes(), head("GET /nowhere HTTP/1.1", "Host: x\r\n")].concat();
    let answer = exchange(&service, &sent).await;
    let statuses: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").filter_map(|(at, _)| answer.get(at + 9..at + 12)).collect();
    assert_eq!(statuses, ["200", "404"]);
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_off_at_the_limit() {
    let service = Service::start().await;
    let key = unique("k");
    let headers = format!("Host: x\r\nIdempotency-Key: {key}\r\nContent-Type: application/json\r\n");
    let chunked = head("POST /v1/baskets HTTP/1.1", &format!("{headers}Transfer-Encoding: chunked\r\n"));
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000)).into_bytes();
    let endless = [chunked, chunk.repeat(40)].concat();
    assert_eq!(status(&exchange(&service, &endless).await), "413");
    let huge = head("POST /v1/baskets HTTP/1.1", &format!("{headers}Content-Length: 100000000\r\n"));
    // Before anything of it came: nothing of it is wanted.
    assert_eq!(status(&exchange(&service, &huge).await), "413");
    let body = json!({"buyer_id": "ann"});
    let zipped = service.request(reqwest::Method::POST, "/v1/baskets").header("Content-Encoding", "gzip");
    let zipped = zipped.header("Idempotency-Key", key).json(&body).send().await.unwrap();
    assert_eq!(zipped.status(), 415);
}

#[tokio::test]
async fn a_client_that_leaves_learns_by_its_key_what_happened() {
    let service = Service::start().await;
    let body = json!({"buyer_id": "ann"});
    for round in 0..20 {
        let headers = format!(
            "Host: x\r\nIdempotency-Key: left-{round}\r\nContent-Type: application/json\r\nContent-Length: 18\r\n"
        );
        let sent = [head("POST /v1/baskets HTTP/1.1", &headers), b"{\"buyer_id\":\"ann\"}".to_vec()].concat();
        let mut stream = TcpStream::connect(service.address()).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        drop(stream);
    }
    for round in 0..20 {
        assert_eq!(service.post("/v1/baskets", &format!("left-{round}"), &body).await.status(), 201);
    }
    assert_eq!(
        service.count("SELECT count(*) FROM basket").await,
        20,
        "each once, although clients disconnected"
    );
    let halves = "SELECT count(*) FROM basket b FULL JOIN command_log c ON c.basket_id = b.id
                  WHERE b.id IS NULL OR c.id IS NULL";
    assert_eq!(service.count(halves).await, 0);
}
