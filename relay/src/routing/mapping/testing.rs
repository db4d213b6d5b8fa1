//! Routing in tests, which name topics.

use std::collections::BTreeMap;

use pg_replication::EndLsn;

use super::{
    CurrentDestination, Destination, EarlierDestination, RoutingHistory, RoutingInput, RoutingTable,
    TopicShape,
};
use crate::event::poison::Poison;
use crate::routing::error::RoutingError;
use crate::testing;
use crate::topics::registry::TopicRegistry;

/// A routing table with its registry, for tests that name topics.
pub struct RoutedTopics {
    pub table: RoutingTable,
    pub registry: TopicRegistry,
}

impl RoutedTopics {
    pub fn new(history: RoutingHistory) -> RoutedTopics {
        let mut registry = TopicRegistry::default();
        RoutedTopics { table: RoutingTable::new(&history, &mut registry).unwrap(), registry }
    }

    /// The destination of a row of the transaction with this commit LSN.
    pub fn destination<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        commit: u64,
    ) -> Result<CurrentDestination, RoutingError> {
        match self.table.earlier_destination(input, testing::commit(commit), &self.registry) {
            Some(EarlierDestination::Kept(found) | EarlierDestination::Superseded(found)) => {
                Ok(CurrentDestination::Partition(found))
            }
            None => self.table.current_destination(input, &self.registry),
        }
    }

    /// Its topic, and the poison if it goes there as a dead letter.
    pub fn topic<'a, F: Fn(&str) -> Option<&'a str>>(
        &mut self,
        input: &RoutingInput<'a, F>,
        commit: u64,
    ) -> Result<(String, Option<Poison>), RoutingError> {
        Ok(match self.destination(input, commit)? {
            CurrentDestination::Partition(Destination { topic, poison, .. }) => {
                (self.registry.topic(topic).name.clone(), poison)
            }
            CurrentDestination::NewTopic(topic) => (format!("{topic}, new"), None),
        })
    }

    pub fn add_topic(&mut self, name: &str, shape: TopicShape) {
        let topic = self.registry.add(name, shape.partitions, &BTreeMap::new());
        self.table.add_topic(topic, shape);
    }

    pub fn change_topic(&mut self, name: &str, shape: TopicShape, until: EndLsn) {
        let topic = self.registry.find(name).unwrap();
        self.table.change_topics(&BTreeMap::from([(topic, shape)]), until).unwrap();
    }
}
