//! Addresses of a cluster: of its API server, of its Services and, with a node, of its pods.

use std::fs::{self, File};

use crate::{Error, cache};

/// How many nodes one machine can have at a time.
const NODES: u8 = 16;

/// Where the API server is, and what it numbers.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// Of the API server.
    pub api_server: String,
    /// Network of Services (CIDR).
    pub services: String,
    /// The first of those, which is the API server's own Service.
    pub first_service: String,
}

impl Network {
    /// For this machine's own programs: nothing leads to Services.
    pub fn loopback() -> Network {
        Network {
            api_server: "127.0.0.1".to_owned(),
            services: "10.0.0.0/24".to_owned(),
            first_service: "10.0.0.1".to_owned(),
        }
    }
}

/// Addresses that no other node of this machine has while this is held.
pub(super) struct Claim {
    number: u8,
    _lock: File,
}

impl Claim {
    /// The first that is free.
    pub fn new() -> Result<Claim, Error> {
        let folder = cache::folder();
        fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        for number in 0..NODES {
            let path = folder.join(format!("node-{number}.lock"));
            let lock = File::create(&path).map_err(Error::file("make", &path))?;
            if lock.try_lock().is_ok() {
                return Ok(Claim { number, _lock: lock });
            }
        }
        Err(Error::system("find free addresses for a node")(std::io::ErrorKind::AddrInUse.into()))
    }

    /// The machine's end of its link to the node.
    pub fn interface(&self) -> String {
        format!("outbox{}", self.number)
    }

    /// The machine's address on that link, where the API server is.
    pub fn gateway(&self) -> String {
        format!("10.201.{}.1", self.number)
    }

    /// The node's.
    pub fn address(&self) -> String {
        format!("10.201.{}.2", self.number)
    }

    /// Network of pods (CIDR).
    pub fn pods(&self) -> String {
        format!("10.202.{}.0/24", self.number)
    }

    /// The node's cgroup.
    pub fn cgroup(&self) -> String {
        format!("outbox-node-{}", self.number)
    }

    pub fn network(&self) -> Network {
        Network {
            api_server: self.gateway(),
            services: format!("10.203.{}.0/24", self.number),
            first_service: format!("10.203.{}.1", self.number),
        }
    }
}
