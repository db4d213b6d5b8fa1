//! Tasks that run beside the sessions for as long as the process does, and report what they see.
//!
//! [`observer`] looks at the slot and the partitions, [`standbys`] at the copies of the slot, and [`maintenance`] has
//! partitions created ahead and dropped behind.

pub mod maintenance;
pub mod observer;
pub mod standbys;
