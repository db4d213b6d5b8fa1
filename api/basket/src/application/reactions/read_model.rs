//! Keeps what readers see in step with what is: a query never waits for a projection to catch up.

use super::{Happened, Reaction};
use crate::application::BasketView;
use crate::application::ports::Changes;

/// Writes the read model.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadModel;

impl Reaction for ReadModel {
    fn react(&self, happened: &Happened<'_>, changes: &mut Changes) -> Result<(), serde_json::Error> {
        changes.view = Some(BasketView::from(happened.basket));
        Ok(())
    }
}
