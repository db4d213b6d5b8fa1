//! Rights in the database: what is missing is said before it is needed, in a statement that the server at hand takes.

use outbox_relay::postgres::grants;
use serde_json::json;
use testbed::guard::Folder;
use testbed::postgres::{Postgres, PostgresOptions};
use testbed::{Database, unique, wait};

use crate::lifecycle::until_gone;
use crate::stage::{SOON, Stage};

/// What `docs/OUTBOX.md` grants, without the part for deletion.
fn grants_to_deliver(role: &str) -> String {
    format!(
        "CREATE ROLE {role} LOGIN REPLICATION;
         GRANT SELECT ON outbox TO {role};
         GRANT SELECT, INSERT, UPDATE ON outbox_checkpoint TO {role};
         GRANT EXECUTE ON FUNCTION outbox_maintain(interval, interval), outbox_partition_state() TO {role};"
    )
}

async fn message(stage: &Stage, condition: &str) -> String {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].message}}");
    stage.namespace.kubectl(&["get", "obr", "shop", "-o", &path]).await.unwrap()
}

async fn until_message(stage: &Stage, condition: &str, is: impl Fn(&str) -> bool) {
    wait::until(format!("another message of {condition}"), SOON, async || {
        let said = message(stage, condition).await;
        if is(&said) { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
}

/// Rows of the checkpoint, and slots.
async fn left(stage: &Stage) -> (Option<String>, Option<String>) {
    let slot = stage.database.name();
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    (stage.value("SELECT count(*) FROM outbox_checkpoint").await, stage.value(&slots).await)
}

#[tokio::test]
async fn what_the_deletion_will_lack_is_said_while_the_resource_lives() {
    let mut stage = Stage::shared("rights").await;
    let role = unique("relay_role");
    let mark = format!("made by outbox-operator for {}/shop", stage.namespace.name());
    stage
        .database
        .execute(&format!(
            "{} CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true);
             COMMENT ON PUBLICATION outbox IS '{mark}'",
            grants_to_deliver(&role)
        ))
        .await
        .unwrap();
    stage.secret(&role, "unused").await;
    stage.spec["source"]["postgres"]["publication"]["deletionPolicy"] = json!("Delete");
    stage.apply().await;
    stage.until(&[("WorkloadAvailable", "False", "Unschedulable")]).await;
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.start_relay(&folder).await;
    stage.say_that_pods_are_ready().await;
    stage.until(&[("Ready", "True", "Streaming"), ("SlotReady", "True", "Present")]).await;
    let delete = format!("GRANT DELETE ON \"public\".\"outbox_checkpoint\" TO \"{role}\"");
    let own = format!("ALTER PUBLICATION \"outbox\" OWNER TO \"{role}\"");
    until_message(&stage, "SlotReady", |said| said.contains(&delete)).await;
    until_message(&stage, "PublicationReady", |said| said.contains(&own)).await;
    // Edits bring about whole passes; the Events stay as many.
    for level in ["debug", "info"] {
        stage.spec["relay"] = json!({"logLevel": level});
        stage.apply().await;
        wait::until("the pods of another generation", SOON, async || {
            stage.say_that_pods_are_ready().await;
            let seen = "jsonpath={.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type==\"Ready\")].status}";
            let seen = stage.namespace.kubectl(&["get", "obr", "shop", "-o", seen]).await.unwrap();
            match seen.split(' ').collect::<Vec<_>>()[..] {
                [generation, observed, "True"] if generation == observed => Ok(()),
                _ => Err(seen),
            }
        })
        .await
        .unwrap();
    }
    let events = ["get", "events", "--field-selector=reason=DeletionNotPermitted,type=Warning", "-o", "name"];
    assert_eq!(stage.namespace.kubectl(&events).await.unwrap().lines().count(), 2, "one for each object");

    relay.terminate().unwrap();
    relay.wait(SOON).await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    stage.until(&[("Ready", "False", "Deleting")]).await;
    until_message(&stage, "Ready", |said| said.contains(&delete)).await;
    let both = (Some("1".to_owned()), Some("1".to_owned()));
    assert_eq!(
        left(&stage).await,
        both,
        "a row without its slot would stop retention, and would not be found"
    );
    stage.database.execute(&delete).await.unwrap();
    until_message(&stage, "Ready", |said| said.contains(&own)).await;
    let neither = (Some("0".to_owned()), Some("0".to_owned()));
    assert_eq!(left(&stage).await, neither);
    stage.database.execute(&own).await.unwrap();
    until_gone(&stage).await;
    assert_eq!(stage.value("SELECT count(*) FROM pg_publication").await.as_deref(), Some("0"));
}

/// The row goes with the slot, or stays with it.
#[tokio::test]
async fn a_slot_that_cannot_be_dropped_keeps_its_row() {
    let stage = Stage::shared("both").await;
    let folder = Folder::new("relay").unwrap();
    let mut relay = stage.until_streaming(&folder).await;
    relay.terminate().unwrap();
    relay.wait(SOON).await.unwrap();
    // A lock on the row keeps the deletion from it, but would not keep it from the slot.
    let mut holder = stage.database.connect().await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM outbox_checkpoint FOR UPDATE").execute(&mut holder).await.unwrap();
    stage.namespace.kubectl(&["delete", "obr", "shop", "--wait=false"]).await.unwrap();
    until_message(&stage, "Ready", |said| said.contains("lock timeout")).await;
    assert_eq!(left(&stage).await, (Some("1".to_owned()), Some("1".to_owned())));
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    until_gone(&stage).await;
    assert_eq!(left(&stage).await, (Some("0".to_owned()), Some("0".to_owned())));
}

/// Each provider is known by its administrators' role.
#[tokio::test]
async fn the_statement_that_lets_a_role_replicate_is_the_providers() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let database = Database::on(&postgres.url("postgres"), "providers").await.unwrap();
    let mut sql = database.connect().await.unwrap();
    database.execute("CREATE ROLE able LOGIN; CREATE ROLE unable").await.unwrap();
    let google = "WITH REPLICATION /* as a member of cloudsqlsuperuser or alloydbsuperuser */";
    for (provider, statement) in [
        (None, "ALTER ROLE \"able\" REPLICATION".to_owned()),
        (Some("rds_replication"), "GRANT rds_replication TO \"able\"".to_owned()),
        (Some("cloudsqlsuperuser"), format!("ALTER USER \"able\" {google}")),
        (Some("alloydbsuperuser"), format!("ALTER USER \"able\" {google}")),
        (
            Some("azure_pg_admin"),
            "ALTER ROLE \"able\" WITH REPLICATION /* as a member of azure_pg_admin */".to_owned(),
        ),
    ] {
        if let Some(role) = provider {
            database.execute(&format!("CREATE ROLE {role}")).await.unwrap();
        }
        let said = grants::replication(&mut sql, "able").await.unwrap();
        assert_eq!(said.as_ref(), Some(&statement), "{provider:?}");
        for (role, verb) in [("unable", "ALTER"), ("missing", "CREATE")] {
            let said = grants::replication(&mut sql, role).await.unwrap().unwrap();
            let statement = statement.replace("able", role);
            let expected = match provider {
                Some("rds_replication") => format!("{verb} ROLE \"{role}\" LOGIN; {statement}"),
                _ => statement.replace("ALTER", verb).replacen("REPLICATION", "LOGIN REPLICATION", 1),
            };
            assert_eq!(said, expected, "{provider:?}");
        }
        // It is one that the server takes, and it is enough.
        database.execute(&statement).await.unwrap();
        assert_eq!(grants::replication(&mut sql, "able").await.unwrap(), None, "{provider:?}");
        database.execute("ALTER ROLE able NOREPLICATION").await.unwrap();
        if let Some(role) = provider {
            database.execute(&format!("DROP ROLE {role}")).await.unwrap();
        }
    }
}
