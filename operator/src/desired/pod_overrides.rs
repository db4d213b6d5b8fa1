//! What a resource overrides of its pods, and the limit of it: the relay that runs is the one that the resource declares. With another
//! configuration it would use another slot or database than the operator watches, and deletes.

use std::path::Path;

use k8s_openapi::DeepMerge;
use k8s_openapi::api::core::v1::{Container, EnvFromSource, PodTemplateSpec};
use serde_json::Value;

use super::configuration_file::FOLDER;
use super::files::POD_ROOT;
use super::naming::CONTAINER;

/// Environment variables that the relay reads as configuration.
const CONFIGURING: &str = "OUTBOX_RELAY_";
/// By what an item of a list is known, the first that it has.
const KEYS: [&str; 5] = ["mountPath", "devicePath", "containerPort", "ip", "name"];

/// `own` with the pod template `given` laid over it.
pub(super) fn lay_over(own: &PodTemplateSpec, given: &Value) -> Result<PodTemplateSpec, String> {
    let mut laid = own.clone();
    laid.merge_from(read(given)?);
    let laid = without_nulls(laid, given)?;
    guard(own, &laid)?;
    Ok(laid)
}

/// The API server knows nothing of the template, so that a field that does not exist has to be found here.
fn read(given: &Value) -> Result<PodTemplateSpec, String> {
    let parse = |given: &Value| serde_json::from_value::<PodTemplateSpec>(stripped(given));
    let template = parse(given).map_err(|error| error.to_string())?;
    let kept = serde_json::to_value(&template).map_err(|error| error.to_string())?;
    // Null is left out of a field that exists, too; any other value is kept there, or is of the wrong type.
    let is_unknown_null = |path: &String| {
        let mut probe = given.clone();
        if let Some(value) = probe.pointer_mut(path) {
            *value = Value::Bool(true);
        }
        let kept = parse(&probe).map(|template| serde_json::to_value(template).unwrap_or_default());
        kept.is_ok_and(|kept| kept.pointer(path).is_none())
    };
    let unknown = unknown(given, &kept).or_else(|| nulls(given).into_iter().find(is_unknown_null));
    match unknown {
        Some(path) => {
            let field = path.trim_start_matches('/').replace('/', ".").replace("~1", "/").replace("~0", "~");
            Err(format!("there is no field {field} in a pod template"))
        }
        None => Ok(template),
    }
}

/// Without the members that are null: labels cannot be read with one.
fn stripped(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, member)| !member.is_null());
            Value::Object(kept.map(|(name, member)| (name.clone(), stripped(member))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(stripped).collect()),
        other => other.clone(),
    }
}

/// The JSON pointer of a member that reading has left out.
fn unknown(given: &Value, kept: &Value) -> Option<String> {
    members(given).into_iter().find_map(|(name, value)| match kept.pointer(&name) {
        None => (!value.is_null()).then_some(name),
        Some(kept) => unknown(value, kept).map(|path| format!("{name}{path}")),
    })
}

/// The JSON pointers of what is null.
fn nulls(given: &Value) -> Vec<String> {
    let below = |(name, value): (String, &Value)| match value {
        Value::Null => vec![name],
        value => nulls(value).iter().map(|path| format!("{name}{path}")).collect(),
    };
    members(given).into_iter().flat_map(below).collect()
}

/// What is directly below a value, by its JSON pointer.
fn members(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Object(members) => {
            let pointer = |name: &String| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            members.iter().map(|(name, value)| (pointer(name), value)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (format!("/{index}"), item)).collect()
        }
        _ => Vec::new(),
    }
}

