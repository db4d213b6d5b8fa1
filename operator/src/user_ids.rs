//! Who chooses the numbers of the users that pods run as: on OpenShift the cluster does, by its security context constraints.

use kube::Client;

use crate::desired::pod::UserIds;

/// Served by OpenShift, and by nothing else.
const OPENSHIFT: &str = "security.openshift.io";

/// # Errors
/// The API server does not say which API groups it serves.
pub async fn of_cluster(client: &Client) -> Result<UserIds, kube::Error> {
    let served = client.list_api_groups().await?;
    let user_ids = match served.groups.iter().any(|group| group.name == OPENSHIFT) {
        true => UserIds::ChosenByCluster,
        false => UserIds::Fixed,
    };
    tracing::info!(?user_ids, "looked who chooses the user ids of pods");
    Ok(user_ids)
}
