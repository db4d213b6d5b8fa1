//! Which topic and partition an event goes to. Pure.
//!
//! [`router`] is the configured rule: topic and partition of a row. [`mapping`] applies it across changes: a row that
//! may have been sent already is routed by the version of the routing that was valid then.

pub mod error;
pub mod mapping;
pub mod router;
pub mod rule;
