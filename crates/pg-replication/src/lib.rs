#![warn(missing_docs)]
#![doc = include_str!("../README.md")]

mod authentication;
mod client;
mod command;
mod connection;
mod error;
mod feedback;
mod framing;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod hosts;
mod lsn;
mod options;
pub mod pgoutput;
mod report;
pub mod settings;
mod socket;
mod sqlstate;
mod startup;
mod stream;
mod time;
mod timeline;
mod tls;
mod wire;

pub use client::Client;
pub use command::{CreatedSlot, FAILOVER_SINCE, PgOutput, Row, SlotOptions, Snapshot, SystemIdentity};
pub use error::Error;
pub use framing::MemoryLimit;
pub use hosts::FailedHost;
pub use lsn::{CommitLsn, EndLsn, Lsn, ParseLsnError};
pub use options::{ConnectOptions, DEFAULT_CONNECT_TIMEOUT, Host, Password, Target};
pub use report::{Notice, ServerError};
pub use socket::open_socket;
pub use sqlstate::SqlState;
pub use stream::{Finished, Frame, Stream};
pub use time::PgTime;
pub use timeline::TimelineHistory;
pub use tls::{ChannelBinding, ClientIdentity, Pem, TlsError, TlsMode, TlsOptions};
