//! Where an event goes. Pure.
//!
//! [`router`] is the configured rule: topic and partition of a row. [`mapping`] is the rule as it holds across changes:
//! where a row goes now, and where it went when it may have been sent before.

pub mod error;
pub mod mapping;
pub mod router;
pub mod rule;
