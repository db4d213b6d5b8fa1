//! The cheap look between two passes: most of the time nothing has changed, and that can be seen without asking API server and
//! database for anything. What the relay itself watches, connection, slot and publication, it tells.

use std::time::Duration;

use kube::ResourceExt;

use super::Pass;
use super::objects;
use crate::memory::Settled;

/// So long a pass that found everything well is believed where a glance sees no change. What shows neither to the relay
/// nor in the lists of topics, a topic's configuration for example, is repaired within this time.
const BELIEVED: Duration = Duration::from_secs(60);

impl Pass<'_> {
    /// Whether everything still is as the last pass has found it, as far as can be seen at a glance.
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
        settled.cluster.topics(&self.topic_names()).await.is_ok_and(|topics| topics == settled.topics)
    }

    /// Resources that were made at once are not looked at at once for ever.
    fn apart(&self) -> Duration {
        let uid = self.relay.uid().unwrap_or_default();
        Duration::from_millis(uid.bytes().map(u64::from).sum::<u64>() * 61 % 15_000)
    }
}
