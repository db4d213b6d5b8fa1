//! The privileges of the relay's role, and the statements that grant what is missing. Checked by `doctor` as the role
//! itself, and by the operator as an administrator before it starts a relay.

use sqlx::postgres::PgConnection;

use crate::config::{Source, StartAt, quote};
use crate::error::RelayError;
use crate::postgres::checkpoint;

/// The statements for every privilege that `role` lacks and the relay requires; empty if nothing is missing.
pub async fn missing(sql: &mut PgConnection, source: &Source, role: &str) -> Result<Vec<String>, RelayError> {
    let mut missing = Vec::new();
    missing.extend(replication(sql, role).await?);
    missing.extend(entry(sql, source, role).await?);
    missing.extend(on_checkpoint(sql, source, role).await?);
    if source.start == StartAt::Table {
        missing.extend(on_outbox(sql, source, role).await?);
    }
    Ok(missing)
}

/// What is missing to open replication connections.
pub async fn replication(sql: &mut PgConnection, role: &str) -> Result<Option<String>, RelayError> {
    // On Amazon RDS no role gets the attribute; membership in this role replaces it.
    let may: Option<(bool, bool)> = sqlx::query_as(
        "SELECT rolcanlogin, rolsuper OR rolreplication OR EXISTS (
                    SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER'))
         FROM pg_roles r WHERE rolname = $1",
    )
    .bind(role)
    .fetch_optional(&mut *sql)
    .await?;
    let (role, provider) = (quote(role), provider(sql).await?);
    Ok(match may {
        Some((true, true)) => None,
        Some((false, true)) => Some(format!("ALTER ROLE {role} LOGIN")),
        Some((true, false)) => Some(provider.replication_grant("ALTER", &role, "")),
        Some((false, false)) => Some(provider.replication_grant("ALTER", &role, "LOGIN ")),
        None => Some(provider.replication_grant("CREATE", &role, "LOGIN ")),
    })
}

/// The provider of the server, which decides how a role gets the privilege to replicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    SelfManaged,
    AmazonRds,
    GoogleCloud,
    Azure,
}

impl Provider {
    /// `role` is quoted; `attribute` is LOGIN followed by a space, or empty. The role that may run the statement is
    /// named in a comment, so that the whole text can be pasted.
    fn replication_grant(self, verb: &str, role: &str, attribute: &str) -> String {
        match self {
            Provider::SelfManaged => format!("{verb} ROLE {role} {attribute}REPLICATION"),
            Provider::AmazonRds if attribute.is_empty() => format!("GRANT rds_replication TO {role}"),
            Provider::AmazonRds => format!("{verb} ROLE {role} LOGIN; GRANT rds_replication TO {role}"),
            Provider::GoogleCloud => format!(
                "{verb} USER {role} WITH {attribute}REPLICATION /* as a member of cloudsqlsuperuser or alloydbsuperuser */"
            ),
            Provider::Azure => {
                format!("{verb} ROLE {role} WITH {attribute}REPLICATION /* as a member of azure_pg_admin */")
            }
        }
    }
}

/// Recognised by the administrators' role that each provider creates in every server.
async fn provider(sql: &mut PgConnection) -> Result<Provider, RelayError> {
    let (amazon, google, azure): (bool, bool, bool) = sqlx::query_as(
        "SELECT to_regrole('rds_replication') IS NOT NULL,
                to_regrole('cloudsqlsuperuser') IS NOT NULL OR to_regrole('alloydbsuperuser') IS NOT NULL,
                to_regrole('azure_pg_admin') IS NOT NULL",
    )
    .fetch_one(sql)
    .await?;
    Ok(match (amazon, google, azure) {
        (true, _, _) => Provider::AmazonRds,
        (_, true, _) => Provider::GoogleCloud,
        (_, _, true) => Provider::Azure,
        _ => Provider::SelfManaged,
    })
}

/// How a role gets the privilege to open replication connections, on self-managed and on managed servers.
pub fn replication_grants(role: &str) -> String {
    let role = quote(role);
    format!(
        "ALTER ROLE {role} REPLICATION as a superuser (Cloud SQL, AlloyDB and Azure: as the administrator); \
         on Amazon RDS and Aurora, where no role gets the attribute: GRANT rds_replication TO {role}"
    )
}

