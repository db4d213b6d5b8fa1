//! The basket: what it is ([`domain`]) and what can be asked of it ([`application`]).
//!
//! Dependencies point inwards: the application uses the domain, the domain uses neither the application nor anything
//! outside. What the application needs from outside is in [`application::ports`]; adapters in other crates implement it.
//! Nothing here does I/O: the crate's dependency tree holds no database, HTTP or network crate, and a test of the
//! repository keeps it so.

#![allow(missing_docs, reason = "the methods that strum generates have no documentation")]

pub mod application;
pub mod domain;
