//! Free ports.

use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::Error;

/// Below the range from which Linux gives ports to outgoing connections (32768 and up): a server that is stopped for a
/// while must find its port free when it comes back.
const PORTS: Range<u32> = 18_000..32_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The UDP sockets that reserve the ports of this process. No server of the testbed uses UDP.
static RESERVED: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// A port of the loopback address on which no process listens and which no process was given before, also not another
/// run of tests at the same time. It remains reserved until this process ends.
///
/// # Errors
/// Every port is taken.
pub fn free_port() -> Result<u16, Error> {
    let count = PORTS.end - PORTS.start;
    let place = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.subsec_nanos());
    // Processes begin at different places: two test binaries rarely try the same port.
    let _ = NEXT.compare_exchange(0, 1 + place % count, Ordering::Relaxed, Ordering::Relaxed);
    let candidates = (0..count).map(|_| PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % count);
    let free = candidates.filter_map(|port| u16::try_from(port).ok()).find(|port| reserve(*port));
    free.ok_or_else(|| Error::system("find a free port")(std::io::ErrorKind::AddrInUse.into()))
}

/// Between this call and the start of the server its TCP port is unused: the UDP port of the same number says to other
/// processes that it is taken.
fn reserve(port: u16) -> bool {
    let Ok(reservation) = UdpSocket::bind(("127.0.0.1", port)) else { return false };
    let free = TcpListener::bind(("127.0.0.1", port)).is_ok();
    if free {
        RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_is_free() {
        let (first, second) = (free_port().unwrap(), free_port().unwrap());
        assert_ne!(first, second);
        assert!(PORTS.contains(&u32::from(first)) && TcpListener::bind(("127.0.0.1", first)).is_ok());
        assert!(!reserve(first), "another process would be given the same port");
    }
}
