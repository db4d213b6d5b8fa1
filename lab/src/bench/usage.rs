//! What a reader costs: its own process, and what it makes PostgreSQL and Kafka spend.

use serde::{Deserialize, Serialize};
use testbed::process::{Program, cpu_seconds, machine_cpu_seconds};

use super::site::{Servers, Site};
use crate::Failure;

/// Bytes of a MiB.
pub const MIB: f64 = 1_048_576.0;

/// CPU time, of whole processes and of the machine with everything that runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// The reader's process.
    pub reader: f64,
    /// The PostgreSQL process that serves the reader's slot.
    pub walsender: f64,
    /// Kafka.
    pub broker: f64,
    /// All processes and the kernel.
    pub machine: f64,
}

impl Cpu {
    /// Seconds before a reader is started.
    pub fn before(servers: &Servers) -> Cpu {
        let broker = servers.kafka.pids().into_iter().map(cpu_seconds).sum();
        Cpu { reader: 0.0, walsender: 0.0, broker, machine: machine_cpu_seconds() }
    }

    /// Seconds until now.
    ///
    /// # Errors
    /// The reader does not read.
    pub async fn now(servers: &Servers, site: &Site, reader: &Program) -> Result<Cpu, Failure> {
        let left = || format!("the reader has left its slot: {}", reader.log_tail());
        let walsender = site.walsender().await?.ok_or_else(left)?;
        Ok(Cpu { reader: reader.cpu_seconds(), walsender: cpu_seconds(walsender), ..Cpu::before(servers) })
    }

    /// Microseconds per event, from `before` to now.
    pub fn per_event(self, before: Cpu, events: u64) -> Cpu {
        let each = |now: f64, before: f64| (now - before) * 1e6 / events as f64;
        Cpu {
            reader: each(self.reader, before.reader),
            walsender: each(self.walsender, before.walsender),
            broker: each(self.broker, before.broker),
            machine: each(self.machine, before.machine),
        }
    }
}

/// Resident memory of a process in MiB: now, and the most it has had.
pub fn memory_mib(program: &Program) -> Option<(f64, f64)> {
    let (now, peak) = program.memory()?;
    Some((now as f64 / MIB, peak as f64 / MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_per_event_is_of_what_was_spent_in_between() {
        let before = Cpu { reader: 1.0, walsender: 2.0, broker: 10.0, machine: 100.0 };
        let now = Cpu { reader: 3.0, walsender: 3.0, broker: 10.5, machine: 104.0 };
        let expected = Cpu { reader: 20.0, walsender: 10.0, broker: 5.0, machine: 40.0 };
        assert_eq!(now.per_event(before, 100_000), expected);
    }
}
