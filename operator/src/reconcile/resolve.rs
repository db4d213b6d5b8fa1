//! The first step: what the resource refers to, other operators' resources and Secrets, read for each side apart. What cannot be used keeps
//! only its own side from being checked; a specification that has no meaning keeps both.

use std::sync::Arc;

use outbox_relay::config::{Config, Sink};
use serde_json::Value;

use super::{Context, ReconcileError};
use crate::conditions::{ConditionState, Outlook, Reason};
use crate::desired::configuration::configuration;
use crate::desired::naming;
use crate::desired::pod::{self, PodDefaults, UserIds};
use crate::digest::ConfigurationDigest;
use crate::references::{self, LookError, ReferenceError, Summary};
use crate::resource::{KafkaSink, OutboxRelay, PostgresSource};
use crate::secrets::{self, KafkaSecrets, PostgresSecrets, ReadError, SecretError, Values};

/// What the resource refers to.
pub(super) struct Resolution {
    /// The resource without references to other operators' resources.
    pub(super) relay: OutboxRelay,
    pub(super) source: Result<ResolvedSource, Unresolved>,
    pub(super) sink: Result<ResolvedSink, Unresolved>,
    /// What the references lead to.
    summary: String,
}

/// What the PostgreSQL side needs.
pub(super) struct ResolvedSource {
    /// The relay's configuration, which has the role's name.
    pub(super) config: Config,
    pub(super) secrets: PostgresSecrets,
}

/// What the Kafka side needs.
pub(super) struct ResolvedSink {
    pub(super) sink: Sink,
    pub(super) secrets: KafkaSecrets,
}

impl Resolution {
    /// Whether both sides can be used.
    pub(super) fn is_complete(&self) -> bool {
        self.source.is_ok() && self.sink.is_ok()
    }

    /// The reason is that of the first problem that needs a person, or else of the first.
    pub(super) fn condition(&self) -> ConditionState {
        let problems = [self.source.as_ref().err(), self.sink.as_ref().err()];
        let problems: Vec<&Unresolved> = problems.into_iter().flatten().collect();
        let needs_action = |problem: &&&Unresolved| problem.reason().outlook() == Outlook::NeedsAction;
        match problems.iter().find(needs_action).or(problems.first()) {
            None => ConditionState::yes(Reason::Resolved, &self.summary),
            Some(first) => {
                let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
                ConditionState::no(first.reason(), all.join("; "))
            }
        }
    }
}

/// Why there is no [`Resolution`].
pub(super) enum ResolveError {
    /// The API server did not return what the resource refers to, which says nothing about it: no condition changes.
    Unavailable(ReconcileError),
    /// The specification has no meaning, whatever the references lead to.
    Invalid(String),
}

/// Why one side cannot be checked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unresolved {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Unresolved {
    fn reason(&self) -> Reason {
        match self {
            Unresolved::Reference(ReferenceError::Unusable(_)) => Reason::ReferenceUnusable,
            Unresolved::Reference(ReferenceError::NotReady(_)) => Reason::ReferenceNotReady,
            Unresolved::Secret(_) => Reason::SecretUnusable,
        }
    }
}

/// Why one side was not read. An API server that does not answer says nothing about what was to be read: no condition changes.
#[derive(Debug, thiserror::Error)]
pub(super) enum SideError {
    #[error(transparent)]
    Unresolved(Unresolved),
    #[error(transparent)]
    Unavailable(ReconcileError),
}

impl From<LookError> for SideError {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Unusable(problem) => SideError::Unresolved(problem.into()),
            LookError::Unavailable { .. } => SideError::Unavailable(ReconcileError::Reference(error)),
        }
    }
}

impl From<ReadError> for SideError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unusable(problem) => SideError::Unresolved(problem.into()),
            ReadError::Unavailable { .. } => SideError::Unavailable(ReconcileError::Secret(error)),
        }
    }
}

/// Reads what both sides refer to, and checks the specification.
pub(super) async fn resolve(relay: &OutboxRelay, context: &Context) -> Result<Resolution, ResolveError> {
    let mut readers = Readers::new(relay, context);
    let source = unresolved(readers.postgres().await);
    let sink = unresolved(readers.kafka().await);
    let used = readers.into_used();
    let (source, sink) = (source?, sink?);
    if source.is_ok() && sink.is_ok() {
        // Those that are not referenced any more are forgotten.
        context.cache.with(relay, |cached| cached.secrets = Some(Arc::new(used)));
    } else {
        remember(relay, context, used);
    }
    validate(relay, context.defaults.pod_template.as_ref(), source, sink)
}

/// Adds what was read to what was read before.
pub(super) fn remember(relay: &OutboxRelay, context: &Context, used: Values) {
    context.cache.with(relay, |cached| Arc::make_mut(cached.secrets.get_or_insert_default()).extend(used));
}

/// Separates what is wrong with a side from an API server that did not answer.
fn unresolved<T>(read: Result<T, SideError>) -> Result<Result<T, Unresolved>, ResolveError> {
    match read {
        Ok(side) => Ok(Ok(side)),
        Err(SideError::Unresolved(problem)) => Ok(Err(problem)),
        Err(SideError::Unavailable(error)) => Err(ResolveError::Unavailable(error)),
    }
}

