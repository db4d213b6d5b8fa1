//! Clients that keep connections: slow ones, many of them, and those that are connected when the service stops.

use std::time::Duration;

use serde_json::json;
use testbed::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::service::{Service, TOKEN, tea};

/// Far longer than any timeout of the service under test.
const SOON: Duration = Duration::from_secs(60);
/// No timeout of a test ends a connection.
const PATIENT: [&str; 3] = ["--header-timeout=1h", "--idle-timeout=1h", "--send-timeout=1h"];

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
}

/// A client that pipelines requests and reads no answer. It needs no token.
async fn deaf(service: &Service) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let mut stream = socket.connect(service.address().parse().unwrap()).await.unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    // The service reads no more than it can answer.
    let _ = tokio::time::timeout(Duration::from_millis(200), stream.write_all(requests.as_bytes())).await;
    stream
}

/// Everything the service answers until it closes the connection.
async fn until_closed(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn until_metric(service: &Service, line: &str) {
    wait::until(line, SOON, async || {
        let metrics = service.metrics().await;
        if metrics.lines().any(|found| found == line) { Ok(()) } else { Err(metrics) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_waited_for() {
    let service = Service::with(&["--send-timeout=300ms"]).await;
    let stream = deaf(&service).await;
    until_metric(&service, "basket_api_http_connections_closed_total{reason=\"send_timeout\"} 1").await;
    drop(stream);
}

#[tokio::test]
async fn a_head_that_does_not_end_and_an_idle_connection_have_separate_timeouts() {
    let service = Service::with(&["--header-timeout=300ms", "--idle-timeout=1h"]).await;
    let mut idle = TcpStream::connect(service.address()).await.unwrap();
    idle.write_all(get("/v1/baskets").as_bytes()).await.unwrap();
    let mut stream = TcpStream::connect(service.address()).await.unwrap();
    stream.write_all(get("/v1/baskets").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    stream.write_all(b"GET /v1/baskets HTTP/1.1\r\nHost: x\r\nX: ").await.unwrap();
    assert!(!until_closed(stream).await.contains("HTTP/1.1 "));
    // The other one has been without a request for longer than a head may take.
    let last = get("/v1/baskets").replace("Host", "Connection: close\r\nHost");
    idle.write_all(last.as_bytes()).await.unwrap();
    assert_eq!(until_closed(idle).await.matches("HTTP/1.1 200").count(), 2);
    until_metric(&service, "basket_api_http_connections_closed_total{reason=\"header_timeout\"} 1").await;

    let service = Service::with(&["--header-timeout=1h", "--idle-timeout=300ms"]).await;
    let mut stream = TcpStream::connect(service.address()).await.unwrap();
    stream.write_all(get("/v1/baskets").as_bytes()).await.unwrap();
    assert!(until_closed(stream).await.starts_with("HTTP/1.1 200"));
    until_metric(&service, "basket_api_http_connections_closed_total{reason=\"idle_timeout\"} 1").await;
}

/// Whatever all of the connections wait for.
#[tokio::test]
async fn connections_that_wait_for_their_clients_keep_out_no_one() {
    let service = Service::with(&[&PATIENT[..], &["--max-connections=4"]].concat()).await;
    let mut kept = Vec::new();
    for _ in 0..8 {
        kept.push(deaf(&service).await);
    }
    assert_eq!(service.get("/v1/baskets").await.status(), 200);
    for _ in 0..8 {
        let mut begun = TcpStream::connect(service.address()).await.unwrap();
        begun.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
        kept.push(begun);
    }
    assert_eq!(
        reqwest::get(format!("http://{}/openapi.json", service.address())).await.unwrap().status(),
        200
    );
    for _ in 0..8 {
        let mut idle = TcpStream::connect(service.address()).await.unwrap();
        idle.write_all(get("/v1/baskets").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        kept.push(idle);
    }
    assert_eq!(
        reqwest::get(format!("http://{}/openapi.json", service.address())).await.unwrap().status(),
        200
    );
}

#[tokio::test]
async fn a_request_in_flight_keeps_its_connection_however_many_there_are() {
    let service = Service::with(&[&PATIENT[..], &["--max-connections=2"]].concat()).await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let item = tea(1);
    let (in_flight, ()) = tokio::join!(service.post(&items, "k", &item), async {
        until_metric(&service, "basket_api_http_connections 1").await;
        for _ in 0..10 {
            let other = reqwest::get(format!("http://{}/openapi.json", service.address())).await.unwrap();
            assert_eq!(other.status(), 200);
        }
        lock.release().await;
    });
    assert_eq!(in_flight.status(), 200);
}

/// Load balancers send requests until they have noticed the stop.
#[tokio::test]
async fn a_stop_serves_until_load_balancers_have_noticed_it() {
    let mut service = Service::with(&["--stop-delay=1h"]).await;
    let mut kept = TcpStream::connect(service.address()).await.unwrap();
    kept.write_all(get("/v1/baskets").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).await.unwrap();
    service.program.terminate().unwrap();
    service.until_ready(503).await;
    for _ in 0..5 {
        let created = service.command("/v1/baskets", &json!({"buyer_id": "ann"})).await;
        assert_eq!(created.status(), 201);
        assert_eq!(created.headers()["connection"], "close");
    }
    kept.write_all(get("/v1/commands").as_bytes()).await.unwrap();
    let answers = until_closed(kept).await;
    assert!(answers.contains("connection: close"), "{answers}");
    assert!(service.program.exit_status().is_none());
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_end() {
    let mut service = Service::start().await;
    let items = format!("/v1/baskets/{}/items", service.basket().await);
    let lock = service.lock_baskets().await;
    let item = tea(1);
    let (in_flight, ()) = tokio::join!(service.post(&items, "k", &item), async {
        service.until_commands_wait(1).await;
        service.program.terminate().unwrap();
        wait::until("no new connections", SOON, async || match TcpStream::connect(service.address()).await {
            Ok(_) => Err("connected"),
            Err(_) => Ok(()),
        })
        .await
        .unwrap();
        lock.release().await;
    });
    assert_eq!(in_flight.status(), 200);
    assert_eq!(service.program.wait(SOON).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_stop_does_not_wait_forever() {
    let mut service = Service::with(&["--drain-timeout=200ms", "--request-timeout=1h"]).await;
    let mut slow = TcpStream::connect(service.address()).await.unwrap();
    let unfinished = format!(
        "POST /v1/baskets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n"
    );
    slow.write_all(unfinished.as_bytes()).await.unwrap();
    // Its head is read by the time that a later request was answered.
    service.get("/v1/baskets").await;
    service.program.terminate().unwrap();
    assert_eq!(service.program.wait(SOON).await.unwrap().code(), Some(0));
    assert!(service.program.log().contains("were cut"), "{}", service.program.log());
}
