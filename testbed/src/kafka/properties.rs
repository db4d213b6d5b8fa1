//! What a broker is told at its start.

use std::path::Path;

use super::{KafkaOptions, Security};

/// Where a broker listens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ports {
    pub(super) clients: u16,
    pub(super) controller: u16,
    /// Behind the proxy, and the proxy's own.
    pub(super) proxied: Option<(u16, u16)>,
    /// The listener that demands proof.
    pub(super) secure: Option<u16>,
}

/// `server.properties` of one broker.
pub(super) fn properties(options: &KafkaOptions, index: usize, ports: &[Ports], folder: &Path) -> String {
    let node = index + 1;
    let Ports { clients, controller, proxied, secure } = ports.get(index).copied().unwrap_or_default();
    let (mut listener, mut advertised) = match proxied {
        Some((target, proxy)) => {
            (format!(",PROXIED://127.0.0.1:{target}"), format!(",PROXIED://127.0.0.1:{proxy}"))
        }
        None => (String::new(), String::new()),
    };
    if let Some(port) = secure {
        listener.push_str(&format!(",SECURE://127.0.0.1:{port}"));
        advertised.push_str(&format!(",SECURE://localhost:{port}"));
    }
    let protocol = options.security.as_ref().map_or("PLAINTEXT", Security::protocol);
    let replicas = options.brokers.min(3);
    let in_sync = if options.brokers >= 3 { 2 } else { 1 };
    let voters: Vec<String> = ports
        .iter()
        .enumerate()
        .map(|(other, its)| format!("{}@127.0.0.1:{}", other + 1, its.controller))
        .collect();
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id={node}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}{listener}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{clients}{advertised}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SECURE:{protocol},CONTROLLER:PLAINTEXT\n\
         controller.quorum.voters={}\n\
         log.dirs={}\n\
         auto.create.topics.enable={}\n\
         default.replication.factor={replicas}\n\
         min.insync.replicas={in_sync}\n\
         offsets.topic.num.partitions=1\n\
         offsets.topic.replication.factor={replicas}\n\
         transaction.state.log.num.partitions=1\n\
         transaction.state.log.replication.factor={replicas}\n\
         transaction.state.log.min.isr={in_sync}\n\
         share.coordinator.state.topic.num.partitions=1\n\
         share.coordinator.state.topic.replication.factor={replicas}\n\
         share.coordinator.state.topic.min.isr={in_sync}\n\
         group.initial.rebalance.delay.ms=0\n\
         num.network.threads=2\n\
         num.io.threads=2\n\
         broker.session.timeout.ms=3000\n\
         broker.heartbeat.interval.ms=500\n\
         log.cleaner.dedupe.buffer.size=4194304\n",
        voters.join(","),
        folder.join("data").display(),
        options.auto_create_topics,
    );
    text.extend(options.settings.iter().map(|(name, value)| format!("{name}={value}\n")));
    text
}
