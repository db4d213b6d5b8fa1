//! May the account do what the operator does? The API server is asked for each right of the chart's rules, which a test proves to be
//! enough.

use std::fmt::{self, Display, Formatter};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::PostParams;
use kube::{Api, Client, Error};
use process::Finding;

use super::unanswered;
use crate::leadership::LeaseReference;

const RULES: &str = include_str!("../../../charts/outbox-operator/files/rules.yaml");
const LEASE_RULES: &str = include_str!("../../../charts/outbox-operator/files/lease-rules.yaml");
const REFERENCE_RULES: &str = include_str!("../../../charts/outbox-operator/files/reference-rules.yaml");
/// Questions at a time.
const AT_ONCE: usize = 8;

/// See the module's text.
pub async fn examine(client: &Client, namespaces: &[String], lease: Option<&LeaseReference>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let scopes = match namespaces {
        [] => vec![Scope::All],
        named => named.iter().map(|namespace| Scope::Namespace(namespace)).collect(),
    };
    for scope in &scopes {
        findings.push(look(client, "rights", RULES, scope).await);
        findings.extend(references(client, scope).await);
    }
    if let Some(lease) = lease {
        findings.push(look(client, "rights on the Lease", LEASE_RULES, &Scope::Lease(lease)).await);
    }
    findings
}

/// What a set of rules is about.
enum Scope<'a> {
    All,
    Namespace(&'a str),
    Lease(&'a LeaseReference),
}

impl Scope<'_> {
    fn namespace(&self) -> Option<&str> {
        match self {
            Scope::All => None,
            Scope::Namespace(name) => Some(name),
            Scope::Lease(lease) => Some(&lease.namespace),
        }
    }

    /// The object that rules with `resourceNames` are about: those of the file are the default's.
    fn object(&self) -> Option<&str> {
        match self {
            Scope::Lease(lease) => Some(&lease.name),
            Scope::All | Scope::Namespace(_) => None,
        }
    }
}

impl Display for Scope<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Scope::All => f.write_str("in all namespaces"),
            Scope::Namespace(name) => write!(f, "in namespace {name}"),
            Scope::Lease(lease) => write!(f, "on {lease}"),
        }
    }
}

async fn look(client: &Client, check: &'static str, rules: &str, scope: &Scope<'_>) -> Finding {
    let remedy = "bind its account to the rules that the chart makes (rbac.create), or that are in its files";
    let rules: Vec<PolicyRule> = match serde_saphyr::from_str(rules) {
        Ok(rules) => rules,
        Err(error) => {
            return Finding::problem(check, format!("its own rules cannot be read: {error}"), "report it");
        }
    };
    match refused(client, &rules, scope).await {
        Ok((asked, refused)) if refused.is_empty() => {
            Finding::ok(check, format!("all {asked} that it needs {scope}"))
        }
        Ok((_, refused)) => {
            Finding::problem(check, format!("it may not {} {scope}", refused.join(", ")), remedy)
        }
        Err(error) => unanswered(check, &error),
    }
}

/// Rights that only resources with references need, where the kinds exist. Nothing is said where the account has them.
async fn references(client: &Client, scope: &Scope<'_>) -> Option<Finding> {
    let check = "rights on references";
    let rules: Vec<PolicyRule> = serde_saphyr::from_str(REFERENCE_RULES).ok()?;
    let groups = match client.list_api_groups().await {
        Ok(served) => served.groups,
        Err(error) => return Some(unanswered(check, &error)),
    };
    let is_served = |name: &String| groups.iter().any(|group| group.name == *name);
    let rules: Vec<_> =
        rules.into_iter().filter(|rule| rule.api_groups.iter().flatten().any(is_served)).collect();
    match refused(client, &rules, scope).await {
        Ok((_, refused)) if refused.is_empty() => None,
        Ok((_, refused)) => Some(Finding::warn(
            check,
            format!(
                "it may not {} {scope}; only resources with clusterRef or userRef need it",
                refused.join(", ")
            ),
            "set rbac.clusterReferences, or bind its account to files/reference-rules.yaml of the chart",
        )),
        Err(error) => Some(unanswered(check, &error)),
    }
}

/// How many rights were asked for, and those that the account does not have.
async fn refused(
    client: &Client,
    rules: &[PolicyRule],
    scope: &Scope<'_>,
) -> Result<(usize, Vec<String>), Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let questions: Vec<_> = rules.iter().flat_map(|rule| questions(rule, scope)).collect();
    let asked = questions.len();
    let answers = stream::iter(questions).map(async |what| {
        let spec =
            SelfSubjectAccessReviewSpec { resource_attributes: Some(what.clone()), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        Ok::<_, Error>(if allowed { None } else { Some(name(&what)) })
    });
    let refused: Vec<Option<String>> = answers.buffered(AT_ONCE).try_collect().await?;
    Ok((asked, refused.into_iter().flatten().collect()))
}

/// Each right of a rule.
fn questions(rule: &PolicyRule, scope: &Scope<'_>) -> Vec<ResourceAttributes> {
    let object = scope.object().filter(|_| rule.resource_names.is_some());
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
                namespace: scope.namespace().map(str::to_owned),
                name: object.map(str::to_owned),
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
        let lease = LeaseReference { namespace: "system".to_owned(), name: "mine".to_owned() };
        let (all, lease) = (Scope::All, Scope::Lease(&lease));
        for (text, scope, some) in [
            (RULES, &all, ["patch outboxrelays/status", "get secrets"]),
            (REFERENCE_RULES, &all, ["get clusters", "get kafkausers"]),
            (LEASE_RULES, &lease, ["create leases", "update leases"]),
        ] {
            let rules: Vec<PolicyRule> = serde_saphyr::from_str(text).unwrap();
            let rights: Vec<_> = rules.iter().flat_map(|rule| questions(rule, scope)).collect();
            let names: Vec<_> = rights.iter().map(name).collect();
            assert!(some.iter().all(|right| names.contains(&(*right).to_owned())), "{names:?}");
            assert!(names.len() >= rules.len());
            assert!(rights.iter().all(|right| right.namespace.as_deref() == scope.namespace()));
        }
    }

    /// A Role may limit all verbs but `create` to one name, and then refuses a question that names none.
    #[test]
    fn rights_on_the_lease_are_asked_for_by_its_name() {
        let lease = LeaseReference { namespace: "system".to_owned(), name: "mine".to_owned() };
        let rules: Vec<PolicyRule> = serde_saphyr::from_str(LEASE_RULES).unwrap();
        let rights = rules.iter().flat_map(|rule| questions(rule, &Scope::Lease(&lease)));
        let asked: Vec<_> = rights.map(|right| (right.verb.unwrap(), right.name)).collect();
        let of = |verb: &str, name: Option<&str>| (verb.to_owned(), name.map(str::to_owned));
        assert_eq!(asked, [of("create", None), of("get", Some("mine")), of("update", Some("mine"))]);
    }
}
