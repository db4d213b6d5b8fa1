//! Sends requests to the admin listener of the running relay. HTTP/1.0, so that a response ends with its connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// A relay on this machine accepts immediately or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Between two parts of a response: a replayed dead letter waits for Kafka.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The relay did not respond as expected.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("no relay answers at {address} (admin.listen): {source}")]
    NoRelay { address: SocketAddr, source: std::io::Error },
    /// Another program listens there, or the relay has ended.
    #[error("{address} (admin.listen) did not answer as a relay does")]
    NotARelay { address: SocketAddr },
    #[error("the relay at {address} says: {message}")]
    Refused { address: SocketAddr, message: String },
}

/// Sends a request and returns the lines of the response as they arrive.
pub fn request(
    listen: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<impl Iterator<Item = std::io::Result<String>> + use<>, RequestError> {
    let address = SocketAddr::new(loopback_of(listen.ip()), listen.port());
    let failed = |source| RequestError::NoRelay { address, source };
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next().and_then(Result::ok).and_then(|line| status(&line));
    let status = status.ok_or(RequestError::NotARelay { address })?;
    let mut lines = lines.skip_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).skip(1);
    if status == 200 {
        return Ok(lines);
    }
    let message = lines.next().and_then(Result::ok).unwrap_or_else(|| format!("status {status}"));
    Err(RequestError::Refused { address, message })
}

fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// A listener on all addresses is reached over loopback.
fn loopback_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 512];
            let _ = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn a_response_is_read_as_lines_and_a_rejection_as_its_message() {
        let lines =
            request(answering("HTTP/1.0 200 OK\r\nx: y\r\n\r\n{\"a\":1}\n\nend\n"), "GET", "/", "").unwrap();
        assert_eq!(lines.map(Result::unwrap).collect::<Vec<_>>(), ["{\"a\":1}", "", "end"]);
        let refused = request(answering("HTTP/1.1 409 Conflict\r\n\r\nbusy\n"), "POST", "/", "").map(drop);
        assert!(refused.unwrap_err().to_string().ends_with("says: busy"));
        let other = request(answering("SSH-2.0\r\n"), "GET", "/", "").map(drop);
        assert!(matches!(other, Err(RequestError::NotARelay { .. })));
    }
}