/// Stands for the name of a role whose Secret cannot be used, so that the rest of the specification is checked all the same.
const UNKNOWN_USER: &str = "unknown";

type Read<T, S> = Result<(T, S), Unresolved>;

fn validate(
    relay: &OutboxRelay,
    template: Option<&Value>,
    source: Read<PostgresSource, PostgresSecrets>,
    sink: Read<KafkaSink, KafkaSecrets>,
) -> Result<Resolution, ResolveError> {
    let (postgres, kafka) = (source.as_ref().ok(), sink.as_ref().ok());
    let (postgres, kafka) = (postgres.map(|(postgres, _)| postgres), kafka.map(|(kafka, _)| kafka));
    let summary = Summary { relay, postgres, kafka }.to_string();
    let resolved = without_references(relay, postgres.cloned(), kafka.cloned());
    let user = source.as_ref().map_or(UNKNOWN_USER, |(_, secrets)| secrets.user.as_str());
    let config = check(&resolved, user, template).map_err(ResolveError::Invalid)?;
    let sink = sink.map(|(_, secrets)| ResolvedSink { sink: config.sink.clone(), secrets });
    let source = source.map(|(_, secrets)| ResolvedSource { config, secrets });
    Ok(Resolution { relay: resolved, source, sink, summary })
}

/// The resource with the fields that its references stand for. A side that could not be read gets names that lead nowhere, so that the
/// fields of the other side can be checked; nothing is connected to with them.
pub(super) fn without_references(
    relay: &OutboxRelay,
    postgres: Option<PostgresSource>,
    kafka: Option<KafkaSink>,
) -> OutboxRelay {
    let mut relay = relay.clone();
    match postgres {
        Some(postgres) => relay.spec.source.postgres = postgres,
        None => {
            let postgres = &mut relay.spec.source.postgres;
            postgres.host.get_or_insert_with(|| "unresolved.invalid".to_owned());
            postgres.database.get_or_insert_with(|| "unresolved".to_owned());
        }
    }
    match kafka {
        Some(kafka) => relay.spec.sink.kafka = kafka,
        None => {
            let kafka = &mut relay.spec.sink.kafka;
            kafka.bootstrap_servers.get_or_insert_with(|| "unresolved.invalid:9092".to_owned());
        }
    }
    relay
}

/// The relay's configuration, where nothing is wrong with it, with the resource's name or with the pods, which `template` is laid under.
fn check(relay: &OutboxRelay, user: &str, template: Option<&Value>) -> Result<Config, String> {
    let config = configuration(relay, user).map_err(|invalid| invalid.to_string())?;
    naming::check(relay)?;
    config.check().map_err(|invalid| invalid.to_string())?;
    let defaults = PodDefaults { image: "", user_ids: UserIds::Fixed, template };
    pod::template(relay, defaults, &ConfigurationDigest::of([])).map_err(|invalid| invalid.to_string())?;
    Ok(config)
}

/// Reads other operators' resources and Secrets for one reconciliation. While the resource is being deleted, what is gone is as it was when it
/// was read last: in a namespace that is being deleted, both may go first.
pub(super) struct Readers<'a> {
    relay: &'a OutboxRelay,
    context: &'a Context,
    references: references::Reader<'a>,
    secrets: secrets::Reader<'a>,
}

impl<'a> Readers<'a> {
    pub(super) fn new(relay: &'a OutboxRelay, context: &'a Context) -> Readers<'a> {
        let is_ending = relay.metadata.deletion_timestamp.is_some();
        let before = context.cache.of(relay).secrets.filter(|_| is_ending);
        Readers {
            relay,
            context,
            references: references::Reader::new(&context.client, &context.metrics),
            secrets: secrets::Reader::new(context.namespaced(relay), &context.metrics, before),
        }
    }

    pub(super) async fn postgres(&mut self) -> Result<(PostgresSource, PostgresSecrets), SideError> {
        let read = references::postgres(self.relay, &self.references).await;
        let read = self.or_as_before(read, |cached| &mut cached.postgres)?;
        let secrets = PostgresSecrets::read(&mut self.secrets, &read).await?;
        Ok((read, secrets))
    }

    pub(super) async fn kafka(&mut self) -> Result<(KafkaSink, KafkaSecrets), SideError> {
        let read = references::kafka(self.relay, &self.references).await;
        let read = self.or_as_before(read, |cached| &mut cached.kafka)?;
        let secrets = KafkaSecrets::read(&mut self.secrets, &read).await?;
        Ok((read, secrets))
    }

    fn or_as_before<T: Clone>(
        &self,
        read: Result<T, LookError>,
        place: fn(&mut references::LastRead) -> &mut Option<Arc<T>>,
    ) -> Result<T, LookError> {
        self.context.cache.with(self.relay, |cached| {
            let before = place(&mut cached.references);
            match (read, &before) {
                (Ok(side), _) => {
                    *before = Some(Arc::new(side.clone()));
                    Ok(side)
                }
                (Err(LookError::Unusable(_)), Some(known))
                    if self.relay.metadata.deletion_timestamp.is_some() =>
                {
                    Ok(T::clone(known))
                }
                (Err(error), _) => Err(error),
            }
        })
    }

    /// The values of Secrets that were read, and no others.
    pub(super) fn into_used(self) -> Values {
        self.secrets.into_used()
    }
}
