//! `doctor` and `lag`: their output is correct, and each problem is named with its remedy.

use serde_json::Value;
use testbed::kafka::{alter_topic, create_topic};
use testbed::{net, unique, wait};

use crate::fixture::{Site, TIMEOUT};

/// A site where a relay has delivered and was stopped.
async fn site() -> Site {
    let mut site = Site::shared().await;
    let dead = format!("dead.{}", site.aggregate);
    create_topic(&site.bootstrap, &dead, 1, 1, &[]).await.unwrap();
    site.extra = format!("delivery: {{onPoison: DeadLetter, deadLetterTopic: '{dead}'}}\n");
    let relay = site.relay().await;
    site.insert([("k", 1)]).await;
    site.until_records(1).await;
    site.until_confirmed(&relay).await;
    relay.stop().await;
    site
}

/// The checks that found a problem, with their messages. Asserts that exit code and JSON agree with the lines.
async fn problems(site: &Site, edit: impl Fn(String) -> String) -> Vec<String> {
    let port = net::free_port().unwrap();
    let json = site.command(port, &edit, &["doctor", "--json"]).await;
    let found: Value = serde_json::from_str(&json.out).unwrap();
    let findings = found["findings"].as_array().unwrap();
    let problems: Vec<String> = findings
        .iter()
        .filter(|finding| finding["result"] == "problem")
        .map(|finding| format!("{} {}; {}", finding["check"], finding["message"], finding["remedy"]))
        .collect();
    let lines = site.command(port, &edit, &["doctor"]).await;
    assert_eq!(lines.out.lines().count(), findings.len(), "{lines:?}");
    assert_eq!(
        lines.out.lines().filter(|line| line.starts_with("problem ")).count(),
        problems.len(),
        "{lines:?}"
    );
    let code = if problems.is_empty() { 0 } else { 69 };
    assert_eq!((lines.code, json.code), (Some(code), Some(code)), "{lines:?}");
    assert_eq!(found["well"], problems.is_empty());
    problems
}

/// Asserts that there is exactly one problem, with these texts.
async fn one(site: &Site, edit: impl Fn(String) -> String, says: &[&str]) {
    let problems = problems(site, edit).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    for part in says {
        assert!(problems[0].contains(part), "{part}: {problems:?}");
    }
}

#[tokio::test]
async fn a_healthy_site_has_no_problem_and_doctor_changes_nothing() {
    let site = site().await;
    let before = site.value("SELECT row_to_json(c) FROM outbox_checkpoint c").await;
    assert_eq!(problems(&site, |text| text).await, Vec::<String>::new());
    assert_eq!(site.value("SELECT row_to_json(c) FROM outbox_checkpoint c").await, before);
    // While a relay runs, which keeps its slot.
    let relay = site.relay().await;
    assert_eq!(problems(&site, |text| text).await, Vec::<String>::new());
    assert_eq!(relay.ask("/readyz").await.unwrap().1, "streaming\n");
    // Before the first start.
    relay.stop().await;
    site.execute(&format!("SELECT pg_drop_replication_slot('{}'); DELETE FROM outbox_checkpoint", site.slot))
        .await;
    site.execute("DROP PUBLICATION outbox").await;
    assert_eq!(problems(&site, |text| text).await, Vec::<String>::new());
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", site.slot);
    assert_eq!(site.value(&slots).await.as_deref(), Some("0"));
    assert_eq!(site.value("SELECT count(*) FROM pg_publication").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn what_is_wrong_outside_is_named_with_its_remedy() {
    let site = site().await;
    let name = site.database.name().to_owned();
    let nowhere = net::free_port().unwrap();
    one(&site, |text| text.replace(&name, "no_such_database"), &["does not exist", "check source.database"])
        .await;
    let port = site.value("current_setting('port')").await.unwrap();
    let other_port = |text: String| text.replace(&format!("port: {port},"), &format!("port: {nowhere},"));
    one(&site, other_port, &["database", "check that PostgreSQL runs"]).await;
    let kafka = site.bootstrap.clone();
    let no_kafka = |text: String| text.replace(&kafka, &format!("127.0.0.1:{nowhere}"));
    one(&site, no_kafka, &["Kafka", "sink.bootstrapServers"]).await;
    let no_topic = |text: String| text.replace("deadLetterTopic: 'dead.", "deadLetterTopic: 'none.");
    one(&site, no_topic, &["topic", "none.", "does not exist", "create the topic"]).await;
    site.execute("ALTER PUBLICATION outbox SET (publish = 'update')").await;
    one(&site, |text| text, &["publication", "does not publish inserts", "alter the publication"]).await;
    site.execute("ALTER PUBLICATION outbox SET (publish = 'insert')").await;
    let advance = format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_insert_lsn())", site.slot);
    site.insert([("k", 2)]).await;
    site.execute(&advance).await;
    one(&site, |text| text, &["delivery", "ahead of the checkpoint", "docs/OPERATIONS.md"]).await;
    site.execute(&format!("SELECT pg_drop_replication_slot('{}')", site.slot)).await;
    one(&site, |text| text, &["delivery", "is gone", "docs/OPERATIONS.md"]).await;
    site.execute("ALTER TABLE outbox RENAME TO outbox_gone").await;
    let problems = problems(&site, |text| text).await;
    assert!(
        problems.iter().any(|problem| problem.contains("migrations/outbox in its schema")),
        "{problems:?}"
    );
}

#[tokio::test]
async fn what_the_role_lacks_is_named_as_the_grant_it_needs() {
    let site = site().await;
    let role = unique("doctor_role");
    site.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let as_role = |text: String| text.replace("user: postgres", &format!("user: {role}"));
    let found = problems(&site, as_role).await.join("\n");
    assert!(found.contains(&format!("ALTER ROLE \\\"{role}\\\" REPLICATION")), "{found}");
    assert!(found.contains("GRANT SELECT, INSERT, UPDATE ON"), "{found}");
    assert!(found.contains("GRANT SELECT ON \\\"public\\\".\\\"outbox\\\""), "{found}");
    site.execute(&format!(
        "ALTER ROLE {role} REPLICATION; GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO {role};
         GRANT SELECT ON outbox TO {role};
         GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval) TO {role}"
    ))
    .await;
    assert_eq!(problems(&site, as_role).await, Vec::<String>::new());
    site.execute(&format!("ALTER ROLE {role} SET default_transaction_read_only = on")).await;
    one(&site, as_role, &["database", "it is a standby, or set read-only"]).await;
}

