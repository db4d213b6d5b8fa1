//! Free ports.

use std::net::TcpListener;

use crate::Error;

/// A port of the loopback address that nobody listens on now. Another process may take it before it is used; the
/// kernel hands ports out in turn, so that is rare.
pub fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::system("find a free port"))?;
    listener.local_addr().map(|address| address.port()).map_err(Error::system("find a free port"))
}
