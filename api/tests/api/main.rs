//! The service as its clients meet it: the real program, over real HTTP, on a real Postgres.

mod commands;
mod errors;
mod idempotency;
mod service;
