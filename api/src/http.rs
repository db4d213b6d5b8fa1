//! The HTTP adapter: requests in, commands and queries through, answers out. It decides nothing about baskets.
//!
//! warp accepts and parses; one table ([`routes`]) says which handler a method and path mean, so that every other
//! request gets an RFC 9457 answer of ours instead of a library's default.

mod auth;
mod baskets;
mod body;
mod commands;
mod conditions;
mod contract;
mod dto;
mod idempotency;
mod limits;
pub mod openapi;
mod pages;
mod problem;
mod request;
mod routes;

pub use auth::Authentication;
pub use limits::RequestLimits;
pub use problem::Problem;
pub use routes::{App, Rules, filter};
