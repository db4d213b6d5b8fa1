//! The topics that the configuration routes rows to at present.

use crate::config::Config;
use crate::routing::router::Router;

pub struct PresentRouting<'a> {
    /// `Err` if the rule cannot be used, and why.
    router: Result<Router, String>,
    by_field: &'a str,
}

impl PresentRouting<'_> {
    pub fn new(config: &Config) -> PresentRouting<'_> {
        let router = Router::new(&config.routing).map_err(|error| error.to_string());
        let router = router.map(|router| router.excluding(config.delivery.dead_letters()));
        PresentRouting { router, by_field: &config.routing.by_field }
    }

    /// The topic of a row with this value in the column that selects it, or why there is none.
    pub fn topic(&self, route: Option<&str>) -> Result<String, String> {
        let router = self.router.as_ref().map_err(String::clone)?;
        let route = route.ok_or_else(|| format!("column {} is NULL", self.by_field))?;
        router.topic(route).map_err(|error| error.to_string())
    }
}
