//! The basket: what it is ([`domain`]) and what can be asked of it ([`application`]).
//!
//! Dependencies point inwards. The domain knows nothing but itself; the application knows the domain and describes
//! in [`application::ports`] what it needs of the world; adapters outside this crate provide it. Nothing here does
//! I/O: the crate's dependency tree holds no database, HTTP or network crate, and a test of the repository keeps
//! it so.

pub mod application;
pub mod domain;
