//! The PostgreSQL side of a reconciliation: whether the database can be used, then the publication and the slot.

use std::time::Duration;

use outbox_relay::config::{self, Access, Config};
use outbox_relay::error::{self, RelayError};
use outbox_relay::postgres::grants;
use outbox_relay::postgres::preconditions;
use outbox_relay::postgres::table;
use sqlx::postgres::PgConnection;

use super::resolve::{ResolvedSource, Unresolved};
use super::side::Side;
use super::{Context, conflicts, deletion_rights, publication, slot};
use crate::conditions::{ConditionState, ConditionType, Reason, Status, StepConditions};
use crate::connections::Database;
use crate::desired::files::POSTGRES;
use crate::resource::{CreationPolicy, OutboxRelay};
use crate::secrets::PostgresSecrets;

/// How long all of it may take: an outage has to show within 10 s.
const WITHIN: Duration = Duration::from_secs(6);

/// What this step returns.
pub(super) struct SourceReport {
    pub(super) conditions: StepConditions,
    /// Which database it is, as far as is known.
    pub(super) identity: Option<String>,
    pub(super) side: Side<()>,
}

/// Checks the database, and creates the publication. `streaming` is whether the relay reports that it delivers.
pub(super) async fn check(
    relay: &OutboxRelay,
    context: &Context,
    resolved: &Result<ResolvedSource, Unresolved>,
    streaming: Status,
) -> SourceReport {
    let identity = relay.status.as_ref().and_then(|status| status.database_identity.clone());
    let mut report = SourceReport { conditions: StepConditions::default(), identity, side: Side::NotReady };
    let Ok(ResolvedSource { config, secrets }) = resolved else { return report };
    let admin = administrator(relay, &config.source, secrets);
    let host = admin.host.clone();
    let check = Check { relay, context, config, admin, secrets, streaming };
    // What was found before the time is over is kept.
    if tokio::time::timeout(WITHIN, check.run(&mut report)).await.is_err() {
        let what = format!("{host} did not answer within {WITHIN:?}");
        let late = RelayError::new(error::ErrorKind::DatabaseUnreachable, what);
        report.conditions.set(ConditionType::DatabaseReachable, (&late).into());
        report.side = Side::NotReady;
    }
    context.metrics.step("database", matches!(report.side, Side::Ready(_)));
    report
}

/// The source as the administrator uses it: it creates the publication where it may be created.
pub(super) fn administrator(
    relay: &OutboxRelay,
    source: &config::Source,
    secrets: &PostgresSecrets,
) -> config::Source {
    let (mut source, postgres) = (source.clone(), &relay.spec.source.postgres);
    source.publication.creation_policy = match postgres.publication.creation_policy {
        CreationPolicy::IfMissing => config::CreationPolicy::IfMissing,
        CreationPolicy::Never => config::CreationPolicy::Never,
    };
    if let Some(admin) = &secrets.admin {
        source.user.clone_from(&admin.user);
        source.password = Some(admin.password.clone());
    }
    if let Some(admin) = &postgres.admin_certificate_secret_ref {
        source.user.clone_from(&admin.username);
        source.password_file = None;
        [source.tls.cert_file, source.tls.key_file] = POSTGRES.admin_certificate_files();
    }
    source
}

/// Connects with what the Secrets hold.
pub(super) async fn connect(
    context: &Context,
    source: &config::Source,
    secrets: &PostgresSecrets,
) -> Result<Database, RelayError> {
    let access = Access::read_with(source, &|file| secrets.files.read(file));
    let access = access
        .map_err(|error| RelayError::new(error::ErrorKind::CredentialsUnreadable, error.to_string()))?;
    context.connections.database(source, &access, &secrets.files.digest()).await
}

/// The input of this step.
struct Check<'a> {
    relay: &'a OutboxRelay,
    context: &'a Context,
    config: &'a Config,
    /// The source as the administrator sees it.
    admin: config::Source,
    secrets: &'a PostgresSecrets,
    streaming: Status,
}

impl Check<'_> {
    async fn run(&self, report: &mut SourceReport) {
        let (mut database, identity) = match self.usable().await {
            Ok(usable) => usable,
            Err(error) => {
                return report.conditions.set(ConditionType::DatabaseReachable, (&error).into());
            }
        };
        report.conditions.set(ConditionType::DatabaseReachable, ConditionState::yes(Reason::Connected, ""));
        if report.identity.as_ref() != Some(&identity) {
            return report.register(identity);
        }
        if let Some(owner) = conflicts::slot_owner(self.relay, self.context, &identity) {
            let slot = &self.admin.slot.name;
            let what =
                format!("{owner} is older and has slot {slot}: give this one another slot, or delete it");
            let conflict = ConditionState::no(Reason::ResourceConflict, what);
            return report.conditions.set(ConditionType::SlotReady, conflict);
        }
        let (relay, context, sql) = (self.relay, self.context, &mut database.sql);
        let published = publication::create_if_missing(relay, context, sql, &self.admin).await;
        let publication = match &published {
            Ok(()) => ConditionState::yes(Reason::Present, ""),
            Err(error) => error.into(),
        };
        report.conditions.set(ConditionType::PublicationReady, publication);
        match slot::observe(relay, context, sql, self.config, self.streaming).await {
            Err(error) => report.conditions.set(ConditionType::SlotReady, (&error).into()),
            Ok(slot) => {
                report.conditions.set(ConditionType::SlotReady, slot);
                let missing = deletion_rights::missing(relay, context, sql, &self.admin).await;
                for right in missing {
                    report.conditions.add_note(right.condition, &right.note);
                }
                context.connections.keep(database);
            }
        }
        if published.is_ok() {
            report.side = Side::Ready(());
        }
    }

    /// Connects, and checks what a relay needs before anything is created; with what the database is.
    async fn usable(&self) -> Result<(Database, String), RelayError> {
        let connecting = connect(self.context, &self.admin, self.secrets);
        let mut database = self.context.metrics.request("postgres", "connect", connecting).await?;
        preconditions::check_preconditions(&mut database.sql, &self.admin).await?;
        table::check(&mut database.sql, self.config).await?;
        check_grants(&mut database.sql, &self.config.source).await?;
        let identity = sqlx::query_scalar(
            "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()",
        )
        .fetch_one(&mut database.sql)
        .await?;
        Ok((database, identity))
    }
}

impl SourceReport {
    /// The status has to name the database before anything is created.
    fn register(&mut self, identity: String) {
        for type_ in [ConditionType::PublicationReady, ConditionType::SlotReady] {
            let what = "which database it is was just found out";
            self.conditions.set(type_, ConditionState::unknown(Reason::Registering, what));
        }
        self.identity = Some(identity);
        self.side = Side::Registering;
    }
}

/// Before there are pods that could only say the same.
async fn check_grants(sql: &mut PgConnection, source: &config::Source) -> Result<(), RelayError> {
    let missing = grants::missing(sql, source, &source.user).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let (role, database) = (&source.user, &source.database);
    let what = format!("role {role} lacks rights; run in database {database}: {}", missing.join("; "));
    Err(RelayError::new(error::ErrorKind::PermissionDenied, what))
}
