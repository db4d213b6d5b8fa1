//! The HTTP adapter: requests in, commands and queries through, answers out. It decides nothing about baskets.
//!
//! warp accepts and parses; one table ([`routes`]) says which handler a method and path mean, so that every other
//! request gets an RFC 9457 answer of ours instead of a library's default. What all requests go through is in
//! [`pipeline`].

mod app;
mod auth;
mod baskets;
mod body;
mod commands;
mod conditions;
mod context;
mod contract;
mod dto;
mod examples;
mod idempotency;
mod json;
mod limits;
pub mod openapi;
mod operation;
mod pages;
mod path;
mod pipeline;
mod problem;
mod reply;
mod request;
mod requests;
mod routes;

pub use app::{App, Rules};
pub use auth::Authentication;
pub use limits::{Capacity, RequestLimits};
pub use pipeline::filter;
pub use problem::Problem;
