//! The relay's configuration file, as its ConfigMap holds it.

use k8s_openapi::api::core::v1::ConfigMap;
use outbox_relay::config::Config;

use crate::digest::ConfigurationDigest;

/// Where the container finds it.
pub(super) const FOLDER: &str = "/etc/outbox-relay/config";
/// Its name.
pub(super) const NAME: &str = "relay.yaml";

/// YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationFile(String);

impl ConfigurationFile {
    /// With this configuration.
    ///
    /// # Errors
    /// It has no form in YAML.
    pub fn of(config: &Config) -> Result<ConfigurationFile, String> {
        serde_saphyr::to_string(config).map(ConfigurationFile).map_err(|error| error.to_string())
    }

    /// The configuration in a ConfigMap; `None` if this version cannot read it.
    pub fn read(config_map: &ConfigMap) -> Option<Config> {
        serde_saphyr::from_str(config_map.data.as_ref()?.get(NAME)?).ok()
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Changes when the file changes.
    pub fn digest(&self) -> ConfigurationDigest {
        ConfigurationDigest::of([self.as_str()])
    }
}
