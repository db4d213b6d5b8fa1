//! The PostgreSQL side of a reconciliation: whether the database can be used, the publication, and the slot as the relay has left it.

use std::time::Duration;

use outbox_relay::config::{self, Access, Config, quote};
use outbox_relay::error::{self, RelayError};
use outbox_relay::postgres::checkpoint;
use outbox_relay::postgres::grants;
use outbox_relay::postgres::preconditions;
use outbox_relay::postgres::publication::{self, PublicationState};
use outbox_relay::postgres::slot as slot_query;
use outbox_relay::postgres::table;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::Pass;
use crate::conditions::{ConditionState, ConditionType, Reason};
use crate::connections::Database;
use crate::desired::configuration::identity;
use crate::desired::files::POSTGRES;
use crate::events::EventType;
use crate::resource::{CreationPolicy, OutboxRelay};
use crate::secrets::PostgresSecrets;

/// How long all of it may take: an outage has to show within 10 s.
const WITHIN: Duration = Duration::from_secs(6);

impl Pass<'_> {
    /// Whether a relay could be started.
    pub(super) async fn database(&mut self, config: &Config, secrets: &PostgresSecrets) -> bool {
        let source = self.administrator(&config.source, secrets);
        let looked = tokio::time::timeout(WITHIN, self.look_at_database(config, &source, secrets)).await;
        looked.unwrap_or_else(|_| {
            let what = format!("{} did not answer within {WITHIN:?}", source.host);
            self.database_is_not_reachable(&RelayError::new(error::ErrorKind::DatabaseUnreachable, what));
            false
        })
    }

    /// The source as the administrator sees it, who makes the publication where it may be made.
    pub(super) fn administrator(&self, source: &config::Source, secrets: &PostgresSecrets) -> config::Source {
        let (mut source, postgres) = (source.clone(), &self.relay.spec.source.postgres);
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
        &self,
        source: &config::Source,
        secrets: &PostgresSecrets,
    ) -> Result<Database, RelayError> {
        let access = Access::read_with(source, &|file| secrets.files.read(file));
        let access = access
            .map_err(|error| RelayError::new(error::ErrorKind::CredentialsUnreadable, error.to_string()))?;
        self.context.connections.database(source, &access, &secrets.files.digest()).await
    }

    async fn look_at_database(
        &mut self,
        config: &Config,
        source: &config::Source,
        secrets: &PostgresSecrets,
    ) -> bool {
        let (mut database, identity) = match self.usable(config, source, secrets).await {
            Ok(usable) => usable,
            Err(error) => {
                self.database_is_not_reachable(&error);
                return false;
            }
        };
        self.findings.set(ConditionType::DatabaseReachable, ConditionState::yes(Reason::Connected, ""));
        if self.database_identity.as_ref() != Some(&identity) {
            // Others have to be able to see it before anything is made.
            self.database_identity = Some(identity);
            for aspect in [ConditionType::PublicationReady, ConditionType::SlotReady] {
                self.findings.set(
                    aspect,
                    ConditionState::unknown(Reason::Registering, "which database it is was just found out"),
                );
            }
            return false;
        }
        if let Some(owner) = self.owner() {
            let what = format!(
                "{owner} is older and has slot {}: give this one another slot, or delete it",
                source.slot.name
            );
            self.findings.set(ConditionType::SlotReady, ConditionState::no(Reason::ResourceConflict, what));
            return false;
        }
        let published = self.publish(&mut database.sql, source).await;
        let publication = match &published {
            Ok(()) => ConditionState::yes(Reason::Present, ""),
            Err(error) => no(error),
        };
        self.findings.set(ConditionType::PublicationReady, publication);
        let slot = self.slot(&mut database.sql, config).await;
        let is_usable = slot.is_ok();
        self.findings.set(ConditionType::SlotReady, slot.unwrap_or_else(|error| no(&error)));
        if is_usable {
            self.check_deletion_rights(&mut database.sql, source).await;
            self.context.connections.keep(database);
        }
        published.is_ok()
    }

    /// Connects, and checks what a relay needs before anything is made; with what the database is.
    async fn usable(
        &self,
        config: &Config,
        source: &config::Source,
        secrets: &PostgresSecrets,
    ) -> Result<(Database, String), RelayError> {
        let connecting = self.connect(source, secrets);
        let mut database = self.context.metrics.request("postgres", "connect", connecting).await?;
        preconditions::check_preconditions(&mut database.sql, source).await?;
        table::check(&mut database.sql, config).await?;
        check_grants(&mut database.sql, &config.source).await?;
        let identity = sqlx::query_scalar(
            "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()",
        )
        .fetch_one(&mut database.sql)
        .await?;
        Ok((database, identity))
    }

    /// Makes sure that the publication is there and suits; marks one that is made as this resource's.
    async fn publish(&self, sql: &mut PgConnection, source: &config::Source) -> Result<(), RelayError> {
        if publication::state(sql, source).await? == PublicationState::Suitable {
            return Ok(());
        }
        let name = &source.publication.name;
        let mut transaction = sql.begin().await?;
        publication::create_if_missing(&mut transaction, source).await?;
        let mark = format!("COMMENT ON PUBLICATION {} IS {}", quote(name), quote_literal(&mark(self.relay)));
        sqlx::query(AssertSqlSafe(mark)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        self.context.publish_event(
            self.relay,
            EventType::Normal,
            "PublicationCreated",
            &format!("made publication {name}"),
        );
        Ok(())
    }

    async fn slot(&self, sql: &mut PgConnection, config: &Config) -> Result<ConditionState, RelayError> {
        let name = &config.source.slot.name;
        let slot = slot_query::state(sql, name).await?;
        let told = self.findings.holds(ConditionType::Streaming);
        self.context.metrics.slot(self.relay, slot.as_ref().filter(|_| !told));
        let lost =
            |how: &str| no(&RelayError::new(error::ErrorKind::SlotLost, format!("slot {name}: {how}")));
        Ok(match slot {
            Some(slot)
                if slot.database.as_ref().is_some_and(|database| *database != config.source.database) =>
            {
                let database = slot.database.unwrap_or_default();
                let what = format!(
                    "slot {name} belongs to database {database}: choose another name, slots are the server's"
                );
                ConditionState::no(error::ErrorKind::SlotUnsuitable, what)
            }
            Some(slot) if slot.plugin.as_deref() != Some("pgoutput") => {
                let what = format!("slot {name} has another plugin: choose another name");
                ConditionState::no(error::ErrorKind::SlotUnsuitable, what)
            }
            Some(slot) if slot.is_lost() => lost(&slot.loss_reason()),
            Some(_) => ConditionState::yes(Reason::Present, ""),
            None if slot_existed(sql, config).await? => lost(
                "it does not exist any more; rows that were committed since the checkpoint are not in a new slot's stream, and are still in the outbox table",
            ),
            None => check_slot_capacity(sql, name).await?,
        })
    }

    fn database_is_not_reachable(&mut self, error: &RelayError) {
        self.findings.set(ConditionType::DatabaseReachable, no(error));
    }
}

