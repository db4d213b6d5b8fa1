//! Tells other services: each domain event becomes an integration event in the outbox.

use super::{Happened, Reaction};
use crate::application::integration_events::IntegrationEvent;
use crate::application::ports::Changes;

/// Writes integration events.
#[derive(Clone, Copy, Debug, Default)]
pub struct IntegrationEvents;

impl Reaction for IntegrationEvents {
    fn react(&self, happened: &Happened<'_>, changes: &mut Changes) -> Result<(), serde_json::Error> {
        changes.events.push(IntegrationEvent::of(happened.event, happened.basket)?);
        Ok(())
    }
}
