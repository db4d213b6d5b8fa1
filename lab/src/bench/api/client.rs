//! A client that costs little: what it uses of the machine, the service and the database cannot.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::BASKETS;
use crate::Failure;
use crate::stack::TOKEN;

static REQUESTS: AtomicU64 = AtomicU64::new(1);

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Another number of pieces in some basket.
    Command,
    /// Some basket.
    Query,
}

/// A connection that is kept.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens one.
    pub async fn open(address: &str) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(8192) })
    }

    /// Sends a request and reads its answer; anything but success is a failure of the measurement.
    pub async fn exchange(&mut self, request: Request) -> Result<(), Failure> {
        self.stream.write_all(text(request).as_bytes()).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the service closed the connection".into());
            }
            if let Some(length) = answer_length(&self.buffer)
                && self.buffer.len() >= length
            {
                break;
            }
        }
        if self.buffer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&self.buffer).into_owned().into())
    }
}

/// Length of head and body, once the head is there.
fn answer_length(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(buffer.get(..head)?).ok()?;
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    Some(head + 4 + length.parse::<usize>().ok()?)
}

fn text(request: Request) -> String {
    // Spread over all baskets, so that commands seldom meet: a stride that shares no factor with their number.
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let basket = Uuid::from_u128(u128::from((number * 7919) % BASKETS + 1));
    match request {
        Request::Query => format!(
            "GET /v1/baskets/{basket} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        ),
        Request::Command => {
            let body = format!("{{\"quantity\": {}}}", number % 1000 + 1);
            format!(
                "PATCH /v1/baskets/{basket}/items/tea HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\n\
                 Idempotency-Key: bench-{number}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
    }
}
