//! The SQL of docs/OPERATIONS.md, as it stands there: each statement finds the row of a relay with the name that the operator
//! gives, and none names a relay or a slot itself.

use sqlx::{AssertSqlSafe, Executor};

use crate::fixture::Site;

const OPERATIONS: &str = include_str!("../../../docs/OPERATIONS.md");
/// As the operator names relays: namespace and resource.
const NAME: &str = "shop/orders";

/// The statements of a section, from blocks of SQL and from the text, in their order.
pub fn statements(section: &str) -> Vec<String> {
    let (_, text) = OPERATIONS.split_once(&format!("## {section}\n")).unwrap();
    of(text.split("\n## ").next().unwrap())
}

/// With the values of the variables that an operator sets in psql.
pub fn fill_in(statement: &str, relay: &str, slot: &str) -> String {
    statement.replace(":'relay'", &format!("'{relay}'")).replace(":'slot'", &format!("'{slot}'"))
}

fn of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        if number % 2 == 0 {
            found.extend(part.split('`').skip(1).step_by(2).map(str::to_owned));
        } else if let Some(sql) = part.strip_prefix("sql\n") {
            found.extend(sql.split(';').map(str::to_owned));
        }
    }
    let statements = found.iter().map(|text| text.trim().trim_end_matches(';').to_owned());
    let is_statement = |text: &String| {
        ["SELECT", "UPDATE", "DELETE", "INSERT"].iter().any(|verb| text.starts_with(&format!("{verb} ")))
    };
    statements.filter(is_statement).collect()
}

#[test]
fn no_procedure_names_a_relay_or_a_slot() {
    let statements = of(OPERATIONS);
    assert!(statements.len() > 30, "the statements were not found: {statements:#?}");
    for statement in &statements {
        for column in ["relay", "slot", "slot_name"] {
            let value = statement.split_once(&format!("WHERE {column} = ")).map(|(_, value)| value);
            let is_free = value.is_none_or(|value| value.starts_with(":'") || value.starts_with("'hold'"));
            assert!(is_free, "under the operator it finds no row: {statement}");
        }
    }
}

/// A statement that changes the checkpoint changes exactly the row of this relay.
#[tokio::test]
async fn procedures_find_the_row_of_a_relay_that_the_operator_named() {
    let site = Site::shared().await;
    let relay = site.launch(|text| text.replace("name: relay\n", &format!("name: {NAME}\n")));
    relay.until("/readyz", 200, "streaming").await;
    relay.stop().await;
    let changes: Vec<String> = of(OPERATIONS)
        .into_iter()
        .filter(|text| {
            text.starts_with("UPDATE outbox_checkpoint\n") || text.contains("WHERE relay = :'relay'")
        })
        .collect();
    assert!(changes.len() > 8, "{changes:#?}");
    for statement in &changes {
        let statement = fill_in(statement, NAME, &site.slot);
        let mut sql = site.sql().await;
        sql.execute("BEGIN").await.unwrap();
        let done = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut sql).await;
        let rows = done.unwrap_or_else(|error| panic!("{statement}: {error}")).rows_affected();
        assert_eq!(rows, 1, "{statement}");
        sql.execute("ROLLBACK").await.unwrap();
    }
}
