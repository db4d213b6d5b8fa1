//! The configuration that pods have now. Where a server cannot be used, pods that run must not be sent to it: a change of the specification
//! that names it waits, and every other change of the workload is carried out.

use k8s_openapi::api::core::v1::ConfigMap;
use outbox_relay::config::Config;
use serde_json::json;

use super::Context;
use super::side::Unusable;
use super::workload::is_owned;
use crate::desired::configuration_file::ConfigurationFile;
use crate::desired::naming::object_name;
use crate::resource::OutboxRelay;

/// What has to be usable before the objects are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Both servers: the objects are not there, and are not made before.
    Both,
    /// The database that the specification leads to now.
    Source,
    /// The Kafka cluster that the specification leads to now.
    Sink,
}

impl Wait {
    /// For the condition of an existing workload.
    pub(super) fn note(self) -> Option<&'static str> {
        match self {
            Wait::Both => None,
            Wait::Source => Some(
                "spec.source differs from what the pods have: they stay as they are until the database that it names can be used",
            ),
            Wait::Sink => Some(
                "spec.sink differs from what the pods have: they stay as they are until the Kafka cluster that it names can be used",
            ),
        }
    }
}

/// Whether applying `config` has to wait.
pub(super) async fn wait(
    context: &Context,
    relay: &OutboxRelay,
    config: &Config,
    unusable: Unusable,
) -> Result<Option<Wait>, kube::Error> {
    if !unusable.source && !unusable.sink {
        return Ok(None);
    }
    let (name, api) = (object_name(relay), context.namespaced::<ConfigMap>(relay));
    let applied = context.metrics.kubernetes("get", api.get_opt(&name)).await?;
    Ok(match applied.filter(|applied| is_owned(&applied.metadata, relay)) {
        None => Some(Wait::Both),
        Some(applied) => decide(ConfigurationFile::read(&applied).as_ref(), config, unusable),
    })
}

/// `applied` is `None` where another version of the operator wrote it, and this one cannot read it.
fn decide(applied: Option<&Config>, wanted: &Config, unusable: Unusable) -> Option<Wait> {
    let is_source_kept = applied.is_some_and(|applied| json!(applied.source) == json!(wanted.source));
    let is_sink_kept = applied.is_some_and(|applied| json!(applied.sink) == json!(wanted.sink));
    match unusable {
        Unusable { source: true, .. } if !is_source_kept => Some(Wait::Source),
        Unusable { sink: true, .. } if !is_sink_kept => Some(Wait::Sink),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(host: &str, servers: &str) -> Config {
        serde_json::from_value(json!({
            "version": 1, "name": "n",
            "source": {"host": host, "database": "d", "user": "u", "publication": {"name": "p"}, "slot": {"name": "s"}},
            "sink": {"bootstrapServers": servers},
        }))
        .unwrap()
    }

    #[test]
    fn a_change_waits_for_the_server_that_it_leads_to_and_for_no_other() {
        let (source, sink) = (Unusable { source: true, sink: false }, Unusable { source: false, sink: true });
        let applied = config("a", "k");
        let verdict = |wanted: Config, unusable| decide(Some(&applied), &wanted, unusable);
        for unusable in [source, sink, Unusable { source: true, sink: true }] {
            assert_eq!(verdict(config("a", "k"), unusable), None, "nothing leads elsewhere");
            assert!(decide(None, &applied, unusable).is_some(), "what cannot be read may lead elsewhere");
        }
        assert_eq!(verdict(config("b", "k"), source), Some(Wait::Source));
        assert_eq!(verdict(config("b", "k"), sink), None, "the other database can be used");
        assert_eq!(verdict(config("a", "l"), sink), Some(Wait::Sink));
        assert_eq!(verdict(config("a", "l"), source), None, "the other cluster can be used");
    }
}
