//! The events that Kafka has already of the rows of a refill. Until they are known no row is delivered.

use super::Broker;
use super::in_flight::InFlight;
use crate::error::RefillCause;
use crate::kafka::evidence::DeliveredEvents;
use crate::kafka::query::Query;
use crate::postgres::checkpoint::RefillScope;
use crate::progress::offset::Offset;
use crate::topics::registry::PartitionName;

pub(super) struct Refill {
    scope: RefillScope,
    evidence: Evidence,
}

enum Evidence {
    /// No row was read yet: without a missing row no evidence is needed.
    NotRequested,
    Requested,
    Known(DeliveredEvents),
}

impl Refill {
    pub(super) fn new(scope: RefillScope) -> Refill {
        Refill { scope, evidence: Evidence::NotRequested }
    }

    pub(super) fn cause(&self) -> RefillCause {
        self.scope.cause
    }

    /// The events that Kafka has already; `None` until they are known.
    pub(super) fn delivered<B: Broker>(&mut self, in_flight: &InFlight<B>) -> Option<&DeliveredEvents> {
        if let Evidence::NotRequested = self.evidence {
            let before = in_flight.progress.before_start();
            in_flight.broker.query(Query::Evidence { starts: &self.scope.starts, before });
            self.evidence = Evidence::Requested;
        }
        match &self.evidence {
            Evidence::Known(delivered) => Some(delivered),
            Evidence::NotRequested | Evidence::Requested => None,
        }
    }

    /// Whether a record of this outbox at `offset` was appended after the evidence had been read.
    pub(super) fn misses(&self, partition: PartitionName<'_>, offset: Option<Offset>) -> bool {
        match (&self.evidence, offset) {
            (Evidence::Known(delivered), Some(offset)) => delivered.misses(partition, offset),
            _ => false,
        }
    }

    pub(super) fn on_evidence(&mut self, delivered: DeliveredEvents) {
        tracing::info!(
            events = delivered.count(),
            "read which of the rows from before the slot Kafka has already"
        );
        self.evidence = Evidence::Known(delivered);
    }
}