#[tokio::test]
async fn lag_says_what_is_confirmed_and_what_the_relay_knows() {
    let site = site().await;
    let port = net::free_port().unwrap();
    for n in 0..50 {
        site.insert([("k", n), ("l", n)]).await;
    }
    let away = site.command(port, |text| text, &["lag", "--json"]).await;
    assert_eq!(away.code, Some(0), "{away:?}");
    let lag: Value = serde_json::from_str(&away.out).unwrap();
    assert!(lag["database"]["unconfirmedWalBytes"].as_u64().unwrap() > 5_000, "{lag}");
    assert!(lag["database"]["retainedWalBytes"].as_u64().unwrap() > 5_000, "{lag}");
    assert_eq!((&lag["database"]["heldByPid"], &lag["relay"]), (&Value::Null, &Value::Null), "{lag}");
    assert!(lag["relayError"].as_str().unwrap().contains("no relay answers"), "{lag}");
    let lines = site.command(port, |text| text, &["lag"]).await.out;
    assert!(
        lines.contains("database  unconfirmed") && lines.contains("held by       no connection"),
        "{lines}"
    );

    let relay = site.relay().await;
    site.until_records(101).await;
    site.until_confirmed(&relay).await;
    let caught_up = wait::until("the relay's numbers in `lag`", TIMEOUT, async || {
        let answer = site.command(relay.admin, |text| text, &["lag", "--json"]).await;
        let lag: Value = serde_json::from_str(&answer.out).unwrap();
        if lag["relay"]["phase"] == "streaming" && lag["relay"]["inFlightEvents"] == 0 {
            Ok(lag)
        } else {
            Err(lag)
        }
    })
    .await
    .unwrap();
    assert!(caught_up["database"]["heldByPid"].is_number(), "{caught_up}");
    let lines = site.command(relay.admin, |text| text, &["lag"]).await.out;
    for word in ["relay     read", "relay     published", "relay     acknowledged", "relay     confirmed"] {
        assert!(lines.contains(word), "{word}: {lines}");
    }
    let nowhere = |text: String| text.replace(site.database.name(), "no_such_database");
    let answer = site.command(port, nowhere, &["lag"]).await;
    assert!(answer.code == Some(69) && answer.err.contains("check source.database"), "{answer:?}");
}

#[tokio::test]
async fn topics_that_take_no_events_or_no_keyless_ones_are_named() {
    let site = site().await;
    for (topic, says) in [("__consumer_offsets", "internal topic of Kafka"), (".", "not a valid topic name")]
    {
        let routed = |text: String| format!("{text}routing: {{replacement: '{topic}'}}\n");
        one(&site, routed, &["routing", topic, says, "correct routing.replacement"]).await;
    }
    let dead = format!("dead.{}", site.aggregate);
    alter_topic(&site.bootstrap, &dead, &[("cleanup.policy", "compact")]).await.unwrap();
    site.execute(
        "UPDATE outbox_checkpoint
         SET mapping = jsonb_set(mapping, '{current,topics,__consumer_offsets}', '{\"partitions\": 1}')",
    )
    .await;
    let answer = site.command(net::free_port().unwrap(), |text| text, &["doctor"]).await;
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.contains(&format!("dead-letter topic {dead} is compacted")), "{answer:?}");
    let internal: Vec<&str> = answer.out.lines().filter(|line| line.contains("__consumer_offsets")).collect();
    assert!(internal.len() == 1 && internal[0].contains("an internal topic of Kafka"), "{answer:?}");
}
