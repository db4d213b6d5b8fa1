//! What the service's role needs in the database: one list for `migrate --grant-to`, for readiness and for `doctor`.

use std::sync::LazyLock;

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::servers::{ServerError, WRITABLE, accepts_writes};

/// What a privilege is about.
enum Object {
    Table(&'static str),
    Columns(&'static str, &'static [&'static str]),
    Function(&'static str),
}

use Object::{Columns, Function, Table};

/// None of them allows to change the log of commands, or to change or remove an event of the outbox.
const NEEDED: [(&[&str], Object); 6] = [
    (&["SELECT", "INSERT", "UPDATE"], Table("basket")),
    (&["SELECT", "INSERT", "UPDATE", "DELETE"], Table("basket_view")),
    (&["SELECT", "INSERT"], Table("command_log")),
    (&["SELECT", "INSERT", "DELETE"], Table("idempotency_key")),
    (&["INSERT"], Columns("outbox", &OUTBOX_COLUMNS)),
    (&["EXECUTE"], Function("command_log_maintain(interval)")),
];

/// The others have defaults, which only the database may set.
const OUTBOX_COLUMNS: [&str; 8] =
    ["id", "aggregatetype", "aggregateid", "type", "payload", "headers", "traceparent", "tracestate"];

/// For `doctor` alone: the service works without.
const MIGRATIONS_TABLE: (&[&str], Object) = (&["SELECT"], Table("_sqlx_migrations"));

impl Object {
    /// As in `GRANT <privilege> ON <object>`, for one privilege or several.
    fn granted(&self, privileges: &[&str]) -> String {
        match self {
            Table(name) => format!("GRANT {} ON {name}", privileges.join(", ")),
            Columns(name, columns) => {
                format!("GRANT {} ({}) ON {name}", privileges.join(", "), columns.join(", "))
            }
            Function(signature) => format!("GRANT {} ON FUNCTION {signature}", privileges.join(", ")),
        }
    }

    /// An SQL condition: the role of the session holds it.
    fn is_held(&self, privilege: &str) -> String {
        match self {
            Table(name) => format!("has_table_privilege(to_regclass('{name}')::oid, '{privilege}')"),
            Columns(name, columns) => {
                let held = |column: &&str| {
                    format!("has_column_privilege(to_regclass('{name}')::oid, '{column}', '{privilege}')")
                };
                columns.iter().map(held).collect::<Vec<_>>().join(" AND ")
            }
            Function(signature) => {
                format!("has_function_privilege(to_regprocedure('{signature}')::oid, '{privilege}')")
            }
        }
    }

    /// An SQL expression: the name if there is no such object.
    fn name_if_missing(&self) -> String {
        let (name, lookup) = match self {
            Table(name) | Columns(name, _) => (name, "to_regclass"),
            Function(signature) => (signature, "to_regprocedure"),
        };
        format!("CASE WHEN {lookup}('{name}') IS NULL THEN '{name}' END")
    }
}

/// One statement for all of it, because the probe looks at a database that may be far away.
static MISSING: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<String> = NEEDED.iter().map(|(_, object)| object.name_if_missing()).collect();
    let grants = NEEDED.iter().flat_map(|(privileges, object)| {
        privileges.iter().map(move |privilege| {
            let grant = object.granted(&[privilege]);
            format!("CASE WHEN ({}) IS NOT TRUE THEN '{grant}' END", object.is_held(privilege))
        })
    });
    format!(
        "SELECT array_remove(ARRAY[{}]::text[], NULL) AS objects, array_remove(ARRAY[{}]::text[], NULL) AS grants,
                quote_ident(current_user) AS role, {WRITABLE}",
        names.join(", "),
        grants.collect::<Vec<_>>().join(", ")
    )
});

/// Why a session cannot do what the service does.
#[derive(Debug, thiserror::Error)]
pub enum Lacking {
    /// The server accepts no writes, or does not answer.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Tables and functions do not exist where the session looks for them.
    #[error("the schema lacks {}; run 'basket-api migrate'", .0.join(", "))]
    Objects(Vec<String>),
    /// The role of the session lacks privileges: the `GRANT` statements that give them.
    #[error("privileges are missing; run 'basket-api migrate --grant-to ROLE', or as the owner: {}", .0.join("; "))]
    Grants(Vec<String>),
}

/// Whether the session can do everything that the service does.
pub async fn check(sql: &mut PgConnection) -> Result<(), Lacking> {
    let row = sqlx::query(MISSING.as_str()).fetch_one(sql).await.map_err(ServerError::from)?;
    accepts_writes(&row)?;
    let texts = |name: &str| row.try_get::<Vec<String>, _>(name).map_err(ServerError::from);
    let (objects, grants) = (texts("objects")?, texts("grants")?);
    if !objects.is_empty() {
        return Err(Lacking::Objects(objects));
    }
    if !grants.is_empty() {
        let role: String = row.try_get("role").map_err(ServerError::from)?;
        return Err(Lacking::Grants(grants.iter().map(|grant| format!("{grant} TO {role}")).collect()));
    }
    Ok(())
}

/// Every `GRANT` statement that the service's role needs, where `schema` and `role` are quoted as necessary.
fn statements(schema: &str, role: &str) -> Vec<String> {
    let usage = format!("GRANT USAGE ON SCHEMA {schema} TO {role};");
    let objects = NEEDED.iter().chain([&MIGRATIONS_TABLE]);
    let grants = objects.map(|(privileges, object)| format!("{} TO {role};", object.granted(privileges)));
    std::iter::once(usage).chain(grants).collect()
}

/// Grants `role` what the service needs, as the owner of its tables.
pub(super) async fn grant(sql: &mut PgConnection, role: &str) -> Result<(), sqlx::Error> {
    let (schema, role): (String, String) =
        sqlx::query_as("SELECT quote_ident(current_schema()), quote_ident($1)")
            .bind(role)
            .fetch_one(&mut *sql)
            .await?;
    let statements = statements(&schema, &role).join("\n");
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(sql).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_these_statements() {
        let page = include_str!("../../../docs/CONFIGURATION.md");
        assert!(
            page.contains(&statements("public", "shop").join("\n")),
            "{:#?}",
            statements("public", "shop")
        );
    }
}
