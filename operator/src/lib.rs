//! The operator: creates and manages the publication, slot, topics and relay of an `OutboxRelay` resource.
//!
//! - [`resource`]: the custom resource, as people write it and as the API server checks it.
//! - [`controller`]: which resources to look at, and when; [`reconcile`]: one pass over one of them.
//! - [`watched`], [`touched`]: what is seen of the API server's objects; [`connections`], [`breaker`], [`memory`]: what passes share.
//! - [`leadership`]: which of several operators acts.
//! - [`references`]: other operators' resources in place of fields; [`secrets`], [`status`]: what a pass begins and ends with.
//! - [`desired`]: what should be there, as a function of the resource: the relay's configuration and its objects.
//! - [`topics`]: what has to be done about topics, and doing it.
//! - [`events`], [`metrics`]: what is told beside the status.
//! - [`doctor`]: whether an operator could do its work, and one does it.
//! - [`user_ids`]: what kind of cluster it is.
//! - [`fields`]: its fields as a table, for the documents.

pub mod breaker;
pub mod connections;
pub mod controller;
pub mod desired;
pub mod doctor;
pub mod events;
pub mod fields;
pub mod leadership;
pub mod memory;
pub mod metrics;
pub mod reconcile;
pub mod references;
pub mod resource;
pub mod secrets;
pub mod status;
pub mod topics;
pub mod touched;
pub mod user_ids;
pub mod watched;
