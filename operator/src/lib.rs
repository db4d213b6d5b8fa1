//! The operator: creates and manages the publication, slot, topics and relay of an `OutboxRelay` resource.
//!
//! - [`resource`]: the custom resource, as people write it and as the API server checks it.
//! - [`controller`]: which resources to reconcile, and when; [`reconcile`]: one reconciliation of one of them.
//! - [`stores`], [`change_counts`]: what is seen of the API server's objects; [`connections`], [`breaker`]: what reconciliations
//!   share.
//! - [`leadership`]: which of several operators acts; [`activity`]: whether this one does, and is ready.
//! - [`references`]: other operators' resources in place of fields; [`secrets`], [`conditions`]: what a reconciliation begins and ends with.
//! - [`desired`]: what should be there, as a function of the resource: the relay's configuration and its objects; [`digest`]: whether they
//!   have changed.
//! - [`topics`]: what has to be done about topics, and doing it.
//! - [`events`], [`metrics`]: what is reported beside the status; [`overview`]: all resources, for `/status` and the status page.
//! - [`doctor`]: whether an operator could do its work, and one does it.
//! - [`user_ids`]: what kind of cluster it is.
//! - [`field_table`]: the resource's fields as a table, for the documents.

pub mod activity;
pub mod breaker;
pub mod change_counts;
pub mod conditions;
pub mod connections;
pub mod controller;
pub mod desired;
pub mod digest;
pub mod doctor;
pub mod events;
pub mod field_table;
pub mod leadership;
pub mod metrics;
pub mod overview;
pub mod pod_names;
pub mod reconcile;
pub mod references;
pub mod resource;
pub mod secrets;
pub mod stores;
pub mod topics;
pub mod user_ids;
