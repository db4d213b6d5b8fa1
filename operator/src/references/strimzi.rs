//! Strimzi's Kafka and KafkaUser: the fields that are read of them, and what they stand for.

use serde::Deserialize;

use super::reader::{Kind, ReferenceError};
use crate::resource::{
    CaSecretRef, CertificateSecretRef, CredentialsSecretRef, KafkaClusterRef, KafkaSink, KafkaUserRef, Sasl,
    SaslMechanism, TlsMode,
};

const GROUP: &str = "kafka.strimzi.io";
const OPERATOR: &str = "Strimzi";
/// Strimzi before 0.49 serves only the second, Strimzi 1.0 only the first. The fields that are read are the same.
const VERSIONS: &[&str] = &["v1", "v1beta2"];

/// A Kafka cluster.
pub const KAFKA: Kind =
    Kind { group: GROUP, kind: "Kafka", plural: "kafkas", versions: VERSIONS, operator: OPERATOR };
/// A user of one.
pub const KAFKA_USER: Kind =
    Kind { group: GROUP, kind: "KafkaUser", plural: "kafkausers", versions: VERSIONS, operator: OPERATOR };

/// The part of a Kafka that is read.
#[derive(Debug, Deserialize)]
pub struct Kafka {
    spec: KafkaSpec,
    status: Option<KafkaStatus>,
}

#[derive(Debug, Deserialize)]
struct KafkaSpec {
    kafka: Brokers,
}

#[derive(Debug, Deserialize)]
struct Brokers {
    listeners: Vec<Listener>,
}

