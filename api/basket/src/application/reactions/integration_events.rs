//! Tells other services: each domain event becomes an integration event in the outbox.

use super::Reaction;
use crate::application::Cause;
use crate::application::integration::IntegrationEvent;
use crate::application::ports::{BoxFuture, PortError, UnitOfWork};
use crate::domain::{Basket, DomainEvent};

/// Writes integration events.
#[derive(Clone, Copy, Debug, Default)]
pub struct IntegrationEvents;

impl Reaction for IntegrationEvents {
    fn react<'a>(
        &'a self,
        event: &'a DomainEvent,
        basket: &'a Basket,
        cause: &'a Cause,
        work: &'a mut dyn UnitOfWork,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            let event =
                IntegrationEvent::of(event, basket).map_err(|error| PortError::Failed(error.into()))?;
            work.publish(&event, cause).await
        })
    }
}
