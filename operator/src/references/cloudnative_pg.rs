//! CloudNativePG's Cluster: the fields that are read of it, and what they stand for.

use serde::Deserialize;

use super::reader::{Kind, ReferenceError};
use crate::resource::{CaSecretRef, CredentialsSecretRef, PostgresClusterRef, PostgresSource, TlsMode};

/// `postgresql.cnpg.io/v1`.
pub const CLUSTER: Kind = Kind {
    group: "postgresql.cnpg.io",
    kind: "Cluster",
    plural: "clusters",
    versions: &["v1"],
    operator: "CloudNativePG",
};

/// CloudNativePG's default for every way to bootstrap a cluster.
const DATABASE: &str = "app";

/// The part of a Cluster that is read.
#[derive(Debug, Deserialize)]
pub struct Cluster {
    spec: Spec,
    status: Option<Status>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    #[serde(default)]
    bootstrap: Bootstrap,
    #[serde(default)]
    managed: Managed,
}

/// At most one of them is given.
#[derive(Debug, Default, Deserialize)]
struct Bootstrap {
    initdb: Option<Method>,
    recovery: Option<Method>,
    pg_basebackup: Option<Method>,
}

/// The database of the application, and the Secret of its owner.
#[derive(Debug, Default, Deserialize)]
struct Method {
    database: Option<String>,
    secret: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
struct Managed {
    #[serde(default)]
    roles: Vec<Role>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Role {
    name: String,
    password_secret: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(default)]
    ready_instances: i32,
    write_service: Option<String>,
    #[serde(default)]
    certificates: Certificates,
}

#[derive(Debug, Default, Deserialize)]
struct Certificates {
    #[serde(rename = "serverCASecret")]
    server_ca_secret: Option<String>,
}

/// Replaces the reference. What the resource says itself stays.
///
/// # Errors
/// The Cluster is not ready, or has no such role.
pub fn fill_in(
    postgres: &mut PostgresSource,
    reference: &PostgresClusterRef,
    cluster: &Cluster,
    namespace: &str,
) -> Result<(), ReferenceError> {
    let name = &reference.name;
    let status = cluster.status.as_ref().filter(|status| status.ready_instances > 0);
    let Some(status) = status else {
        let phase = cluster.status.as_ref().and_then(|status| status.phase.as_deref());
        let phase = phase.unwrap_or("it has no status yet");
        return Err(ReferenceError::NotReady(format!(
            "Cluster {name} has no instance that is ready: {phase}"
        )));
    };
    let Bootstrap { initdb, recovery, pg_basebackup } = &cluster.spec.bootstrap;
    let method = initdb.as_ref().or(recovery.as_ref()).or(pg_basebackup.as_ref());
    let service = status.write_service.clone().unwrap_or_else(|| format!("{name}-rw"));
    // The operator is in another namespace than the relay, and the server's certificate has this name, too.
    postgres.host = Some(format!("{service}.{namespace}.svc"));
    postgres.database.get_or_insert_with(|| {
        method.and_then(|method| method.database.clone()).unwrap_or_else(|| DATABASE.to_owned())
    });
    let tls = &mut postgres.tls.tls;
    if matches!(tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        tls.ca_secret_ref.get_or_insert_with(|| {
            let secret = status.certificates.server_ca_secret.clone();
            CaSecretRef::of(secret.unwrap_or_else(|| format!("{name}-ca")))
        });
    }
    if postgres.credentials_secret_ref.is_none() && postgres.username.is_none() {
        postgres.credentials_secret_ref = Some(match &reference.role {
            Some(role) => managed_role(cluster, name, role)?,
            None => {
                let secret =
                    method.and_then(|method| method.secret.as_ref()).map(|secret| secret.name.clone());
                CredentialsSecretRef::of(secret.unwrap_or_else(|| format!("{name}-app")), None)
            }
        });
    }
    Ok(())
}

fn managed_role(cluster: &Cluster, name: &str, role: &str) -> Result<CredentialsSecretRef, ReferenceError> {
    let found = cluster.spec.managed.roles.iter().find(|managed| managed.name == role);
    let Some(found) = found else {
        return Err(ReferenceError::Unusable(format!(
            "Cluster {name} has no managed role {role}: add it to spec.managed.roles, with `login`, `replication` and `passwordSecret`"
        )));
    };
    match &found.password_secret {
        Some(secret) => Ok(CredentialsSecretRef::of(secret.name.clone(), Some(role.to_owned()))),
        None => Err(ReferenceError::Unusable(format!(
            "the managed role {role} of Cluster {name} has no password: give it a passwordSecret, or set username and \
             tls.certificateSecretRef here"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn source(changes: Value) -> PostgresSource {
        let mut source = json!({
            "clusterRef": {"name": "shop-db"}, "publication": {"name": "p"}, "slot": {"name": "s"},
        });
        for (name, value) in changes.as_object().unwrap() {
            source[name] = value.clone();
        }
        serde_json::from_value(source).unwrap()
    }

    fn filled(source: Value, cluster: Value) -> Result<Value, ReferenceError> {
        let mut source = self::source(source);
        let reference = source.cluster_ref.take().unwrap();
        fill_in(&mut source, &reference, &serde_json::from_value(cluster).unwrap(), "shop")?;
        Ok(json!(source))
    }

    fn ready(spec: Value) -> Value {
        json!({"spec": spec, "status": {"readyInstances": 1}})
    }

    #[test]
    fn a_cluster_stands_for_what_cloudnative_pg_makes_of_it() {
        let source = filled(json!({}), ready(json!({"instances": 3}))).unwrap();
        assert_eq!(source["host"], "shop-db-rw.shop.svc");
        assert_eq!(source["database"], "app");
        assert_eq!(source["tls"]["caSecretRef"]["name"], "shop-db-ca");
        assert_eq!(source["credentialsSecretRef"], json!({"name": "shop-db-app", "passwordKey": "password"}));
    }

    #[test]
    fn what_the_cluster_says_counts_more_than_the_usual_names() {
        let recovery = json!({"recovery": {"database": "orders", "secret": {"name": "owner"}}});
        let mut cluster = ready(json!({"bootstrap": recovery}));
        cluster["status"]["writeService"] = json!("writer");
        cluster["status"]["certificates"] = json!({"serverCASecret": "our-ca"});
        let source = filled(json!({}), cluster).unwrap();
        assert_eq!(source["host"], "writer.shop.svc");
        assert_eq!(source["database"], "orders");
        assert_eq!(source["tls"]["caSecretRef"]["name"], "our-ca");
        assert_eq!(source["credentialsSecretRef"]["name"], "owner");
    }

    #[test]
    fn what_the_resource_says_itself_counts_most() {
        let own = json!({
            "database": "orders", "credentialsSecretRef": {"name": "mine"},
            "tls": {"mode": "verify-ca", "caSecretRef": {"name": "my-ca"}},
        });
        let source = filled(own, ready(json!({}))).unwrap();
        assert_eq!(source["database"], "orders");
        assert_eq!(source["credentialsSecretRef"]["name"], "mine");
        assert_eq!(source["tls"]["caSecretRef"]["name"], "my-ca");
        let without = filled(json!({"tls": {"mode": "require"}}), ready(json!({}))).unwrap();
        assert_eq!(without["tls"].get("caSecretRef"), None, "it is not used in this mode");
        let certificate = json!({"username": "u", "tls": {"certificateSecretRef": {"name": "c"}}});
        let without = filled(certificate, ready(json!({}))).unwrap();
        assert_eq!(without.get("credentialsSecretRef"), None);
    }

    #[test]
    fn a_managed_role_needs_a_password() {
        let with = |roles: Value| {
            let source = json!({"clusterRef": {"name": "shop-db", "role": "relay"}});
            filled(source, ready(json!({"managed": {"roles": roles}})))
        };
        let role = with(json!([{"name": "relay", "passwordSecret": {"name": "relay-password"}}])).unwrap();
        assert_eq!(
            role["credentialsSecretRef"],
            json!({"name": "relay-password", "username": "relay", "passwordKey": "password"})
        );
        assert!(with(json!([])).unwrap_err().to_string().contains("add it to spec.managed.roles"));
        let without = with(json!([{"name": "relay"}])).unwrap_err();
        assert!(without.to_string().contains("has no password"));
    }

    #[test]
    fn a_cluster_is_waited_for_until_an_instance_is_ready() {
        for status in [Value::Null, json!({"phase": "Setting up primary", "readyInstances": 0})] {
            let refused = filled(json!({}), json!({"spec": {}, "status": status})).unwrap_err();
            assert!(matches!(refused, ReferenceError::NotReady(_)), "{refused:?}");
        }
    }
}
