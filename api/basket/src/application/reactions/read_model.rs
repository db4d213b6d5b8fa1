//! Keeps what readers see in step with what is: a query never waits for a projection to catch up.

use super::Reaction;
use crate::application::ports::{BoxFuture, PortError, UnitOfWork};
use crate::application::{BasketView, Cause};
use crate::domain::{Basket, DomainEvent};

/// Writes the read model.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadModel;

impl Reaction for ReadModel {
    fn react<'a>(
        &'a self,
        _event: &'a DomainEvent,
        basket: &'a Basket,
        _cause: &'a Cause,
        work: &'a mut dyn UnitOfWork,
    ) -> BoxFuture<'a, Result<(), PortError>> {
        Box::pin(async move { work.project(&BasketView::from(basket)).await })
    }
}
