//! `cargo +nightly fuzz run message`: the decoder of pgoutput's messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pg_replication::fuzz::message(bytes));
