//! A TCP proxy that spoils connections: a network that resets, goes silent, is slow, or breaks inside a message.
//!
//! It forwards bytes and knows no protocol. What it does can be changed at any time and holds for the connections
//! that are open as well as for new ones. A stall holds bytes back and loses none: as on a network that drops packets,
//! TCP delivers them late, and the end of a connection is not seen by the other side while it lasts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::{Error, net};

/// What is taken from one side before it is given to the other: a delay holds for each such piece, as for a window.
const PIECE: usize = 16 * 1024;

/// The way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What the client sends.
    ToServer,
    /// What the server answers.
    ToClient,
}

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Every connection is reset, and every new one at once.
    Reset,
    /// Nothing gets through; connections stay open, and new ones are accepted.
    Silence,
    /// Nothing gets through one way: half-open.
    SilenceOneWay(Way),
    /// Each piece is late, by so much and up to so much more.
    Delay {
        /// At least.
        by: Duration,
        /// At most so much more.
        jitter: Duration,
    },
    /// Bytes arrive in segments of this size.
    Slices(usize),
    /// So many bytes a second, each way of each connection.
    BytesPerSecond(u64),
    /// The first connection that carries so many bytes that way from now on is reset behind them, once.
    CutAfter {
        /// Which way.
        way: Way,
        /// After how many.
        bytes: u64,
    },
    /// The same connection says nothing more that way, once; everything else passes.
    SilenceAfter {
        /// Which way.
        way: Way,
        /// After how many.
        bytes: u64,
    },
}

/// A fault with the time from which it holds: the same fault again is a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    fault: Fault,
    number: u64,
    /// Resets so far: one that was taken back before a connection looked still ends it.
    resets: u64,
    /// How often the connections that were open have been silenced.
    silences: u64,
}

/// A running proxy. Dropping it ends it and resets what it carried.
pub struct Proxy {
    port: u16,
    weather: Arc<watch::Sender<Weather>>,
    cuts: Arc<AtomicU64>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port of the loopback address and leads to `target` on the same.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn before(target: u16) -> Result<Proxy, Error> {
        let port = net::free_port()?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(Error::system("listen"))?;
        let weather = Arc::new(watch::Sender::new(Weather::default()));
        let cuts = Arc::new(AtomicU64::new(0));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, target, Arc::clone(&weather), Arc::clone(&cuts)));
        Ok(Proxy { port, weather, cuts, _accepting: accepting })
    }

    /// Where clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.weather.send_modify(|weather| {
            weather.fault = fault;
            weather.number += 1;
            weather.resets += u64::from(fault == Fault::Reset);
        });
    }

    /// Resets every connection that is open; new ones pass.
    pub fn reset_open(&self) {
        self.set(Fault::Reset);
        self.set(Fault::None);
    }

    /// Nothing gets through the connections that are open, ever again, nor does their end; new ones pass.
    pub fn silence_open(&self) {
        self.weather.send_modify(|weather| {
            weather.number += 1;
            weather.silences += 1;
        });
    }

    /// How many connections [`Fault::CutAfter`] has cut, and [`Fault::SilenceAfter`] has silenced.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    target: u16,
    weather: Arc<watch::Sender<Weather>>,
    cuts: Arc<AtomicU64>,
) {
    // Owned here, so that they end with the proxy.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(carry(client, target, Arc::clone(&weather), Arc::clone(&cuts)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, to its end.
async fn carry(client: TcpStream, target: u16, weather: Arc<watch::Sender<Weather>>, cuts: Arc<AtomicU64>) {
    let before = *weather.borrow();
    if before.fault == Fault::Reset {
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return reset(&client) };
    let mut client = client;
    let late = [&client, &server].iter().any(|stream| stream.set_nodelay(true).is_err());
    let mut changes = weather.subscribe();
    let intact = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = forward(from_client, to_server, Way::ToServer, before, &weather, &cuts);
        let back = forward(from_server, to_client, Way::ToClient, before, &weather, &cuts);
        tokio::select! {
            both = async { tokio::try_join!(there, back) } => both.is_ok(),
            () = until(&mut changes, |now| now.resets > before.resets) => false,
        }
    };
    if !intact || late {
        reset(&client);
        reset(&server);
    }
}

/// Sends RST when the stream is dropped, in place of an orderly end.
fn reset(stream: &TcpStream) {
    // One that is closed already needs none.
    drop(stream.set_zero_linger());
}

