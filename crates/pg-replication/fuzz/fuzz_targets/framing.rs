//! `cargo +nightly fuzz run framing`: what a socket brings, cut into messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pg_replication::fuzz::framing(bytes));
