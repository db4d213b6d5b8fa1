//! The server as a session finds it, and the decision that follows from it.

use pg_replication::{Client, EndLsn, Host, TimelineHistory};
use sqlx::postgres::PgConnection;

use super::decision::{StartDecision, StartInputs, decide};
use crate::config::Config;
use crate::error::RelayError;
use crate::postgres::checkpoint::{self, Checkpoint, ClusterTimeline};
use crate::postgres::slot;

/// The server, as the replication connection describes it.
pub(super) struct ServerInfo {
    pub(super) system_identifier: u64,
    pub(super) timelines: TimelineHistory,
    /// The position this process had confirmed when it last streamed.
    pub(super) reached: Option<(ClusterTimeline, EndLsn)>,
    pub(super) address: Host,
}

impl ServerInfo {
    pub(super) async fn identify(
        client: &mut Client,
        address: Host,
        reached: Option<(ClusterTimeline, EndLsn)>,
    ) -> Result<ServerInfo, RelayError> {
        let identity = client.identify_system().await?;
        let timelines = client.timeline_history(identity.timeline).await?;
        Ok(ServerInfo { system_identifier: identity.system_id, timelines, reached, address })
    }

    pub(super) fn history(&self) -> ClusterTimeline {
        ClusterTimeline { system_identifier: self.system_identifier, timeline: self.timelines.timeline() }
    }
}

/// A decision and the checkpoint it is based on.
pub(super) struct Decided {
    pub(super) decision: StartDecision,
    pub(super) checkpoint: Option<Checkpoint>,
}

pub(super) async fn decide_now(
    sql: &mut PgConnection,
    config: &Config,
    server: &ServerInfo,
) -> Result<Decided, RelayError> {
    // Read the slot before the checkpoint: another relay may be advancing both, and in this order the slot is never
    // seen ahead of the checkpoint.
    let slot = slot::state(sql, &config.source.slot.name).await?;
    let checkpoint = checkpoint::load(sql, config).await?;
    let decision = decide(&StartInputs {
        system_identifier: server.system_identifier,
        timelines: &server.timelines,
        flush: slot::flush_lsn(sql).await?,
        reached: server.reached,
        source: &config.source,
        checkpoint: checkpoint.as_ref(),
        slot: slot.as_ref(),
    })?;
    Ok(Decided { decision, checkpoint })
}
