//! The quick check between two reconciliations: most of the time nothing has changed, and that can be seen without requests to API
//! server and database. What the relay itself watches (connection, slot and publication) it reports in its status.

use std::time::Duration;

use kube::ResourceExt;

use super::Pass;
use super::workload;
use crate::cache::{LastSuccess, ObservedTopics};

/// How long a successful reconciliation stays valid while the quick check sees no change. What shows neither to the relay
/// nor in the lists of topics, a topic's configuration for example, is repaired within this time.
const STEADY_STATE_TTL: Duration = Duration::from_secs(60);

impl Pass<'_> {
    /// Whether everything is as the last reconciliation found it, as far as the quick check can see.
    pub(super) async fn unchanged(&self) -> bool {
        let remembered = self.context.cache.of(self.relay);
        let (Some(last_success), Some(applied)) = (remembered.last_success, remembered.applied) else {
            return false;
        };
        last_success.at.elapsed() < STEADY_STATE_TTL + self.apart()
            && last_success.generation == self.relay.metadata.generation
            && Some(&last_success.status) == self.relay.status.as_ref()
            && applied.change_count == self.context.change_count(self.relay)
            && workload::available(self.context, self.relay, None).holds == Some(true)
            && self.streaming().await.holds == Some(true)
            && self.topics_unchanged(&last_success).await
    }

    async fn topics_unchanged(&self, last_success: &LastSuccess) -> bool {
        let ObservedTopics::At(cluster, before) = &last_success.topics else { return true };
        cluster.topics(&self.topic_names()).await.is_ok_and(|topics| topics == *before)
    }

    /// Spreads the reconciliations of resources that were created at the same time.
    fn apart(&self) -> Duration {
        let uid = self.relay.uid().unwrap_or_default();
        Duration::from_millis(uid.bytes().map(u64::from).sum::<u64>() * 61 % 15_000)
    }
}
