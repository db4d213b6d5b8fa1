//! The Postgres side of a pass: whether the database can be used, the publication, and the slot as the relay has left it.

use std::time::Duration;

use super::Pass;
use crate::connections::Database;
use crate::resource::CreationPolicy;
use crate::secrets::Secrets;
use crate::status::{Aspect, Finding};
use outbox_relay::config::{self, Config};
use outbox_relay::postgres::source::{self, SlotState};
use outbox_relay::trouble::{Reason, Trouble};

/// How long all of it may take: an outage has to show within 10 s.
const WITHIN: Duration = Duration::from_secs(6);

impl Pass<'_> {
    /// Whether a relay could be started.
    pub(super) async fn database(&mut self, config: &Config, secrets: &Secrets) -> bool {
        let source = self.administrator(config, secrets);
        let looked = tokio::time::timeout(WITHIN, self.look_at_database(&source, &secrets.digest)).await;
        looked.unwrap_or_else(|_| {
            let what = format!("{} did not answer within {WITHIN:?}", source.host);
            self.database_is_not_reachable(&Trouble::new(Reason::DatabaseUnreachable, what));
            false
        })
    }

    /// The source as the administrator sees it, who makes the publication where it may be made.
    pub(super) fn administrator(&self, config: &Config, secrets: &Secrets) -> config::Source {
        let mut source = config.source.clone();
        source.publication.creation_policy = match self.relay.spec.source.postgres.publication.creation_policy
        {
            CreationPolicy::IfMissing => config::CreationPolicy::IfMissing,
            CreationPolicy::Never => config::CreationPolicy::Never,
        };
        if let Some(admin) = &secrets.postgres_admin {
            source.user.clone_from(&admin.user);
            source.password = Some(admin.password.clone());
        }
        source
    }

    async fn look_at_database(&mut self, source: &config::Source, secrets: &str) -> bool {
        let (mut database, identity) = match self.usable(source, secrets).await {
            Ok(usable) => usable,
            Err(trouble) => {
                self.database_is_not_reachable(&trouble);
                return false;
            }
        };
        self.findings.set(Aspect::DatabaseReachable, Finding::yes("Connected", ""));
        if self.database_identity.as_ref() != Some(&identity) {
            // Others have to be able to see it before anything is made. The change of the status brings about the next pass.
            self.database_identity = Some(identity);
            return false;
        }
        if let Some(rival) = self.rival() {
            let what = format!(
                "{rival} is older and has slot {}: give this one another slot, or delete it",
                source.slot.name
            );
            self.findings.set(Aspect::SlotReady, Finding::no("ResourceConflict", what));
            return false;
        }
        let published = source::ensure_publication(&mut database.sql, source).await;
        let publication = match &published {
            Ok(()) => Finding::yes("Present", ""),
            Err(trouble) => no(trouble),
        };
        self.findings.set(Aspect::PublicationReady, publication);
        match source::slot_state(&mut database.sql, &source.slot.name).await.map_err(Trouble::from) {
            Ok(slot) => {
                self.slot(&source.slot.name, slot.as_ref());
                self.context.connections.keep(database);
            }
            Err(trouble) => self.findings.set(Aspect::SlotReady, no(&trouble)),
        }
        published.is_ok()
    }

    /// Connects, and checks what a relay needs before anything is made; with what the database is.
    async fn usable(&self, source: &config::Source, secrets: &str) -> Result<(Database, String), Trouble> {
        let mut database = self.context.connections.database(source, secrets).await?;
        source::check_preconditions(&mut database.sql, source).await?;
        let identity = sqlx::query_scalar(
            "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()",
        )
        .fetch_one(&mut database.sql)
        .await?;
        Ok((database, identity))
    }

    fn slot(&mut self, name: &str, slot: Option<&SlotState>) {
        let finding = match slot {
            None => {
                Finding::no("WaitingForRelay", format!("the relay makes slot {name} when it first starts"))
            }
            Some(slot) if slot.plugin.as_deref() != Some("pgoutput") => {
                let what = format!("slot {name} has another plugin: choose another name");
                Finding::no(Reason::SlotUnsuitable.name(), what)
            }
            Some(slot) if slot.is_lost() => {
                no(&Trouble::new(Reason::SlotLost, format!("slot {name}: {}", slot.loss())))
            }
            Some(_) => Finding::yes("Present", ""),
        };
        self.findings.set(Aspect::SlotReady, finding);
    }

    fn database_is_not_reachable(&mut self, trouble: &Trouble) {
        self.findings.set(Aspect::DatabaseReachable, no(trouble));
    }
}

fn no(trouble: &Trouble) -> Finding {
    Finding::no(trouble.reason.name(), trouble.to_string())
}
