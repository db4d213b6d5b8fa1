//! Whether what the deletion policies say could be done now. It is said while the resource lives: a right that is missing when the
//! resource is deleted would keep it until the operator gives up.

use outbox_relay::config;
use outbox_relay::error::RelayError;
use outbox_relay::postgres::grants;
use sqlx::postgres::PgConnection;

use super::Pass;
use super::cleanup;
use super::source::is_own_publication;
use crate::conditions::ConditionType;
use crate::events::EventType;
use crate::resource::Condition;

impl Pass<'_> {
    /// Adds to the conditions which rights are missing, and tells of it once. `source` has the role that will delete. Delivery needs none
    /// of it, so no condition turns False.
    pub(super) async fn check_deletion_rights(&mut self, sql: &mut PgConnection, source: &config::Source) {
        for (aspect, missing) in [
            (ConditionType::SlotReady, self.missing_for_slot(sql, source).await),
            (ConditionType::PublicationReady, self.missing_for_publication(sql, source).await),
        ] {
            match missing {
                Ok(None) => {
                    self.context.cache.with(self.relay, |cached| cached.missing_rights.remove(&aspect));
                }
                Ok(Some(grant)) => self.report_missing(aspect, &not_permitted(source, &grant)),
                Err(error) => tracing::debug!(%error, "rights for the deletion were not looked at"),
            }
        }
    }

    async fn missing_for_slot(
        &self,
        sql: &mut PgConnection,
        source: &config::Source,
    ) -> Result<Option<String>, RelayError> {
        if !cleanup::deletes_slot(&self.relay.spec) {
            return Ok(None);
        }
        grants::to_drop_slot(sql, source, &source.user).await
    }

    async fn missing_for_publication(
        &self,
        sql: &mut PgConnection,
        source: &config::Source,
    ) -> Result<Option<String>, RelayError> {
        let name = &source.publication.name;
        if !cleanup::deletes_publication(&self.relay.spec)
            || !is_own_publication(sql, name, self.relay).await?
        {
            return Ok(None);
        }
        grants::to_drop_publication(sql, name, &source.user).await
    }

    fn report_missing(&mut self, aspect: ConditionType, note: &str) {
        // By this process, which may not see its last status yet, or by one before it.
        let told = self
            .context
            .cache
            .with(self.relay, |cached| cached.missing_rights.insert(aspect, note.to_owned()));
        let type_ = aspect.to_string();
        let is_said = |before: &Condition| before.type_ == type_ && before.message.contains(note);
        let said = self.relay.status.iter().flat_map(|status| &status.conditions).any(is_said);
        if told.as_deref() != Some(note) && !said {
            self.context.publish_event(self.relay, EventType::Warning, "DeletionNotPermitted", note);
        }
        self.findings.add(aspect, note);
    }
}

/// Which role lacks what, and what to do.
pub(super) fn not_permitted(source: &config::Source, grant: &str) -> String {
    let (role, database) = (&source.user, &source.database);
    format!(
        "role {role} lacks rights for deletionPolicy Delete; run in database {database}: {grant}; or name a role that has them in \
         adminCredentialsSecretRef, or set the policy to Retain"
    )
}
