//! Topics: what is there, what is declared, and what has to be done. The semantics are Strimzi's, without its traps: a topic is made,
//! grown and configured; it never shrinks, its replication factor is not touched, and of its configuration only the keys
//! that are declared, or were, are considered here.

mod client;
mod cluster;
mod contests;
mod error;
mod plan;
mod values;

pub use self::cluster::{Cluster, Topics};
pub use self::contests::Contests;
pub use self::error::KafkaError;
pub use self::plan::{Deviation, Observed, Plan, Step, plan};
