//! What is written down is what the program says.

use std::path::Path;
use std::process::Command;

use outbox_operator::resource::{Delivery, Heartbeat, KafkaSink, Retention, Routing, Shutdown};
use outbox_relay::config;
use serde_json::json;

/// What `cargo xtask crds` writes.
#[test]
fn the_files_in_the_repository_are_up_to_date() {
    for (file, what) in [
        ("crds/outboxrelays.outbox.dev.yaml", "crd"),
        ("charts/outbox-operator/files/outboxrelays.outbox.dev.yaml", "crd"),
        ("docs/OPERATOR-FIELDS.md", "fields"),
        ("docs/OPERATOR-REASONS.md", "reasons"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let written = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let output = Command::new(env!("CARGO_BIN_EXE_outbox-operator")).arg(what).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(
            printed == written,
            "{file}: run 'cargo xtask crds' and look at what has changed: it is a public contract"
        );
    }
}

/// A default in the schema that is not the relay's would change a relay by moving it into Kubernetes.
#[test]
fn the_defaults_are_the_relays() {
    let (ours, theirs) = (Delivery::default(), config::Delivery::default());
    assert_eq!(ours.max_in_flight_events as usize, theirs.max_in_flight_events);
    assert_eq!(ours.max_in_flight_bytes as usize, theirs.max_in_flight_bytes);
    let (ours, theirs) = (Retention::default(), config::Retention::default());
    assert_eq!((ours.keep_hours as u32, ours.ahead_hours as u32), (theirs.keep_hours, theirs.ahead_hours));
    let (ours, theirs) = (Routing::default(), config::Routing::default());
    assert_eq!(
        (ours.by_field, ours.regex, ours.replacement),
        (theirs.by_field, theirs.regex, theirs.replacement)
    );
    let (ours, theirs) = (Heartbeat::default(), config::HeartbeatConfig::default());
    assert_eq!(ours.interval_seconds as u32, theirs.interval_seconds);
    let (ours, theirs) = (Shutdown::default(), config::Shutdown::default());
    assert_eq!(ours.grace_seconds as u32, theirs.grace_seconds);
    let brokers = json!({"bootstrapServers": "k:1"});
    let ours: KafkaSink = serde_json::from_value(brokers.clone()).unwrap();
    let theirs: config::Sink = serde_json::from_value(brokers).unwrap();
    assert_eq!(ours.max_message_bytes as usize, theirs.max_message_bytes);
    assert_eq!((ours.linger_ms as u32, ours.producers as usize), (theirs.linger_ms, theirs.producers));
    assert_eq!(json!(ours.compression), theirs.compression.as_str());
}
