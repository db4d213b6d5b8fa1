//! How a reader reads its slot: calls of the system, which perf counts, and bytes, which the kernel does.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testbed::process::{Launch, Program, Signal};

use super::site::Site;
use crate::Failure;
use crate::build::output;

/// What reads a socket.
const CALLS: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
/// Longer than perf takes to print.
const PRINTS_WITHIN: Duration = Duration::from_secs(30);

/// Reads of the connection to the walsender.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reads {
    /// Calls per second.
    pub per_second: f64,
    /// Bytes per call.
    pub bytes: f64,
}

/// Whether reads are counted. Counting makes every system call of the machine slower, so it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountReads {
    /// They are not.
    No,
    /// They are.
    Yes,
}

impl From<bool> for CountReads {
    fn from(asked: bool) -> CountReads {
        if asked { CountReads::Yes } else { CountReads::No }
    }
}

impl CountReads {
    /// Counts from now on; `None` if it was not asked for, or while the reader has not connected to its slot.
    ///
    /// # Errors
    /// perf or ss is missing.
    pub async fn start(self, site: &Site, reader: &Program) -> Result<Option<Counter>, Failure> {
        match self {
            CountReads::No => Ok(None),
            CountReads::Yes => Counter::start(site, reader).await,
        }
    }
}

/// A count that runs.
pub struct Counter {
    perf: Program,
    socket: Socket,
    port: u16,
    started: Instant,
}

impl Counter {
    async fn start(site: &Site, reader: &Program) -> Result<Option<Counter>, Failure> {
        let Some(port) = site.walsender_client_port().await? else { return Ok(None) };
        let Some(socket) = Socket::of(port, reader.pid())? else { return Ok(None) };
        let mut perf = Launch::new("perf", "perf").arg("stat").arg("-x,");
        for call in CALLS {
            perf = perf
                .arg("-e")
                .arg(format!("syscalls:sys_enter_{call}"))
                .arg("--filter")
                .arg(format!("fd == {}", socket.descriptor));
        }
        let perf = perf.arg("-p").arg(reader.pid().to_string()).start()?;
        Ok(Some(Counter { perf, socket, port, started: Instant::now() }))
    }

    /// Ends the count that there is, before the reader leaves its slot.
    pub async fn finished(counter: Option<Counter>, reader: &Program) -> Result<Option<Reads>, Failure> {
        match counter {
            Some(counter) => Ok(Some(counter.finish(reader).await?)),
            None => Ok(None),
        }
    }

    async fn finish(mut self, reader: &Program) -> Result<Reads, Failure> {
        let now = Socket::of(self.port, reader.pid())?.ok_or("the reader has left its slot")?;
        let seconds = self.started.elapsed().as_secs_f64();
        self.perf.signal(Signal::Int)?;
        self.perf.wait(PRINTS_WITHIN).await?;
        let calls = counted(&self.perf.log())
            .ok_or_else(|| format!("perf cannot count calls of the system here: {}", self.perf.log_tail()))?;
        let received = now.received.saturating_sub(self.socket.received);
        Ok(Reads { per_second: calls as f64 / seconds, bytes: received as f64 / calls.max(1) as f64 })
    }
}

/// The reader's end of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    descriptor: u32,
    received: u64,
}

impl Socket {
    /// With this local port, if the process has it open.
    fn of(port: u16, process: u32) -> Result<Option<Socket>, Failure> {
        let filter = format!("sport = :{port}");
        let shown = output(std::process::Command::new("ss").args(["-tinpH", &filter]))
            .map_err(|error| format!("counting reads needs 'ss': install iproute2 ({error})"))?;
        Ok(Socket::parsed(&String::from_utf8_lossy(&shown), process))
    }

    fn parsed(shown: &str, process: u32) -> Option<Socket> {
        let after = |name: &str| -> Option<u64> {
            let (_, rest) = shown.split_once(name)?;
            rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
        };
        let descriptor = after(&format!("pid={process},fd="))?;
        // Absent until the first byte.
        let received = after("bytes_received:").unwrap_or(0);
        Some(Socket { descriptor: u32::try_from(descriptor).ok()?, received })
    }
}

/// The sum of what perf printed; `None` if it counted nothing of a kind it does not know.
fn counted(printed: &str) -> Option<u64> {
    let line = |call: &&str| printed.lines().find(|line| line.contains(&format!("sys_enter_{call},")));
    CALLS.iter().map(|call| line(call)?.split(',').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_all_kinds_are_added_up() {
        let printed = "5,,syscalls:sys_enter_read,1121538,100.00,,\n0,,syscalls:sys_enter_readv,1121538,100.00,,\n\
                       37,,syscalls:sys_enter_recvfrom,1,100.00,,\n0,,syscalls:sys_enter_recvmsg,1,100.00,,\n";
        assert_eq!(counted(printed), Some(42));
        assert_eq!(counted("event syntax error: 'syscalls:sys_enter_read'"), None);
        assert_eq!(counted(&printed.replace("37,", "<not counted>,")), None);
    }

    #[test]
    fn a_socket_is_known_by_its_process() {
        let shown = "ESTAB 0 0 127.0.0.1:38764 127.0.0.1:5432 users:((\"outbox-relay\",pid=812,fd=14))\n\
                     \t cubic wscale:7,7 rto:201 bytes_sent:310 bytes_acked:310 bytes_received:98765 segs_out:9\n";
        assert_eq!(Socket::parsed(shown, 812), Some(Socket { descriptor: 14, received: 98_765 }));
        assert_eq!(Socket::parsed(shown, 81), None);
        assert_eq!(Socket::parsed("", 812), None);
    }
}
