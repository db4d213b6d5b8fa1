//! A request on its way to its handler.

use super::app::App;
use super::auth::Caller;
use super::operation::Operation;
use super::path::PathParameters;
use super::request::Request;

/// A request that was let in, with everything its handler may use.
pub struct RequestContext<'a> {
    /// What handlers share.
    pub app: &'a App,
    /// The request.
    pub request: &'a Request,
    /// The parameters of its path.
    pub path: &'a PathParameters<'a>,
    /// What is told of its route.
    pub operation: &'static Operation,
    /// Who sent it.
    pub caller: &'a Caller,
}
