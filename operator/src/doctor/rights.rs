//! May the account do what the operator does? The API server is asked for each right of the chart's rules, which a test proves to be
//! enough.

use admin::Finding;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::PostParams;
use kube::{Api, Client, Error};

use super::unanswered;

const RULES: &str = include_str!("../../../charts/outbox-operator/files/rules.yaml");
const LEASE_RULES: &str = include_str!("../../../charts/outbox-operator/files/lease-rules.yaml");
/// Questions at a time.
const AT_ONCE: usize = 8;

/// See the module's text.
pub async fn examine(client: &Client, namespaces: &[String], lease: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if namespaces.is_empty() {
        findings.push(look(client, "rights", RULES, None).await);
    }
    for namespace in namespaces {
        findings.push(look(client, "rights", RULES, Some(namespace)).await);
    }
    if let Some(namespace) = lease {
        findings.push(look(client, "rights on the Lease", LEASE_RULES, Some(namespace)).await);
    }
    findings
}

async fn look(client: &Client, check: &'static str, rules: &str, namespace: Option<&str>) -> Finding {
    let place = namespace.map_or_else(|| "all namespaces".to_owned(), |name| format!("namespace {name}"));
    let remedy = "bind its account to the rules that the chart makes (rbac.create), or that are in its files";
    let rules: Vec<PolicyRule> = match serde_saphyr::from_str(rules) {
        Ok(rules) => rules,
        Err(error) => {
            return Finding::problem(check, format!("its own rules cannot be read: {error}"), "report it");
        }
    };
    match refused(client, &rules, namespace).await {
        Ok((asked, refused)) if refused.is_empty() => {
            Finding::ok(check, format!("all {asked} that it needs in {place}"))
        }
        Ok((_, refused)) => {
            Finding::problem(check, format!("it may not {} in {place}", refused.join(", ")), remedy)
        }
        Err(error) => unanswered(check, &error),
    }
}

/// How many rights were asked for, and those that the account does not have.
async fn refused(
    client: &Client,
    rules: &[PolicyRule],
    namespace: Option<&str>,
) -> Result<(usize, Vec<String>), Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let questions: Vec<_> = rules.iter().flat_map(questions).collect();
    let asked = questions.len();
    let answers = stream::iter(questions).map(async |what| {
        let attributes = ResourceAttributes { namespace: namespace.map(str::to_owned), ..what.clone() };
        let spec =
            SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        Ok::<_, Error>(if allowed { None } else { Some(name(&what)) })
    });
    let refused: Vec<Option<String>> = answers.buffered(AT_ONCE).try_collect().await?;
    Ok((asked, refused.into_iter().flatten().collect()))
}

/// Each right of a rule.
fn questions(rule: &PolicyRule) -> Vec<ResourceAttributes> {
    let mut questions = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            let mut parts = resource.splitn(2, '/').map(str::to_owned);
            let (resource, subresource) = (parts.next(), parts.next());
            questions.extend(rule.verbs.iter().map(|verb| ResourceAttributes {
                group: Some(group.clone()),
                resource: resource.clone(),
                subresource: subresource.clone(),
                verb: Some(verb.clone()),
                ..ResourceAttributes::default()
            }));
        }
    }
    questions
}

/// As `patch outboxrelays/status`.
fn name(right: &ResourceAttributes) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let subresource = right.subresource.as_ref().map_or_else(String::new, |name| format!("/{name}"));
    format!("{} {}{subresource}", part(&right.verb), part(&right.resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_right_of_the_charts_rules_is_asked_for() {
        for (text, some) in
            [(RULES, ["patch outboxrelays/status", "get secrets"]), (LEASE_RULES, ["update leases"; 2])]
        {
            let rules: Vec<PolicyRule> = serde_saphyr::from_str(text).unwrap();
            let names: Vec<_> = rules.iter().flat_map(questions).map(|right| name(&right)).collect();
            assert!(some.iter().all(|right| names.contains(&(*right).to_owned())), "{names:?}");
            assert!(names.len() >= rules.len());
        }
    }
}