/// Merging knows no removal: what is null in `given` is taken away here.
fn without_nulls(laid: PodTemplateSpec, given: &Value) -> Result<PodTemplateSpec, String> {
    if nulls(given).is_empty() {
        return Ok(laid);
    }
    let mut value = serde_json::to_value(laid).map_err(|error| error.to_string())?;
    remove_nulls(&mut value, given);
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn remove_nulls(laid: &mut Value, given: &Value) {
    match (laid, given) {
        (Value::Object(laid), Value::Object(given)) => {
            for (name, value) in given {
                if value.is_null() {
                    laid.remove(name);
                } else if let Some(below) = laid.get_mut(name) {
                    remove_nulls(below, value);
                }
            }
        }
        (Value::Array(laid), Value::Array(given)) => {
            for item in given {
                let Some(key) = KEYS.into_iter().find(|key| item.get(key).is_some()) else { continue };
                if let Some(same) = laid.iter_mut().find(|other| other.get(key) == item.get(key)) {
                    remove_nulls(same, item);
                }
            }
        }
        _ => {}
    }
}

/// Whether the container of the relay still runs what the operator has configured.
fn guard(own: &PodTemplateSpec, laid: &PodTemplateSpec) -> Result<(), String> {
    let (Some(own_relay), Some(relay)) = (container(own), container(laid)) else {
        return Err(format!("it removes the container {CONTAINER}"));
    };
    if relay.command.is_some() || relay.args != own_relay.args {
        let instead = "the operator's; what the relay is told is in the fields of spec";
        return Err(format!("command and args of the container {CONTAINER} are {instead}"));
    }
    if let Some(name) = relay.env.iter().flatten().map(|env| &env.name).find(|name| is_configuring(name)) {
        let why = "it would override the relay's configuration, and the operator would watch and delete what the relay does not use";
        return Err(format!("{name} cannot be set: {why}; use the field of spec that it stands for"));
    }
    if relay.env_from.iter().flatten().any(may_configure) {
        return Err(format!(
            "envFrom of the container {CONTAINER} may bring variables that begin with {CONFIGURING}: give it a prefix, or name each under env"
        ));
    }
    keeps_files(own, laid)
}

fn container(template: &PodTemplateSpec) -> Option<&Container> {
    template.spec.as_ref()?.containers.iter().find(|container| container.name == CONTAINER)
}

fn is_configuring(name: &str) -> bool {
    name.starts_with(CONFIGURING)
}

fn may_configure(source: &EnvFromSource) -> bool {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    is_configuring(prefix) || CONFIGURING.starts_with(prefix)
}

/// The configuration and the Secrets are the operator's, and nothing is mounted over them.
fn keeps_files(own: &PodTemplateSpec, laid: &PodTemplateSpec) -> Result<(), String> {
    let volumes = |template: &PodTemplateSpec| {
        template.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default()
    };
    let mounts = |template: &PodTemplateSpec| {
        container(template).and_then(|relay| relay.volume_mounts.clone()).unwrap_or_default()
    };
    let (own_mounts, laid_volumes, laid_mounts) = (mounts(own), volumes(laid), mounts(laid));
    if let Some(volume) = volumes(own).into_iter().find(|volume| !laid_volumes.contains(volume)) {
        return Err(format!("the volume {} is the operator's: give another one another name", volume.name));
    }
    let is_within = |path: &str| [FOLDER, POD_ROOT].iter().any(|own| Path::new(path).starts_with(own));
    let changed = own_mounts.iter().find(|mount| !laid_mounts.contains(mount));
    let added = laid_mounts.iter().find(|mount| !own_mounts.contains(mount) && is_within(&mount.mount_path));
    match changed.or(added) {
        Some(mount) => Err(format!("{} in the container {CONTAINER} is the operator's", mount.mount_path)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn own() -> PodTemplateSpec {
        let relay = json!({
            "name": "relay", "args": ["run"], "env": [{"name": "RUST_LOG", "value": "info"}],
            "volumeMounts": [{"name": "configuration", "mountPath": "/etc/outbox-relay/config"}],
        });
        let pod = json!({
            "securityContext": {"runAsUser": 1, "runAsNonRoot": true}, "containers": [relay],
            "volumes": [{"name": "configuration", "configMap": {"name": "shop-relay"}}],
        });
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}, "spec": pod})).unwrap()
    }

    fn refused(given: &Value) -> String {
        lay_over(&own(), given).expect_err(&given.to_string())
    }

    #[test]
    fn a_field_that_does_not_exist_is_found_whatever_its_value() {
        for empty in [json!([]), json!({}), json!(""), json!(0), json!(false), json!(null), json!([{}])] {
            for (given, field) in [
                (json!({"spec": {"contaners": empty}}), "spec.contaners"),
                (
                    json!({"spec": {"containers": [{"name": "relay", "envv": empty}]}}),
                    "spec.containers.0.envv",
                ),
                (json!({"metdata": empty}), "metdata"),
                (json!({"spec": {"a/b~c": empty}}), "spec.a/b~c"),
            ] {
                assert_eq!(refused(&given), format!("there is no field {field} in a pod template"));
            }
        }
        for given in [
            json!({"metadata": {"labels": {}, "annotations": null}, "spec": {"volumes": [], "nodeSelector": null}}),
            json!({"spec": {"containers": [{"name": "relay", "env": [], "lifecycle": {}, "image": null}]}}),
            json!({"spec": {"terminationGracePeriodSeconds": null, "hostNetwork": null, "tolerations": [{"key": null}]}}),
        ] {
            lay_over(&own(), &given).unwrap();
        }
    }

    #[test]
    fn null_removes_what_the_operator_sets() {
        let given = json!({"metadata": {"labels": {"a": null}}, "spec": {
            "securityContext": {"runAsUser": null},
            "containers": [{"name": "other", "image": "x"}, {"name": "relay", "env": [{"name": "RUST_LOG", "value": null}]}],
        }});
        let laid = json!(lay_over(&own(), &given).unwrap());
        assert_eq!(laid["metadata"]["labels"], json!({}));
        assert_eq!(laid["spec"]["securityContext"], json!({"runAsNonRoot": true}));
        assert_eq!(laid["spec"]["containers"][0]["env"], json!([{"name": "RUST_LOG"}]));
    }

    #[test]
    fn what_the_relay_is_told_is_not_overridden() {
        let relay = |part: Value| {
            let mut relay = json!({"name": "relay"});
            relay.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
            json!({"spec": {"containers": [relay]}})
        };
        let mount = |path: &str| relay(json!({"volumeMounts": [{"name": "mine", "mountPath": path}]}));
        let variable = |name: &str| relay(json!({"env": [{"name": name, "value": "x"}]}));
        for (given, said) in [
            (variable("OUTBOX_RELAY__SOURCE__SLOT__NAME"), "OUTBOX_RELAY__SOURCE__SLOT__NAME cannot be set"),
            (variable("OUTBOX_RELAY_SOURCE_PASSWORD"), "OUTBOX_RELAY_SOURCE_PASSWORD cannot be set"),
            (relay(json!({"envFrom": [{"configMapRef": {"name": "c"}}]})), "envFrom of the container relay"),
            (relay(json!({"envFrom": [{"prefix": "OUTBOX_", "secretRef": {"name": "c"}}]})), "envFrom"),
            (
                relay(json!({"envFrom": [{"prefix": "OUTBOX_RELAY__X", "secretRef": {"name": "c"}}]})),
                "envFrom",
            ),
            (relay(json!({"args": ["run", "--config", "/mine"]})), "command and args of the container relay"),
            (relay(json!({"command": ["sh"]})), "command and args of the container relay"),
            (relay(json!({"args": null})), "command and args of the container relay"),
            (relay(json!({"volumeMounts": null})), "/etc/outbox-relay/config in the container relay"),
            (mount("/etc/outbox-relay/config"), "/etc/outbox-relay/config in the container relay"),
            (mount("/etc/outbox-relay/config/relay.yaml"), "/etc/outbox-relay/config/relay.yaml in"),
            (mount("/etc//outbox-relay/secrets/postgres/"), "is the operator's"),
            (
                json!({"spec": {"volumes": [{"name": "configuration", "emptyDir": {}}]}}),
                "the volume configuration",
            ),
            (json!({"spec": {"volumes": null}}), "the volume configuration"),
            (json!({"spec": {"containers": null}}), "it removes the container relay"),
            (json!({"spec": null}), "it removes the container relay"),
        ] {
            let problem = refused(&given);
            assert!(problem.contains(said), "{given}: {problem}");
        }
        for given in [
            variable("TZ"),
            relay(json!({"envFrom": [{"prefix": "PROXY_", "configMapRef": {"name": "c"}}]})),
            relay(json!({"args": ["run"]})),
            mount("/etc/outbox-relay-ca"),
            json!({"spec": {"containers": [{"name": "proxy", "args": ["x"], "envFrom": [{"secretRef": {"name": "c"}}]}]}}),
        ] {
            lay_over(&own(), &given).unwrap();
        }
    }
}
