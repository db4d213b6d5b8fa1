//! One mapping, compiled. Its destinations do not depend on other mappings.

use std::collections::HashMap;

use super::{RefusedRows, RoutingConfig, RoutingError, RoutingInput};
use crate::event::poison::Poison;
use crate::routing::router::{InvalidRule, Router, Unroutable, partition};

/// Maximum number of cached routes: far more than there are topics, but bounded, because a regular expression may map
/// any number of values to one topic.
const MAX_ROUTES: usize = 16_384;
/// Maximum size of the cached routes, because a value may be as long as a record.
const MAX_ROUTE_BYTES: usize = 4 * 1024 * 1024;

/// A cache of topics by value of the routing column.
#[derive(Default)]
struct Routes {
    topics: HashMap<String, String>,
    bytes: usize,
}

/// A mapping with its compiled rule.
pub(super) struct CompiledRouting {
    pub(super) mapping: RoutingConfig,
    router: Router,
    routes: Routes,
}

impl CompiledRouting {
    pub(super) fn new(mapping: RoutingConfig) -> Result<CompiledRouting, InvalidRule> {
        let rule = &mapping.rule;
        let router = Router::new(&rule.routing)?.excluding(rule.dead_letter_topic.as_deref());
        Ok(CompiledRouting { mapping, router, routes: Routes::default() })
    }

    #[cfg(test)]
    pub(super) fn cached_routes(&self) -> usize {
        self.routes.topics.len()
    }

    /// The destination of a row: its topic, the partition if the topic is known, and the poison if it is a dead letter.
    pub(super) fn destination<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        refused: &RefusedRows,
    ) -> Result<(&str, Option<i32>, Option<Poison>), RoutingError> {
        let CompiledRouting { mapping, router, routes } = self;
        let (topic, poison) = match event_topic(mapping, router, routes, input, refused) {
            Ok(topic) => (topic, None),
            Err(first) => match &mapping.rule.dead_letter_topic {
                Some(topic) => match mapping.check_accepts(topic, input, refused) {
                    Ok(()) => (topic.as_str(), Some(first.into())),
                    Err(why) => {
                        let dead_letter = Box::new(why);
                        return Err(RoutingError::NoDeadLetter { first: Box::new(first), dead_letter });
                    }
                },
                None => return Err(first),
            },
        };
        let number = mapping.topics.get(topic).map(|shape| partition(input.key, shape.partitions));
        Ok((topic, number, poison))
    }
}

/// The topic of a row as an event, not as a dead letter.
fn event_topic<'m, 'a, F: Fn(&str) -> Option<&'a str>>(
    mapping: &RoutingConfig,
    router: &Router,
    routes: &'m mut Routes,
    input: &RoutingInput<'a, F>,
    refused: &RefusedRows,
) -> Result<&'m str, RoutingError> {
    let routed = route(mapping, router, routes, input);
    if let Some(poison) = input.invalid {
        let topic = routed.ok().map(Into::into);
        return Err(RoutingError::Invalid(Poison { topic, ..poison.clone() }));
    }
    let topic = routed?;
    mapping.check_size(topic, input.bytes)?;
    mapping.check_accepts(topic, input, refused)?;
    Ok(topic)
}

fn route<'m, 'a, F: Fn(&str) -> Option<&'a str>>(
    mapping: &RoutingConfig,
    router: &Router,
    routes: &'m mut Routes,
    input: &RoutingInput<'a, F>,
) -> Result<&'m str, Unroutable> {
    let value = (input.column)(&mapping.rule.routing.by_field).ok_or(Unroutable::NoValue)?;
    if !routes.topics.contains_key(value) {
        let topic = router.topic(value)?;
        routes.bytes += value.len() + topic.len();
        if routes.topics.len() >= MAX_ROUTES || routes.bytes > MAX_ROUTE_BYTES {
            *routes = Routes { bytes: value.len() + topic.len(), ..Routes::default() };
        }
        routes.topics.insert(value.to_owned(), topic);
    }
    Ok(routes.topics.get(value).map_or("", String::as_str))
}

impl RoutingConfig {
    pub(super) fn smallest_limit(&self) -> Option<usize> {
        self.topics.values().filter_map(|shape| shape.max_message_bytes).min()
    }

    /// The size of the largest record, and whether the topic's own setting defines it.
    pub(super) fn limit(&self, topic: &str) -> (usize, bool) {
        let configured = self.rule.max_message_bytes;
        let of_topic = self.topics.get(topic).and_then(|shape| shape.max_message_bytes);
        of_topic.filter(|limit| *limit < configured).map_or((configured, false), |limit| (limit, true))
    }

    pub(super) fn is_compacted(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|shape| shape.compacted)
    }

    /// Checks that a topic accepts the record, except for its size: a dead letter is truncated to the allowed size.
    fn check_accepts<F>(
        &self,
        topic: &str,
        input: &RoutingInput<'_, F>,
        refused: &RefusedRows,
    ) -> Result<(), RoutingError> {
        if !input.has_key && self.is_compacted(topic) {
            return Err(RoutingError::NoKey { topic: topic.to_owned() });
        }
        match input.position.and_then(|position| refused.cause(position, topic)) {
            None => Ok(()),
            Some(cause) => Err(RoutingError::Refused { topic: topic.to_owned(), cause: cause.to_owned() }),
        }
    }

    fn check_size(&self, topic: &str, bytes: usize) -> Result<(), RoutingError> {
        let (limit, of_topic) = self.limit(topic);
        if bytes <= limit {
            return Ok(());
        }
        let setting = if of_topic {
            format!("max.message.bytes of topic {topic}")
        } else {
            "sink.maxMessageBytes".to_owned()
        };
        Err(RoutingError::TooLarge { bytes, topic: topic.to_owned(), limit, setting })
    }
}
