//! Tests of the real program between a real PostgreSQL and a real Kafka. A checker that shares no code with the relay
//! compares the table with the records.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should fail there and then"
)]

mod another_outbox;
mod audit;
mod blind;
mod cloudevents;
mod columns;
mod commands;
mod confirmation;
mod crash;
mod data;
mod dead_letters;
mod delivery;
mod dropping;
mod encodings;
mod failover;
mod first_record;
mod fixture;
mod from_debezium;
mod grants;
mod hosts;
mod idle;
mod kafka_access;
#[cfg(feature = "failpoints")]
mod killpoints;
mod locate;
mod many_topics;
mod memory;
mod misconfiguration;
mod network;
mod oauth;
mod one_partition;
mod one_writer;
mod owner;
mod page;
mod poison;
mod poolers;
mod procedures;
mod proxied;
mod publication;
mod quick_start;
mod refill;
mod refused;
mod replay;
mod replay_rows;
mod retention;
mod rules;
mod servers;
mod settings;
mod shared_topics;
mod shutdown;
mod skipping;
mod slot_holder;
mod snapshot;
mod standby_slots;
mod start;
mod tables;
mod tls;
mod topics;
mod truth;
mod verdict;
