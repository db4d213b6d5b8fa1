//! Reads one object of another operator's kind. Its CRD may be missing, and may be installed later: nothing is watched, and the API server is
//! asked which versions it serves.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::metrics::Metrics;

/// A kind of another operator's.
pub struct Kind {
    /// Its API group.
    pub group: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// Its name in paths and roles.
    pub plural: &'static str,
    /// Those that have the fields that are read, the preferred first.
    pub versions: &'static [&'static str],
    /// The name of the operator, for messages.
    pub operator: &'static str,
}

/// What is referenced cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Something has to be corrected.
    #[error("{0}")]
    Unusable(String),
    /// The other operator has not finished.
    #[error("{0}")]
    NotReady(String),
}

/// Why there is nothing.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// See [`ReferenceError`].
    #[error(transparent)]
    Unusable(#[from] ReferenceError),
    /// The API server did not answer, or failed: this says nothing about what is referenced.
    #[error("cannot read {what} now: {error}")]
    Unavailable {
        /// Kind and name.
        what: String,
        /// The API server's answer.
        error: kube::Error,
    },
}

/// For one reconciliation.
pub struct Reader<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    served: OnceCell<Vec<(String, String)>>,
}

impl<'a> Reader<'a> {
    /// Asks nothing yet.
    pub fn new(client: &'a Client, metrics: &'a Metrics) -> Reader<'a> {
        Reader { client, metrics, served: OnceCell::new() }
    }

    /// The fields of an object that `T` has.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<T, LookError> {
        let what = || format!("{} {name} in namespace {namespace}", kind.kind);
        let unavailable = |error| LookError::Unavailable { what: what(), error };
        let unusable = |problem| LookError::Unusable(ReferenceError::Unusable(problem));
        let Some(version) = self.version(kind).await.map_err(unavailable)? else {
            let Kind { group, operator, .. } = kind;
            return Err(unusable(format!(
                "cannot read {}: the API server serves no {group}/{}; install {operator}, or give the fields in place of the reference",
                what(),
                kind.versions.join(" or ")
            )));
        };
        let kind_of_version = GroupVersionKind::gvk(kind.group, version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind_of_version, kind.plural);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        match self.metrics.kubernetes("read_reference", api.get_opt(name)).await {
            Ok(Some(object)) => serde_json::from_value(object.data).map_err(|error| {
                unusable(format!("{} is not as {} writes it: {error}", what(), kind.operator))
            }),
            Ok(None) => {
                Err(unusable(format!("{} does not exist: create it, or correct the reference", what())))
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 403 => Err(unusable(format!(
                "the operator may not read {}: bind its service account to a role with the verb get on {} in {} (the chart's \
                 rbac.clusterReferences)",
                what(),
                kind.plural,
                kind.group
            ))),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// The version to read, where one is served.
    async fn version(&self, kind: &Kind) -> Result<Option<&'static str>, kube::Error> {
        let ask = async || {
            let groups = self.metrics.kubernetes("discover", self.client.list_api_groups()).await?;
            let versions = groups.groups.into_iter().flat_map(|group| {
                let name = group.name;
                group.versions.into_iter().map(move |served| (name.clone(), served.version))
            });
            Ok::<_, kube::Error>(versions.collect())
        };
        let served = self.served.get_or_try_init(ask).await?;
        let is_served =
            |version: &&&str| served.iter().any(|(group, served)| group == kind.group && served == **version);
        Ok(kind.versions.iter().find(is_served).copied())
    }
}
