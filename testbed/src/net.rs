//! Free ports.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use crate::Error;

/// Below the range from which Linux gives ports to outgoing connections (32768 and up): a server that is stopped for a
/// while must find its port free when it comes back.
const PORTS: Range<u32> = 18_000..32_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of the loopback address that no process listens on now, and that this process has not handed out before.
/// Processes begin at different places, so that they seldom meet.
///
/// # Errors
/// Every port is taken.
pub fn free_port() -> Result<u16, Error> {
    let count = PORTS.end - PORTS.start;
    let place = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.subsec_nanos());
    // The first call decides where this process begins; after a lost race both continue from the winner's place.
    let _ = NEXT.compare_exchange(0, 1 + place % count, Ordering::Relaxed, Ordering::Relaxed);
    let candidates = (0..count).map(|_| PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % count);
    let free = candidates
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.ok_or_else(|| Error::system("find a free port")(std::io::ErrorKind::AddrInUse.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_is_free() {
        let (first, second) = (free_port().unwrap(), free_port().unwrap());
        assert_ne!(first, second);
        assert!(PORTS.contains(&u32::from(first)) && TcpListener::bind(("127.0.0.1", first)).is_ok());
    }
}
