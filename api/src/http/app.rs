//! What the handlers share.

use std::sync::Arc;
use std::time::Duration;

use basket::application::Dispatch;
use basket::application::queries::{BasketQueries, CommandQueries};

use super::auth::Authentication;
use super::limits::RequestLimits;
use crate::metrics::Metrics;

/// What the handlers need.
pub struct App {
    /// Commands.
    pub bus: Arc<dyn Dispatch>,
    /// Baskets.
    pub baskets: Arc<dyn BasketQueries>,
    /// The command log.
    pub log: Arc<dyn CommandQueries>,
    /// How requests are authenticated.
    pub authentication: Authentication,
    /// How much may be asked for.
    pub limits: RequestLimits,
    /// What else is asked of requests.
    pub rules: Rules,
    /// The OpenAPI document.
    pub document: String,
    /// Metrics.
    pub metrics: Metrics,
}

/// What is asked of requests.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A change of a basket needs If-Match.
    pub require_if_match: bool,
    /// A request that takes longer is answered 503; its command may still be executed or not.
    pub timeout: Duration,
}
