//! `doctor`: looks whether the service could do its work, and whether one that runs does it, and says of each thing whether it is right,
//! and what to do if it is not. It changes nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use process::{Finding, root_cause};
use serde_json::Value;
use sqlx::FromRow;
use sqlx::postgres::PgConnection;
use url::Url;

use crate::http::openapi;
use crate::postgres::{Lacking, Limits, MIGRATIONS, PATIENT, Servers, Session, check, place};

/// Database and service; a person waits for it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// The document has some 50 KiB.
const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;
/// SQLSTATE of a table that is not there, and of one that may not be read.
const UNDEFINED_TABLE: &str = "42P01";
const INSUFFICIENT_PRIVILEGE: &str = "42501";

type Failed = Box<dyn Error + Send + Sync>;

/// Makes every check that can be made; of the service that runs, where its address is known.
pub async fn examine(servers: &Servers, service: Option<&Url>) -> Vec<Finding> {
    let mut findings = match servers.connect(Limits::COMMANDS, PATIENT).await {
        Ok(mut session) => {
            let mut findings = vec![database(&mut session).await, schema(&mut session.sql).await];
            findings.extend(privileges(&mut session.sql).await);
            findings
        }
        Err(error) => vec![Finding::problem(DATABASE, error.to_string(), CHECK_SERVER)],
    };
    if let Some(url) = service {
        findings.push(answers(url).await);
    }
    findings
}

async fn within<T, E: Into<Failed>>(asked: impl Future<Output = Result<T, E>>) -> Result<T, Failed> {
    match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(format!("no answer within {} s", ANSWERS_WITHIN.as_secs()).into()),
    }
}

const DATABASE: &str = "database";
const CHECK_SERVER: &str = "check that it runs, and BASKET_DATABASE_URL";

async fn database(session: &mut Session) -> Finding {
    let version = sqlx::query_scalar::<_, String>("SELECT current_setting('server_version')");
    let (place, role) = (place(&session.server), session.server.get_username().to_owned());
    match within(version.fetch_one(&mut session.sql)).await {
        Ok(version) => {
            let message = format!("PostgreSQL {version} at {place} accepts role {role}, and writes");
            Finding::ok(DATABASE, message)
        }
        Err(error) => {
            let message = format!("PostgreSQL at {place} cannot be used: {}", root_cause(error.as_ref()));
            Finding::problem(DATABASE, message, CHECK_SERVER)
        }
    }
}

/// A schema that is not migrated is a separate finding.
async fn privileges(sql: &mut PgConnection) -> Option<Finding> {
    const CHECK: &str = "privileges";
    let checked = tokio::time::timeout(ANSWERS_WITHIN, check(sql)).await;
    Some(match checked {
        Ok(Ok(())) => Finding::ok(CHECK, "the role may do what the service does"),
        Ok(Err(Lacking::Objects(_))) => return None,
        Ok(Err(Lacking::Grants(grants))) => {
            let message = format!("{} privileges are missing: the service cannot become ready", grants.len());
            Finding::problem(CHECK, message, format!("as the owner of the tables: {}", grants.join("; ")))
        }
        Ok(Err(error)) => Finding::problem(CHECK, error.to_string(), CHECK_SERVER),
        Err(_) => Finding::problem(CHECK, "the database does not answer", CHECK_SERVER),
    })
}

/// A migration as the database has noted it.
#[derive(FromRow)]
struct Applied {
    version: i64,
    checksum: Vec<u8>,
    success: bool,
}

async fn schema(sql: &mut PgConnection) -> Finding {
    const CHECK: &str = "schema";
    let noted =
        sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations").fetch_all(sql).await;
    let refused =
        |code| matches!(&noted, Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(code));
    if refused(INSUFFICIENT_PRIVILEGE) {
        let message = "which migrations were applied may not be read";
        return Finding::warn(CHECK, message, "GRANT SELECT ON _sqlx_migrations to the service's role");
    }
    let applied = if refused(UNDEFINED_TABLE) { Ok(Vec::new()) } else { noted };
    match applied {
        Ok(applied) => judge(applied),
        Err(error) => Finding::problem(CHECK, root_cause(&error), "check the database"),
    }
}

fn judge(applied: Vec<Applied>) -> Finding {
    const CHECK: &str = "schema";
    let mut applied: BTreeMap<i64, Applied> =
        applied.into_iter().map(|applied| (applied.version, applied)).collect();
    for known in MIGRATIONS.iter() {
        let name = format!("migration {} ({})", known.version, known.description);
        match applied.remove(&known.version) {
            None => {
                return Finding::problem(CHECK, format!("{name} was not applied"), "run basket-api migrate");
            }
            Some(applied) if !applied.success => {
                let remedy = "put right what stopped it, delete its row from _sqlx_migrations, and run basket-api migrate";
                return Finding::problem(CHECK, format!("{name} was not applied to its end"), remedy);
            }
            Some(applied) if *applied.checksum != *known.checksum => {
                let message = format!("{name} was applied with another content");
                return Finding::problem(CHECK, message, "see which release has migrated this database");
            }
            Some(_) => {}
        }
    }
    match applied.keys().next() {
        None => Finding::ok(
            CHECK,
            format!("all {} migrations are applied, and no others", MIGRATIONS.iter().count()),
        ),
        Some(newer) => {
            let message = format!("migration {newer} was applied, which this release does not know");
            Finding::warn(CHECK, message, "run the release that has migrated this database")
        }
    }
}

async fn answers(url: &Url) -> Finding {
    const CHECK: &str = "service";
    let remedy = "check that its pods are ready, and that the address is the service's";
    match within(document(url)).await {
        Ok((StatusCode::OK, document)) if document == openapi::document() => {
            Finding::ok(CHECK, format!("{url} answers, as this release does"))
        }
        Ok((StatusCode::OK, _)) => {
            let message = format!("{url} answers, but with the document of another release or service");
            Finding::warn(
                CHECK,
                message,
                "see that the rollout has ended, and that the address is the service's",
            )
        }
        Ok((status, _)) => Finding::problem(CHECK, format!("{url} answers {status}"), remedy),
        Err(error) => {
            Finding::problem(CHECK, format!("{url} does not answer: {}", root_cause(error.as_ref())), remedy)
        }
    }
}

/// Of anything that is not JSON, `null`.
async fn document(url: &Url) -> Result<(StatusCode, Value), Failed> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.get(url.join("openapi.json")?.as_str().parse()?).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}
