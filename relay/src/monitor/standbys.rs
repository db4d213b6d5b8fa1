//! Observes the standbys that `source.host` leads to, so that `/status` shows whether delivery would continue if one of
//! them were promoted. Delivery does not depend on it.

use std::time::Duration;

use crate::config::Config;
use crate::postgres::failover::Standbys;
use crate::status::Status;

/// With the time to connect, what changes on a standby shows within 10 s.
const OBSERVE_EVERY: Duration = Duration::from_secs(5);

pub async fn observe(config: Config, status: Status) {
    let mut standbys = Standbys::default();
    loop {
        // The active relay reports for both: two sets of connections would show the same.
        let seen = if status.is_standby() {
            standbys = Standbys::default();
            Vec::new()
        } else {
            // The session reports credentials that cannot be read.
            standbys.query(&config.source, status.server().as_ref()).await.unwrap_or_default()
        };
        status.set_standbys(seen);
        tokio::time::sleep(OBSERVE_EVERY).await;
    }
}
