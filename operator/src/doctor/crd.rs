//! Is the CRD in the cluster the one that this program knows? Reading CRDs takes a right in the whole cluster, which an operator that looks
//! at some namespaces does not have. Every account may read the schemas that the API server publishes.

use std::collections::BTreeSet;

use hyper::Request;
use kube::{Client, CustomResourceExt, Error, Resource};
use process::Finding;
use serde_json::Value;

use super::unanswered;
use crate::resource::OutboxRelay;

const CHECK: &str = "CRD";
const REMEDY: &str =
    "kubectl apply --server-side -f crds/outboxrelays.outbox.dev.yaml, of this operator's release";

/// See the module's text.
pub async fn examine(client: &Client) -> Finding {
    let served = format!("{}/{}", OutboxRelay::group(&()), OutboxRelay::version(&()));
    let resources = match client.list_api_group_resources(&served).await {
        Ok(resources) => resources.resources,
        Err(Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return unanswered(CHECK, &error),
    };
    let plural = OutboxRelay::plural(&());
    for name in [plural.to_string(), format!("{plural}/status")] {
        if !resources.iter().any(|resource| resource.name == name) {
            return Finding::problem(CHECK, format!("the API server knows no {name} in {served}"), REMEDY);
        }
    }
    match published(client, &served).await {
        Ok(published) => judge(&known(), &published, &served),
        Err(error) => unanswered(CHECK, &error),
    }
}

/// The schema that the API server goes by.
async fn published(client: &Client, served: &str) -> Result<Value, Error> {
    let request = Request::get(format!("/openapi/v3/apis/{served}")).body(Vec::new());
    let mut document: Value = client.request(request.map_err(Error::HttpError)?).await?;
    // Named by the group in reverse.
    let name =
        format!("/components/schemas/dev.outbox.{}.{}", OutboxRelay::version(&()), OutboxRelay::kind(&()));
    Ok(document.pointer_mut(&name).map(Value::take).unwrap_or_default())
}

/// The schema that this program was built with.
fn known() -> Value {
    let version = OutboxRelay::crd().spec.versions.into_iter().next();
    let schema = version.and_then(|version| version.schema?.open_api_v3_schema);
    serde_json::to_value(schema).unwrap_or_default()
}

fn judge(known: &Value, published: &Value, served: &str) -> Finding {
    let mut differences = Differences::default();
    for part in ["spec", "status"] {
        let path = format!("/properties/{part}");
        match (known.pointer(&path), published.pointer(&path)) {
            (Some(known), Some(published)) => differences.look(part, known, published),
            _ => drop(differences.unknown.insert(part.to_owned())),
        }
    }
    let Differences { unknown, others } = differences;
    let list = |fields: BTreeSet<String>| Vec::from_iter(fields).join(", ");
    if !unknown.is_empty() {
        let message =
            format!("the API server's does not have {}: what is written there is lost", list(unknown));
        return Finding::problem(CHECK, message, REMEDY);
    }
    if !others.is_empty() {
        let message = format!("the API server's is of another release; it differs in {}", list(others));
        return Finding::warn(CHECK, message, REMEDY);
    }
    Finding::ok(CHECK, format!("{served} is served, as this operator knows it"))
}

/// Fields in which two schemas differ.
#[derive(Default)]
struct Differences {
    /// Those that the API server does not know.
    unknown: BTreeSet<String>,
    /// Those that it knows otherwise, or that only it knows.
    others: BTreeSet<String>,
}

impl Differences {
    fn look(&mut self, field: &str, known: &Value, published: &Value) {
        let (Value::Object(known), Value::Object(published)) = (known, published) else {
            if !is_same(known, published) {
                self.others.insert(field.to_owned());
            }
            return;
        };
        for key in known.keys().chain(published.keys()).collect::<BTreeSet<_>>() {
            match (key.as_str(), known.get(key), published.get(key)) {
                ("properties", Some(Value::Object(known)), Some(Value::Object(published))) => {
                    for name in known.keys().chain(published.keys()) {
                        let path = format!("{field}.{name}");
                        match (known.get(name), published.get(name)) {
                            (Some(known), Some(published)) => self.look(&path, known, published),
                            (Some(_), None) => drop(self.unknown.insert(path)),
                            _ => drop(self.others.insert(path)),
                        }
                    }
                }
                (_, Some(known), Some(published)) => self.look(field, known, published),
                // The API server spells out what that means.
                (_, None, _) if known.contains_key("x-kubernetes-int-or-string") => {}
                _ => drop(self.others.insert(field.to_owned())),
            }
        }
    }
}

/// One writes 1, the other 1.0.
fn is_same(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|number| other.as_f64() == Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use process::Grade;
    use serde_json::json;

    #[test]
    fn fields_that_get_lost_are_a_problem_and_any_other_difference_is_worth_a_look() {
        let judged = |change: fn(&mut Value)| {
            let mut published = known();
            change(&mut published["properties"]["spec"]["properties"]);
            judge(&known(), &published, "outbox.dev/v1beta1")
        };
        assert_eq!(judged(|_| {}).result, Grade::Ok);
        let without =
            judged(|fields| drop(fields["source"]["properties"]["postgres"]["properties"]["slot"].take()));
        assert_eq!(without.result, Grade::Warn);
        assert!(without.message.ends_with("differs in spec.source.postgres.slot"), "{without:?}");
        let without = judged(|fields| drop(fields.as_object_mut().unwrap().remove("suspend")));
        assert_eq!(without.result, Grade::Problem);
        assert!(without.message.contains("does not have spec.suspend:"), "{without:?}");
        let more = judged(|fields| fields["new"] = json!({"type": "string"}));
        assert_eq!((more.result, more.message.ends_with("spec.new")), (Grade::Warn, true));
        let nothing = judge(&known(), &Value::Null, "");
        assert!(nothing.message.contains("does not have spec, status"), "{nothing:?}");
        let as_decimal = judged(|fields| fields["relay"]["properties"]["replicas"]["default"] = json!(1.0));
        assert_eq!(as_decimal.result, Grade::Ok);
    }
}
