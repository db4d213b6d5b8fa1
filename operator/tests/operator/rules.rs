//! What the API server refuses, and the sentence it says.

use serde_json::{Value, json};

use crate::cluster::{apply, least, namespace, relay, with};

#[tokio::test]
async fn what_can_never_work_is_refused_with_a_reason() {
    let namespace = namespace("refused").await;
    let secret = json!({"name": "s"});
    let cases = [
        ("/source/postgres/host", json!("/tmp"), "host"),
        ("/source/postgres/host", json!("db-1, /tmp"), "host"),
        ("/source/postgres/port", json!(0), "port"),
        ("/source/postgres/table", json!("outbox"), "table"),
        ("/source/postgres/slot/name", json!("Not-A-Slot"), "slot.name"),
        ("/source/postgres/slot", Value::Null, "slot: Required value"),
        ("/source/postgres/slot/deletionPolicy", json!("Maybe"), "supported values: \"Retain\", \"Delete\""),
        (
            "/source/postgres/tls",
            json!({"mode": "require", "caSecretRef": secret}),
            "caSecretRef is not used in this mode",
        ),
        (
            "/source/postgres/tls",
            json!({"mode": "disable", "certificateSecretRef": secret}),
            "certificateSecretRef is not used without TLS",
        ),
        ("/sink/kafka/bootstrapServers", json!("kafka"), "bootstrapServers"),
        ("/sink/kafka/adminCredentialsSecretRef", secret.clone(), "adminCredentialsSecretRef needs sasl"),
        (
            "/topics",
            json!([{"name": "a", "partitions": 1}, {"name": "a", "partitions": 2}]),
            "Duplicate value",
        ),
        ("/topics", json!([{"name": "a b", "partitions": 1}]), "name"),
        ("/topics", json!([{"name": "..", "partitions": 1}]), "are no names of topics"),
        ("/topics", json!([{"name": "a", "partitions": 0}]), "partitions"),
        ("/delivery", json!({"onPoison": "DeadLetter"}), "needs deadLetterTopic"),
        ("/delivery", json!({"deadLetterTopic": ".."}), "are no names of topics"),
        ("/delivery", json!({"deadLetterTopic": "outbox.event.${routedByValue}"}), "deadLetterTopic"),
        ("/relay", json!({"replicas": 3}), "replicas"),
        ("/relay", json!({"logLevel": "loud"}), "logLevel"),
    ];
    for (path, value, said) in cases {
        let refused = apply(&namespace, &relay(&with(least(), path, value.clone()))).await;
        let refused = refused.expect_err(&format!("{path}: {value}"));
        assert!(refused.contains(said), "{path}: {value}: {refused}");
    }
    let plain = json!({"bootstrapServers": "k:1", "tls": {"mode": "disable"},
                       "sasl": {"mechanism": "PLAIN", "credentialsSecretRef": secret}});
    let refused = apply(&namespace, &relay(&with(least(), "/sink/kafka", plain))).await.unwrap_err();
    assert!(refused.contains("show the password or token"), "{refused}");
    let never = with(least(), "/source/postgres/slot/creationPolicy", json!("Never"));
    let refused =
        apply(&namespace, &relay(&with(never, "/source/onGap", json!("Refill")))).await.unwrap_err();
    assert!(refused.contains("onGap Refill replaces a lost slot"), "{refused}");
    let dead = with(least(), "/routing", json!({"replacement": "all"}));
    let refused =
        apply(&namespace, &relay(&with(dead, "/delivery", json!({"deadLetterTopic": "all"})))).await;
    assert!(refused.unwrap_err().contains("events would be routed to deadLetterTopic"));
    let mut long = relay(&least());
    long["metadata"]["name"] = json!("x".repeat(51));
    assert!(apply(&namespace, &long).await.unwrap_err().contains("at most 50 characters"));
    for name in ["shop.v1", "2024-orders"] {
        let mut object = relay(&least());
        object["metadata"]["name"] = json!(name);
        let refused = apply(&namespace, &object).await.unwrap_err();
        assert!(refused.contains("names start with a letter"), "{refused}");
    }
    // A mistyped field would be dropped in silence by the schema alone; kubectl asks for strictness.
    let mistyped = apply(&namespace, &relay(&with(least(), "/suspended", json!(true)))).await;
    assert!(mistyped.unwrap_err().contains("unknown field \"spec.suspended\""));
}