/// What is missing to connect to the database and to use the schema.
async fn entry(sql: &mut PgConnection, source: &Source, role: &str) -> Result<Vec<String>, RelayError> {
    let (role, schema) = (quote(role), quote(&source.table.schema));
    let (connect, usage): (bool, bool) = sqlx::query_as(
        "SELECT coalesce(has_database_privilege(to_regrole($1), current_database(), 'CONNECT'), false),
                coalesce(has_schema_privilege(to_regrole($1), to_regnamespace($2), 'USAGE'), false)",
    )
    .bind(&role)
    .bind(&schema)
    .fetch_one(sql)
    .await?;
    let connect =
        (!connect).then(|| format!("GRANT CONNECT ON DATABASE {} TO {role}", quote(&source.database)));
    let usage = (!usage).then(|| format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
    Ok(connect.into_iter().chain(usage).collect())
}

/// What is missing to store the checkpoint.
pub async fn on_checkpoint(
    sql: &mut PgConnection,
    source: &Source,
    role: &str,
) -> Result<Option<String>, RelayError> {
    on_table(sql, &source.table.sibling(checkpoint::TABLE), role, &["SELECT", "INSERT", "UPDATE"]).await
}

/// What is missing to drop the slot, and to delete the relay's checkpoint row, for which retention waits.
pub async fn to_drop_slot(
    sql: &mut PgConnection,
    source: &Source,
    role: &str,
) -> Result<Option<String>, RelayError> {
    let checkpoint = source.table.sibling(checkpoint::TABLE);
    let replication = replication(sql, role).await?;
    let row = on_table(sql, &checkpoint, role, &["SELECT", "DELETE"]).await?;
    let missing: Vec<String> = replication.into_iter().chain(row).collect();
    Ok((!missing.is_empty()).then(|| missing.join("; ")))
}

/// What is missing to drop a publication: only its owner may. A publication that does not exist needs no privilege.
pub async fn to_drop_publication(
    sql: &mut PgConnection,
    publication: &str,
    role: &str,
) -> Result<Option<String>, RelayError> {
    let role = quote(role);
    let may: Option<bool> = sqlx::query_scalar(
        "SELECT coalesce(pg_has_role(to_regrole($2), pubowner, 'USAGE'), false)
         FROM pg_publication WHERE pubname = $1",
    )
    .bind(publication)
    .bind(&role)
    .fetch_optional(sql)
    .await?;
    let change = || format!("ALTER PUBLICATION {} OWNER TO {role}", quote(publication));
    Ok((may == Some(false)).then(change))
}

/// What is missing to read the rows from before the slot.
pub async fn on_outbox(
    sql: &mut PgConnection,
    source: &Source,
    role: &str,
) -> Result<Option<String>, RelayError> {
    let table = source.table.quoted();
    let select = on_table(sql, &table, role, &["SELECT"]).await?;
    let missing: Vec<String> = select.into_iter().chain(past_policies(sql, &table, role).await?).collect();
    Ok((!missing.is_empty()).then(|| missing.join("; ")))
}

/// What is missing to see every row of a table with row-level security: a policy would hide rows silently.
async fn past_policies(
    sql: &mut PgConnection,
    table: &str,
    role: &str,
) -> Result<Option<String>, RelayError> {
    let role = quote(role);
    let bound: Option<bool> = sqlx::query_scalar(
        "SELECT c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls)
                AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))
         FROM pg_class c, pg_roles r WHERE c.oid = to_regclass($2) AND r.oid = to_regrole($1)",
    )
    .bind(&role)
    .bind(table)
    .fetch_optional(sql)
    .await?;
    Ok(bound.unwrap_or_default().then(|| format!("ALTER ROLE {role} BYPASSRLS")))
}

async fn on_table(
    sql: &mut PgConnection,
    table: &str,
    role: &str,
    wanted: &[&str],
) -> Result<Option<String>, RelayError> {
    let role = quote(role);
    let missing: Vec<String> = sqlx::query_scalar(
        "SELECT privilege FROM unnest($3::text[]) WITH ORDINALITY AS wanted(privilege, place)
         WHERE NOT coalesce(has_table_privilege(to_regrole($1), to_regclass($2), privilege), false) ORDER BY place",
    )
    .bind(&role)
    .bind(table)
    .bind(wanted)
    .fetch_all(sql)
    .await?;
    Ok((!missing.is_empty()).then(|| format!("GRANT {} ON {table} TO {role}", missing.join(", "))))
}