#[derive(Debug, Deserialize)]
struct Listener {
    name: String,
    tls: bool,
    #[serde(default)]
    configuration: ListenerConfiguration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListenerConfiguration {
    /// The certificate is not one of Strimzi's.
    broker_cert_chain_and_key: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct KafkaStatus {
    #[serde(default)]
    listeners: Vec<ListenerStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListenerStatus {
    name: Option<String>,
    bootstrap_servers: Option<String>,
}

/// The part of a KafkaUser that is read.
#[derive(Debug, Deserialize)]
pub struct KafkaUser {
    spec: KafkaUserSpec,
    status: Option<KafkaUserStatus>,
}

#[derive(Debug, Deserialize)]
struct KafkaUserSpec {
    authentication: Option<Authentication>,
}

#[derive(Debug, Deserialize)]
struct Authentication {
    #[serde(rename = "type")]
    type_: String,
}

#[derive(Debug, Default, Deserialize)]
struct KafkaUserStatus {
    username: Option<String>,
    secret: Option<String>,
}

/// Replaces the reference to the cluster. What the resource says itself stays.
///
/// # Errors
/// The listener does not exist, is not ready, or is protected in another way than the resource asks for.
pub fn fill_in_cluster(
    kafka: &mut KafkaSink,
    reference: &KafkaClusterRef,
    cluster: &Kafka,
) -> Result<(), ReferenceError> {
    let KafkaClusterRef { name, listener, .. } = reference;
    let listeners = &cluster.spec.kafka.listeners;
    let Some(specified) = listeners.iter().find(|specified| specified.name == *listener) else {
        let names: Vec<&str> = listeners.iter().map(|listener| listener.name.as_str()).collect();
        return Err(ReferenceError::Unusable(format!(
            "Kafka {name} has no listener {listener}: it has {}",
            names.join(", ")
        )));
    };
    let mut known = cluster.status.iter().flat_map(|status| &status.listeners);
    let status = known.find(|known| known.name.as_ref() == Some(listener));
    let Some(bootstrap_servers) = status.and_then(|status| status.bootstrap_servers.clone()) else {
        return Err(ReferenceError::NotReady(format!(
            "listener {listener} of Kafka {name} has no address yet"
        )));
    };
    match (specified.tls, kafka.tls.mode) {
        (false, TlsMode::Disable) | (true, TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull) => {}
        // Whether passwords and records are protected is decided by the resource, not by what it references.
        (false, _) => {
            return Err(ReferenceError::Unusable(format!(
                "listener {listener} of Kafka {name} has no TLS: name one that has, or set sink.kafka.tls.mode to disable"
            )));
        }
        (true, TlsMode::Disable) => {
            return Err(ReferenceError::Unusable(format!(
                "listener {listener} of Kafka {name} has TLS: leave sink.kafka.tls.mode at verify-full"
            )));
        }
    }
    kafka.bootstrap_servers = Some(bootstrap_servers);
    let is_signed_by_strimzi = specified.configuration.broker_cert_chain_and_key.is_none();
    if is_signed_by_strimzi && matches!(kafka.tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        kafka.tls.ca_secret_ref.get_or_insert_with(|| CaSecretRef::of(format!("{name}-cluster-ca-cert")));
    }
    Ok(())
}

/// Replaces the reference to the user.
///
/// # Errors
/// The user is not ready, or has no credentials that the resource can use.
pub fn fill_in_user(
    kafka: &mut KafkaSink,
    reference: &KafkaUserRef,
    user: &KafkaUser,
) -> Result<(), ReferenceError> {
    let name = &reference.name;
    let unusable = |problem: &str| Err(ReferenceError::Unusable(format!("KafkaUser {name} {problem}")));
    let type_ = user.spec.authentication.as_ref().map(|authentication| authentication.type_.as_str());
    let Some(type_ @ ("scram-sha-512" | "tls")) = type_ else {
        return unusable(
            "has no Secret: set spec.authentication.type there to scram-sha-512 or tls, or name the credentials here in place of userRef",
        );
    };
    let status = user.status.as_ref();
    let Some(secret) = status.and_then(|status| status.secret.clone()) else {
        return Err(ReferenceError::NotReady(format!("KafkaUser {name} has no Secret yet")));
    };
    if type_ == "scram-sha-512" {
        if kafka.admin_certificate_secret_ref.is_some() {
            return unusable(
                "has a password: use adminCredentialsSecretRef in place of adminCertificateSecretRef",
            );
        }
        let username = status.and_then(|status| status.username.clone()).unwrap_or_else(|| name.clone());
        kafka.sasl = Some(Sasl {
            mechanism: SaslMechanism::ScramSha512,
            credentials_secret_ref: Some(CredentialsSecretRef::of(secret, Some(username))),
            oauthbearer: None,
            region: None,
        });
        return Ok(());
    }
    if kafka.admin_credentials_secret_ref.is_some() {
        return unusable(
            "has a certificate: use adminCertificateSecretRef in place of adminCredentialsSecretRef",
        );
    }
    if kafka.tls.mode == TlsMode::Disable {
        return unusable("has a certificate, which is not used without TLS: set another tls.mode");
    }
    kafka.tls.certificate_secret_ref = Some(CertificateSecretRef {
        name: secret,
        certificate_key: "user.crt".to_owned(),
        private_key_key: "user.key".to_owned(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sink(values: Value) -> KafkaSink {
        serde_json::from_value(values).unwrap()
    }

    /// As Strimzi writes it, with a listener of each kind.
    fn cluster() -> Value {
        let custom =
            json!({"brokerCertChainAndKey": {"secretName": "c", "certificate": "tls.crt", "key": "tls.key"}});
        json!({
            "spec": {"kafka": {"listeners": [
                {"name": "plain", "port": 9092, "type": "internal", "tls": false},
                {"name": "tls", "port": 9093, "type": "internal", "tls": true, "authentication": {"type": "tls"}},
                {"name": "external", "port": 9094, "type": "loadbalancer", "tls": true, "configuration": custom},
                {"name": "new", "port": 9095, "type": "internal", "tls": true},
            ]}},
            "status": {"clusterId": "x", "listeners": [
                {"name": "plain", "bootstrapServers": "events-kafka-bootstrap.kafka.svc:9092"},
                {"name": "tls", "bootstrapServers": "events-kafka-bootstrap.kafka.svc:9093", "certificates": ["pem"]},
                {"name": "external", "bootstrapServers": "kafka.example.com:9094", "certificates": ["pem"]},
            ]},
        })
    }

    fn resolved(mut values: Value, listener: &str) -> Result<Value, ReferenceError> {
        values["clusterRef"] = json!({"name": "events", "listener": listener});
        let mut sink = sink(values);
        let reference = sink.cluster_ref.take().unwrap();
        fill_in_cluster(&mut sink, &reference, &serde_json::from_value(cluster()).unwrap())?;
        Ok(json!(sink))
    }

    #[test]
    fn a_listener_stands_for_its_address_and_the_ca_of_the_cluster() {
        let sink = resolved(json!({}), "tls").unwrap();
        assert_eq!(sink["bootstrapServers"], "events-kafka-bootstrap.kafka.svc:9093");
        assert_eq!(sink["tls"]["caSecretRef"], json!({"name": "events-cluster-ca-cert", "key": "ca.crt"}));
        let plain = resolved(json!({"tls": {"mode": "disable"}}), "plain").unwrap();
        assert_eq!(plain["bootstrapServers"], "events-kafka-bootstrap.kafka.svc:9092");
        let own = resolved(json!({"tls": {"caSecretRef": {"name": "copy"}}}), "tls").unwrap();
        assert_eq!(own["tls"]["caSecretRef"]["name"], "copy");
        let custom = resolved(json!({}), "external").unwrap();
        assert_eq!(custom["tls"].get("caSecretRef"), None, "another CA has signed its certificate");
    }

    #[test]
    fn protection_is_not_lowered_by_what_is_referenced() {
        let plain = resolved(json!({}), "plain").unwrap_err();
        assert!(plain.to_string().contains("listener plain of Kafka events has no TLS"), "{plain}");
        let disabled = resolved(json!({"tls": {"mode": "disable"}}), "tls").unwrap_err();
        assert!(disabled.to_string().contains("leave sink.kafka.tls.mode at verify-full"), "{disabled}");
    }

    #[test]
    fn a_listener_that_is_missing_is_told_from_one_that_is_not_ready() {
        let missing = resolved(json!({}), "tsl").unwrap_err();
        assert!(missing.to_string().ends_with("it has plain, tls, external, new"), "{missing}");
        assert!(matches!(resolved(json!({}), "new"), Err(ReferenceError::NotReady(_))));
    }

    fn with_user(mut values: Value, user: Value) -> Result<Value, ReferenceError> {
        values["userRef"] = json!({"name": "shop"});
        values["bootstrapServers"] = json!("k:9093");
        let mut sink = sink(values);
        let reference = sink.user_ref.take().unwrap();
        fill_in_user(&mut sink, &reference, &serde_json::from_value(user).unwrap())?;
        Ok(json!(sink))
    }

    fn user(type_: &str) -> Value {
        let username = if type_ == "tls" { "CN=shop" } else { "shop" };
        json!({"spec": {"authentication": {"type": type_}}, "status": {"username": username, "secret": "pre-shop"}})
    }

    #[test]
    fn a_user_stands_for_its_credentials() {
        let sasl = with_user(json!({}), user("scram-sha-512")).unwrap()["sasl"].clone();
        assert_eq!(sasl["mechanism"], "SCRAM-SHA-512");
        assert_eq!(
            sasl["credentialsSecretRef"],
            json!({"name": "pre-shop", "username": "shop", "passwordKey": "password"})
        );
        let tls = with_user(json!({}), user("tls")).unwrap()["tls"].clone();
        assert_eq!(
            tls["certificateSecretRef"],
            json!({"name": "pre-shop", "certificateKey": "user.crt", "privateKeyKey": "user.key"})
        );
    }

    #[test]
    fn a_user_that_does_not_fit_is_refused_with_what_to_do() {
        let password = json!({"adminCredentialsSecretRef": {"name": "a"}});
        let certificate = json!({"adminCertificateSecretRef": {"name": "a"}});
        let plain = json!({"tls": {"mode": "disable"}});
        for (sink, user, said) in [
            (json!({}), user("tls-external"), "has no Secret"),
            (json!({}), json!({"spec": {}}), "has no Secret"),
            (password, user("tls"), "use adminCertificateSecretRef"),
            (certificate, user("scram-sha-512"), "use adminCredentialsSecretRef"),
            (plain, user("tls"), "set another tls.mode"),
        ] {
            let refused = with_user(sink, user).unwrap_err();
            assert!(refused.to_string().contains(said), "{refused}");
        }
        let new = json!({"spec": {"authentication": {"type": "tls"}}});
        assert!(matches!(with_user(json!({}), new), Err(ReferenceError::NotReady(_))));
    }
}
