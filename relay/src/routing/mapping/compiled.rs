//! One mapping, compiled. Its destinations do not depend on other mappings.

use std::collections::{BTreeMap, HashMap};

use super::stored::smallest_limit;
use super::{RefusedRows, RoutingConfig, RoutingError, RoutingInput, TopicShape};
use crate::event::poison::Poison;
use crate::routing::router::{InvalidRule, Router, Unroutable};
use crate::routing::rule::Rule;
use crate::topics::registry::{TopicId, TopicRegistry};

/// Maximum number of cached routes: far more than there are topics, but bounded, because a regular expression may map
/// any number of values to one topic.
const MAX_ROUTES: usize = 16_384;
/// Maximum size of the cached routes, because a value may be as long as a record.
const MAX_ROUTE_BYTES: usize = 4 * 1024 * 1024;

/// The topic of a row.
pub(super) enum Route {
    Known(TopicId, TopicShape),
    /// A topic that is not part of the mapping.
    New(String),
}

impl Route {
    fn name<'a>(&'a self, topics: &'a TopicRegistry) -> &'a str {
        match self {
            Route::Known(topic, _) => &topics.topic(*topic).name,
            Route::New(name) => name,
        }
    }
}

/// A cache of topics by value of the routing column.
#[derive(Default)]
struct CachedRoutes {
    topics: HashMap<String, TopicId>,
    bytes: usize,
}

impl CachedRoutes {
    fn insert(&mut self, value: &str, topic: TopicId) {
        self.bytes += value.len();
        if self.topics.len() >= MAX_ROUTES || self.bytes > MAX_ROUTE_BYTES {
            *self = CachedRoutes { bytes: value.len(), ..CachedRoutes::default() };
        }
        self.topics.insert(value.to_owned(), topic);
    }
}

/// A mapping with its compiled rule.
pub(super) struct CompiledRouting {
    pub(super) rule: Rule,
    /// Topics that records may have been sent to.
    pub(super) topics: BTreeMap<TopicId, TopicShape>,
    router: Router,
    cached: CachedRoutes,
}

impl CompiledRouting {
    pub(super) fn new(
        rule: Rule,
        topics: BTreeMap<TopicId, TopicShape>,
    ) -> Result<CompiledRouting, InvalidRule> {
        let router = Router::new(&rule.routing)?.excluding(rule.dead_letter_topic.as_deref());
        Ok(CompiledRouting { rule, topics, router, cached: CachedRoutes::default() })
    }

    /// The mapping to store.
    pub(super) fn to_config(&self, registry: &TopicRegistry) -> RoutingConfig {
        let named = self.topics.iter().map(|(topic, shape)| (registry.topic(*topic).name.clone(), *shape));
        RoutingConfig { rule: self.rule.clone(), topics: named.collect() }
    }

    #[cfg(test)]
    pub(super) fn cached_routes(&self) -> usize {
        self.cached.topics.len()
    }

    /// The topic of a row, and the poison if the row goes there as a dead letter.
    pub(super) fn route<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        refused: &RefusedRows,
        registry: &TopicRegistry,
    ) -> Result<(Route, Option<Poison>), RoutingError> {
        let first = match self.event_topic(input, refused, registry) {
            Ok(route) => return Ok((route, None)),
            Err(first) => first,
        };
        let Some(name) = &self.rule.dead_letter_topic else { return Err(first) };
        let route = self.named(name.clone(), registry);
        match Self::check_accepts(&route, input, refused, registry) {
            Ok(()) => Ok((route, Some(first.into()))),
            Err(why) => {
                let dead_letter = Box::new(why);
                Err(RoutingError::NoDeadLetter { first: Box::new(first), dead_letter })
            }
        }
    }

    /// The topic of a row as an event, not as a dead letter.
    fn event_topic<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        refused: &RefusedRows,
        registry: &TopicRegistry,
    ) -> Result<Route, RoutingError> {
        let routed = self.rule_topic(input, registry);
        if let Some(poison) = input.invalid {
            let topic = routed.ok().map(|route| route.name(registry).into());
            return Err(RoutingError::Invalid(Poison { topic, ..poison.clone() }));
        }
        let route = routed?;
        self.check_size(&route, input.bytes, registry)?;
        Self::check_accepts(&route, input, refused, registry)?;
        Ok(route)
    }

    /// The routing rule's topic. Only a topic of the mapping is cached, because rows of another one wait.
    fn rule_topic<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        registry: &TopicRegistry,
    ) -> Result<Route, Unroutable> {
        let value = (input.column)(&self.rule.routing.by_field).ok_or(Unroutable::NoValue)?;
        if let Some(topic) = self.cached.topics.get(value)
            && let Some(shape) = self.topics.get(topic)
        {
            return Ok(Route::Known(*topic, *shape));
        }
        let route = self.named(self.router.topic(value)?, registry);
        if let Route::Known(topic, _) = route {
            self.cached.insert(value, topic);
        }
        Ok(route)
    }

    fn named(&self, name: String, registry: &TopicRegistry) -> Route {
        let known = registry.find(&name).and_then(|topic| Some((topic, *self.topics.get(&topic)?)));
        known.map_or(Route::New(name), |(topic, shape)| Route::Known(topic, shape))
    }

    pub(super) fn smallest_limit(&self) -> Option<usize> {
        smallest_limit(&self.topics)
    }

    /// The size of the largest record that a topic accepts.
    pub(super) fn limit(&self, topic: TopicId) -> usize {
        let shape = self.topics.get(&topic);
        shape.and_then(|shape| self.own_limit(*shape)).unwrap_or(self.rule.max_message_bytes)
    }

    /// The topic's own limit, if that is below the configured one.
    fn own_limit(&self, shape: TopicShape) -> Option<usize> {
        shape.max_message_bytes.filter(|limit| *limit < self.rule.max_message_bytes)
    }

    /// Whether a topic accepts a record of this size, with or without a key.
    pub(super) fn accepts(&self, topic: TopicId, bytes: usize, has_key: bool) -> bool {
        let is_compacted = self.topics.get(&topic).is_some_and(|shape| shape.compacted);
        bytes <= self.limit(topic) && (has_key || !is_compacted)
    }

    /// Checks that a topic accepts the record, except for its size: a dead letter is truncated to the allowed size.
    fn check_accepts<F>(
        route: &Route,
        input: &RoutingInput<'_, F>,
        refused: &RefusedRows,
        registry: &TopicRegistry,
    ) -> Result<(), RoutingError> {
        let name = route.name(registry);
        if !input.has_key && matches!(route, Route::Known(_, TopicShape { compacted: true, .. })) {
            return Err(RoutingError::NoKey { topic: name.to_owned() });
        }
        match input.position.and_then(|position| refused.cause(position, name)) {
            None => Ok(()),
            Some(cause) => Err(RoutingError::Refused { topic: name.to_owned(), cause: cause.to_owned() }),
        }
    }

    fn check_size(&self, route: &Route, bytes: usize, registry: &TopicRegistry) -> Result<(), RoutingError> {
        let own = match route {
            Route::Known(_, shape) => self.own_limit(*shape),
            Route::New(_) => None,
        };
        let limit = own.unwrap_or(self.rule.max_message_bytes);
        if bytes <= limit {
            return Ok(());
        }
        let topic = route.name(registry).to_owned();
        let setting = match own {
            Some(_) => format!("max.message.bytes of topic {topic}"),
            None => "sink.maxMessageBytes".to_owned(),
        };
        Err(RoutingError::TooLarge { bytes, topic, limit, setting })
    }
}