/// Waits for weather of a kind; forever when the proxy is gone, which ends its connections anyway.
async fn until(changes: &mut watch::Receiver<Weather>, kind: impl FnMut(&Weather) -> bool) {
    if changes.wait_for(kind).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Bytes of one way, until their end or a cut.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    before: Weather,
    weather: &watch::Sender<Weather>,
    cuts: &AtomicU64,
) -> io::Result<()> {
    let silent = |now: &Weather| now.silences > before.silences || silent(now.fault, way);
    let mut changes = weather.subscribe();
    let mut piece = vec![0; PIECE];
    // Bytes carried under the present fault.
    let (mut carried, mut since) = (0, 0);
    loop {
        let read = tokio::select! {
            // What has been read is passed on, so silence begins before reading.
            biased;
            () = until(&mut changes, silent) => None,
            read = from.read(&mut piece) => Some(read?),
        };
        let Some(read) = read else {
            until(&mut changes, |now| !silent(now)).await;
            continue;
        };
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        let now = *weather.borrow();
        if now.number != since {
            (carried, since) = (0, now.number);
        }
        if let Fault::CutAfter { way: spoilt, bytes: after }
        | Fault::SilenceAfter { way: spoilt, bytes: after } = now.fault
            && spoilt == way
            && carried + bytes.len() as u64 >= after
        {
            let rest = usize::try_from(after - carried).unwrap_or(usize::MAX);
            to.write_all(bytes.get(..rest).unwrap_or(bytes)).await?;
            let first = weather.send_if_modified(|latest| {
                let first = *latest == now;
                // The number stays: this is the end of the same fault, and resets no other connection.
                latest.fault = if first { Fault::None } else { latest.fault };
                first
            });
            if first {
                cuts.fetch_add(1, Ordering::Relaxed);
                if matches!(now.fault, Fault::SilenceAfter { .. }) {
                    return std::future::pending().await;
                }
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            to.write_all(bytes.get(rest..).unwrap_or_default()).await?;
        } else {
            pass(bytes, &mut to, now.fault).await?;
        }
        carried += bytes.len() as u64;
    }
}

fn silent(fault: Fault, way: Way) -> bool {
    fault == Fault::Silence || fault == Fault::SilenceOneWay(way)
}

async fn pass(bytes: &[u8], to: &mut WriteHalf<'_>, fault: Fault) -> io::Result<()> {
    match fault {
        Fault::Delay { by, jitter } => sleep(by + jitter.mul_f64(chance())).await,
        Fault::BytesPerSecond(rate) => {
            sleep(Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64)).await;
        }
        Fault::Slices(size) => {
            for slice in bytes.chunks(size.max(1)) {
                to.write_all(slice).await?;
                // Lets the other side read, or the kernel would put the slices together again.
                tokio::task::yield_now().await;
            }
            return Ok(());
        }
        _ => {}
    }
    to.write_all(bytes).await
}

/// Between 0 and 1, from the clock: jitter needs no more.
fn chance() -> f64 {
    let nanos = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.subsec_nanos());
    f64::from(nanos % 1_000) / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    const LONG: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(150);

    /// A server that sends back what it gets, behind a proxy.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        Proxy::before(port).await.unwrap()
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
    }

    async fn say(stream: &mut TcpStream, text: &str) -> io::Result<String> {
        stream.write_all(text.as_bytes()).await?;
        hear(stream, text.len()).await
    }

    async fn hear(stream: &mut TcpStream, length: usize) -> io::Result<String> {
        let mut heard = vec![0; length];
        timeout(LONG, stream.read_exact(&mut heard)).await.expect("an answer")?;
        Ok(String::from_utf8(heard).unwrap())
    }

    async fn is_silent(stream: &mut TcpStream) -> bool {
        timeout(MOMENT, stream.read_u8()).await.is_err()
    }

    #[tokio::test]
    async fn without_a_fault_everything_passes_and_ends_are_passed_on() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        let long = "x".repeat(PIECE * 3 + 1);
        assert_eq!(say(&mut stream, &long).await.unwrap(), long);
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reset_ends_what_is_open_and_refuses_what_is_new() {
        let proxy = echo().await;
        let mut open = connect(&proxy).await;
        assert_eq!(say(&mut open, "a").await.unwrap(), "a");
        proxy.set(Fault::Reset);
        assert!(open.read_u8().await.is_err());
        assert!(connect(&proxy).await.read_u8().await.is_err());
        proxy.set(Fault::None);
        let mut next = connect(&proxy).await;
        assert_eq!(say(&mut next, "b").await.unwrap(), "b");
        proxy.reset_open();
        assert!(next.read_u8().await.is_err());
        assert_eq!(say(&mut connect(&proxy).await, "c").await.unwrap(), "c");
    }

    #[tokio::test]
    async fn silence_holds_bytes_back_and_loses_none() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        assert_eq!(say(&mut stream, "a").await.unwrap(), "a");
        for fault in
            [Fault::Silence, Fault::SilenceOneWay(Way::ToServer), Fault::SilenceOneWay(Way::ToClient)]
        {
            proxy.set(fault);
            stream.write_all(b"held").await.unwrap();
            assert!(is_silent(&mut stream).await, "{fault:?}");
            proxy.set(Fault::None);
            assert_eq!(hear(&mut stream, 4).await.unwrap(), "held");
        }
    }

    #[tokio::test]
    async fn a_cut_comes_at_its_byte_and_once() {
        let proxy = echo().await;
        for after in [1, 3, 9] {
            let mut stream = connect(&proxy).await;
            assert_eq!(say(&mut stream, "before").await.unwrap(), "before");
            proxy.set(Fault::CutAfter { way: Way::ToServer, bytes: after });
            let cuts = proxy.cuts();
            stream.write_all(b"0123456789").await.unwrap();
            // What comes back of the bytes before the cut depends on timing; that the connection ends does not.
            assert!(timeout(LONG, async { while stream.read_u8().await.is_ok() {} }).await.is_ok());
            assert_eq!(proxy.cuts(), cuts + 1);
            assert_eq!(say(&mut connect(&proxy).await, "0123456789").await.unwrap(), "0123456789");
        }
    }

    #[tokio::test]
    async fn delay_slices_and_rate_change_when_and_not_what() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        let by = Duration::from_millis(50);
        proxy.set(Fault::Delay { by, jitter: by });
        let started = Instant::now();
        assert_eq!(say(&mut stream, "late").await.unwrap(), "late");
        assert!(started.elapsed() >= by * 2, "there and back");
        proxy.set(Fault::BytesPerSecond(1_000));
        let started = Instant::now();
        assert_eq!(say(&mut stream, &"y".repeat(100)).await.unwrap(), "y".repeat(100));
        assert!(started.elapsed() >= Duration::from_millis(200), "there and back");
        proxy.set(Fault::Slices(1));
        assert_eq!(say(&mut stream, "in slices").await.unwrap(), "in slices");
    }
}