fn no(error: &RelayError) -> ConditionState {
    ConditionState::no(error.kind, error.to_string())
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

/// Whether the relay's checkpoint rests on a slot. A role that may not look is not told.
async fn slot_existed(sql: &mut PgConnection, config: &Config) -> Result<bool, RelayError> {
    let table = config.source.table.sibling(checkpoint::TABLE);
    let rests = "relay = $1 AND slot = $2 AND confirmed_lsn IS NOT NULL";
    let had = sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {table} WHERE {rests})")))
        .bind(&config.name)
        .bind(&config.source.slot.name)
        .fetch_one(sql)
        .await;
    match had.map_err(RelayError::from) {
        Err(error) if error.kind == error::ErrorKind::PermissionDenied => Ok(false),
        had => had,
    }
}

/// Whether the relay will find room for its slot.
async fn check_slot_capacity(sql: &mut PgConnection, slot: &str) -> Result<ConditionState, RelayError> {
    let (used, most): (i64, i64) = sqlx::query_as(
        "SELECT count(*), current_setting('max_replication_slots')::bigint FROM pg_replication_slots",
    )
    .fetch_one(sql)
    .await?;
    if used < most {
        let what = format!("the relay makes slot {slot} when it first starts");
        return Ok(ConditionState::no(Reason::WaitingForRelay, what));
    }
    let remedy = "drop one that is not read, or raise max_replication_slots";
    let what = format!("all {most} slots of the server are in use: {remedy}");
    Ok(ConditionState::no(Reason::NoFreeSlot, what))
}

/// The comment of a publication that the operator has made for `relay`: a publication of another owner is never dropped.
fn mark(relay: &OutboxRelay) -> String {
    format!("made by outbox-operator for {}", identity(relay))
}

/// Whether the operator has made a publication for `relay`.
pub(super) async fn is_own_publication(
    sql: &mut PgConnection,
    name: &str,
    relay: &OutboxRelay,
) -> Result<bool, RelayError> {
    let comment: Option<String> = sqlx::query_scalar(
        "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = $1",
    )
    .bind(name)
    .fetch_optional(sql)
    .await?
    .flatten();
    Ok(comment.is_some_and(|comment| comment == mark(relay)))
}

fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
