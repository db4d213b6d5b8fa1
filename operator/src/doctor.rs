//! `doctor`: looks whether an operator with this account could do its work, and whether one does it, and says of each thing whether it is
//! right, and what to do if it is not. It changes nothing, and needs no right that the operator does not have.

mod crd;
mod rights;

use std::time::Duration;

use kube::{Client, Error};
use process::{Finding, Grade, root_cause};

use crate::leadership::{LeaseReference, leader};

/// An API server that takes longer is of no use to the operator either.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Makes every check that can be made: for an operator that looks at `namespaces`, or at all of them, and has its Lease there.
pub async fn examine(client: &Client, namespaces: &[String], lease: Option<&LeaseReference>) -> Vec<Finding> {
    let server = api_server(client).await;
    if server.result == Grade::Problem {
        return vec![server];
    }
    let mut findings = vec![server, crd::examine(client).await];
    findings.extend(rights::examine(client, namespaces, lease).await);
    if let Some(lease) = lease {
        findings.push(leading(client, lease).await);
    }
    findings
}

async fn api_server(client: &Client) -> Finding {
    const CHECK: &str = "API server";
    const REMEDY: &str = "check that KUBECONFIG, or the pod's account and the network, lead to it";
    match tokio::time::timeout(ANSWERS_WITHIN, client.apiserver_version()).await {
        Ok(Ok(version)) => Finding::ok(CHECK, format!("Kubernetes {} answers", version.git_version)),
        Ok(Err(error)) => {
            Finding::problem(CHECK, format!("does not answer as it should: {}", root_cause(&error)), REMEDY)
        }
        Err(_) => {
            let seconds = ANSWERS_WITHIN.as_secs();
            Finding::problem(CHECK, format!("does not answer within {seconds} s"), REMEDY)
        }
    }
}

async fn leading(client: &Client, lease: &LeaseReference) -> Finding {
    const CHECK: &str = "leader";
    match leader(client.clone(), lease).await {
        Ok(Some(holder)) => Finding::ok(CHECK, format!("{holder} holds {lease} and renews it")),
        Ok(None) => Finding::problem(
            CHECK,
            format!("no operator renews {lease}, so none acts"),
            format!(
                "look at the pods of the operator and at their logs: kubectl get pods -n {}",
                lease.namespace
            ),
        ),
        Err(error) => unanswered(CHECK, &error),
    }
}

fn unanswered(check: &'static str, error: &Error) -> Finding {
    let message = format!("the API server does not say: {}", root_cause(error));
    Finding::problem(check, message, "see that the account has the rights that the chart gives it")
}
