//! The quick check between two reconciliations: most of the time nothing has changed, and that can be seen without requests to API
//! server and database. What the relay itself watches (connection, slot and publication) it reports in its status.

use std::time::Duration;

use kube::ResourceExt;

use super::Pass;
use super::objects;
use crate::memory::{SeenTopics, Settled};

/// How long a successful reconciliation stays valid while the quick check sees no change. What shows neither to the relay
/// nor in the lists of topics, a topic's configuration for example, is repaired within this time.
const BELIEVED: Duration = Duration::from_secs(60);

impl Pass<'_> {
    /// Whether everything is as the last reconciliation found it, as far as the quick check can see.
    pub(super) async fn unchanged(&self) -> bool {
        let remembered = self.context.memory.of(self.relay);
        let (Some(settled), Some(applied)) = (remembered.settled, remembered.applied) else { return false };
        settled.at.elapsed() < BELIEVED + self.apart()
            && settled.generation == self.relay.metadata.generation
            && Some(&settled.status) == self.relay.status.as_ref()
            && applied.touched == self.context.touched(self.relay)
            && objects::available(self.context, self.relay, None).holds == Some(true)
            && self.streaming().await.holds == Some(true)
            && self.topics_unchanged(&settled).await
    }

    async fn topics_unchanged(&self, settled: &Settled) -> bool {
        let SeenTopics::At(cluster, before) = &settled.topics else { return true };
        cluster.topics(&self.topic_names()).await.is_ok_and(|topics| topics == *before)
    }

    /// Spreads the reconciliations of resources that were created at the same time.
    fn apart(&self) -> Duration {
        let uid = self.relay.uid().unwrap_or_default();
        Duration::from_millis(uid.bytes().map(u64::from).sum::<u64>() * 61 % 15_000)
    }
}