#[tokio::test]
async fn what_holds_the_position_cannot_change_and_the_rest_can() {
    let namespace = namespace("changes").await;
    apply(&namespace, &relay(&least())).await.unwrap();
    for (path, value, said) in [
        ("/source/postgres/database", json!("other"), "the database cannot change"),
        ("/source/postgres/table", json!("public.other"), "the table cannot change"),
        ("/source/postgres/slot/name", json!("other"), "the slot's name cannot change"),
        ("/source/postgres/slot/failover", json!("Never"), "failover counts when the slot is made"),
        ("/source/postgres/publication/name", json!("other"), "the publication's name cannot change"),
        ("/source/eventSource", json!("/other"), "eventSource cannot change"),
        ("/topics", json!([{"name": "events", "partitions": 2}]), "partitions never shrink"),
    ] {
        let refused = apply(&namespace, &relay(&with(least(), path, value))).await.expect_err(path);
        assert!(refused.contains(said), "{path}: {refused}");
    }
    for (path, value) in [
        ("/suspend", json!(true)),
        ("/source/onGap", json!("Refill")),
        ("/source/postgres/host", json!("db-1, db-2:5433")),
        ("/sink/kafka/bootstrapServers", json!(" [::1]:9092 , kafka-2:9093 ")),
        ("/topics", json!([{"name": "events", "partitions": 6}, {"name": "more", "partitions": 1}])),
    ] {
        apply(&namespace, &relay(&with(least(), path, value))).await.expect(path);
    }
}

/// Defaults are stored, so that they can be read.
#[tokio::test]
async fn the_api_server_fills_in_the_defaults_and_explains_the_fields() {
    let namespace = namespace("defaults").await;
    apply(&namespace, &relay(&least())).await.unwrap();
    let stored = namespace.kubectl(&["get", "obr", "shop", "-o", "json"]).await.unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    for (path, expected) in [
        ("/spec/source/postgres/port", json!(5432)),
        ("/spec/source/postgres/table", json!("public.outbox")),
        ("/spec/source/postgres/tls/mode", json!("verify-full")),
        ("/spec/source/postgres/slot/deletionPolicy", json!("Delete")),
        ("/spec/source/postgres/publication/deletionPolicy", json!("Retain")),
        ("/spec/source/postgres/credentialsSecretRef/passwordKey", json!("password")),
        ("/spec/source/postgres/tls/channelBinding", json!("prefer")),
        ("/spec/heartbeat/intervalSeconds", json!(10)),
        ("/spec/shutdown/graceSeconds", json!(25)),
        ("/spec/source/start", json!("Table")),
        ("/spec/source/onGap", json!("Stop")),
        ("/spec/sink/kafka/tls/mode", json!("verify-full")),
        ("/spec/routing/replacement", json!("outbox.event.${routedByValue}")),
        ("/spec/delivery/onPoison", json!("Stop")),
        ("/spec/relay/replicas", json!(1)),
        ("/spec/topics/0/deletionPolicy", json!("Retain")),
    ] {
        assert_eq!(stored.pointer(path), Some(&expected), "{path}");
    }
    let explained =
        namespace.kubectl(&["explain", "outboxrelay.spec.source.postgres.slot.deletionPolicy"]).await;
    assert!(explained.unwrap().contains("fills the primary's disk"));
    let listed = namespace.kubectl(&["get", "outbox"]).await.unwrap();
    assert!(
        listed
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .eq(["NAME", "READY", "REASON", "SLOT", "TOPICS", "AGE"]),
        "{listed}"
    );
}
