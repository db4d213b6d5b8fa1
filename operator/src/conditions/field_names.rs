//! The relay names the fields of its configuration file, which the operator writes. A condition names the fields of the
//! resource, which its reader can change.

/// (field of the relay's configuration file, field of the resource)
const FIELDS: [(&str, &str); 59] = [
    ("source.host", "spec.source.postgres.host"),
    ("source.port", "spec.source.postgres.port"),
    ("source.database", "spec.source.postgres.database"),
    ("source.user", "spec.source.postgres.credentialsSecretRef"),
    ("source.passwordFile", "spec.source.postgres.credentialsSecretRef"),
    ("source.tls", "spec.source.postgres.tls"),
    ("source.tls.mode", "spec.source.postgres.tls.mode"),
    ("source.tls.caFile", "spec.source.postgres.tls.caSecretRef"),
    ("source.tls.certFile and keyFile", "spec.source.postgres.tls.certificateSecretRef"),
    ("source.tls.certFile", "spec.source.postgres.tls.certificateSecretRef"),
    ("source.tls.keyFile", "spec.source.postgres.tls.certificateSecretRef"),
    ("source.tls.channelBinding", "spec.source.postgres.tls.channelBinding"),
    ("source.table", "spec.source.postgres.table"),
    ("source.publication.name", "spec.source.postgres.publication.name"),
    ("source.publication.creationPolicy", "spec.source.postgres.publication.creationPolicy"),
    ("source.slot.name", "spec.source.postgres.slot.name"),
    ("source.slot.creationPolicy", "spec.source.postgres.slot.creationPolicy"),
    ("source.slot.failover", "spec.source.postgres.slot.failover"),
    ("source.start", "spec.source.start"),
    ("source.onGap", "spec.source.onGap"),
    ("source.eventSource", "spec.source.eventSource"),
    ("sink.bootstrapServers", "spec.sink.kafka.bootstrapServers"),
    ("sink.tls", "spec.sink.kafka.tls"),
    ("sink.tls.mode", "spec.sink.kafka.tls.mode"),
    ("sink.tls.caFile", "spec.sink.kafka.tls.caSecretRef"),
    ("sink.tls.certFile", "spec.sink.kafka.tls.certificateSecretRef"),
    ("sink.tls.keyFile", "spec.sink.kafka.tls.certificateSecretRef"),
    ("sink.sasl", "spec.sink.kafka.sasl"),
    ("sink.sasl.mechanism", "spec.sink.kafka.sasl.mechanism"),
    ("sink.sasl.username", "spec.sink.kafka.sasl.credentialsSecretRef"),
    ("sink.sasl.usernameFile", "spec.sink.kafka.sasl.credentialsSecretRef"),
    ("sink.sasl.passwordFile", "spec.sink.kafka.sasl.credentialsSecretRef"),
    ("sink.sasl.region", "spec.sink.kafka.sasl.region"),
    ("sink.sasl.tokenFile", "spec.sink.kafka.sasl.oauthbearer.tokenFile"),
    ("sink.sasl.tokenLifetimeSeconds", "spec.sink.kafka.sasl.oauthbearer.tokenLifetimeSeconds"),
    ("sink.sasl.extensions", "spec.sink.kafka.sasl.oauthbearer.extensions"),
    ("sink.sasl.clientCredentials", "spec.sink.kafka.sasl.oauthbearer.tokenEndpoint"),
    ("sink.sasl.clientCredentials.tokenEndpoint", "spec.sink.kafka.sasl.oauthbearer.tokenEndpoint.url"),
    ("sink.sasl.clientCredentials.allowHttp", "spec.sink.kafka.sasl.oauthbearer.tokenEndpoint.allowHttp"),
    ("sink.sasl.clientCredentials.caFile", "spec.sink.kafka.sasl.oauthbearer.tokenEndpoint.caSecretRef"),
    ("sink.sasl.clientCredentials.clientId", "spec.sink.kafka.sasl.credentialsSecretRef"),
    ("sink.sasl.clientCredentials.clientIdFile", "spec.sink.kafka.sasl.credentialsSecretRef"),
    ("sink.sasl.clientCredentials.clientSecretFile", "spec.sink.kafka.sasl.credentialsSecretRef"),
    ("sink.sasl.clientCredentials.scope", "spec.sink.kafka.sasl.oauthbearer.tokenEndpoint.scope"),
    ("sink.compression", "spec.sink.kafka.compression"),
    ("sink.lingerMs", "spec.sink.kafka.lingerMs"),
    ("sink.maxMessageBytes", "spec.sink.kafka.maxMessageBytes"),
    ("sink.producers", "spec.sink.kafka.producers"),
    ("routing.byField", "spec.routing.byField"),
    ("routing.regex", "spec.routing.regex"),
    ("routing.replacement", "spec.routing.replacement"),
    ("delivery.maxInFlightEvents", "spec.delivery.maxInFlightEvents"),
    ("delivery.maxInFlightBytes", "spec.delivery.maxInFlightBytes"),
    ("delivery.onPoison", "spec.delivery.onPoison"),
    ("delivery.deadLetterTopic", "spec.delivery.deadLetterTopic"),
    ("retention.keepHours", "spec.retention.keepHours"),
    ("retention.aheadHours", "spec.retention.aheadHours"),
    ("heartbeat.intervalSeconds", "spec.heartbeat.intervalSeconds"),
    ("shutdown.graceSeconds", "spec.shutdown.graceSeconds"),
];

/// A message in which the relay's fields have become those of the resource.
pub(super) fn of_the_resource(message: &str) -> String {
    let mut named = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(first) = rest.chars().next() {
        let begins_a_name = !named.ends_with(is_of_a_name);
        let length = match field_at(rest).filter(|_| begins_a_name) {
            Some((of_relay, of_resource)) => {
                named.push_str(of_resource);
                of_relay.len()
            }
            None => {
                named.push(first);
                first.len_utf8()
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    named
}

/// The field that `text` begins with.
fn field_at(text: &str) -> Option<(&'static str, &'static str)> {
    let begins = |(field, _): &&(&str, &str)| {
        text.strip_prefix(field).is_some_and(|rest| {
            let mut after = rest.chars();
            // A full stop ends a sentence, or leads to a longer name.
            match after.next() {
                Some('.') => !after.next().is_some_and(is_of_a_name),
                next => !next.is_some_and(is_of_a_name),
            }
        })
    };
    FIELDS.iter().filter(begins).max_by_key(|(field, _)| field.len()).copied()
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-' | '/')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use outbox_relay::config::Config;
    use outbox_relay::error::ErrorKind;
    use serde_json::{Value, json};

    use super::*;
    use crate::resource;

    /// What the operator decides, and a resource has no field for.
    const OF_THE_OPERATOR: [&str; 4] = ["version", "name", "owner", "admin.listen"];

    #[test]
    fn names_of_fields_are_replaced_and_nothing_else() {
        let named = |message| of_the_resource(message);
        assert_eq!(
            named("check source.host, source.tls.certFile and keyFile; then sink.tls."),
            "check spec.source.postgres.host, spec.source.postgres.tls.certificateSecretRef; then spec.sink.kafka.tls."
        );
        for unchanged in [
            "spec.source.start",
            "topic my.routing.regex",
            "source.hosts",
            "source.tls.other",
            "retention.ms",
            "über source",
        ] {
            assert_eq!(named(unchanged), unchanged);
        }
        assert_eq!(named("'source.start'"), "'spec.source.start'");
    }

    #[test]
    fn every_field_in_a_remedy_is_one_of_the_resource() {
        let sections = ["source.", "sink.", "routing.", "delivery.", "retention.", "heartbeat.", "shutdown."];
        let mut translated = 0;
        for kind in ErrorKind::ALL {
            let remedy = of_the_resource(kind.remedy());
            translated += usize::from(remedy != kind.remedy());
            for word in remedy.split(|c: char| !is_of_a_name(c)) {
                assert!(
                    !sections.iter().any(|section| word.starts_with(section)),
                    "{kind:?}: {word} in {remedy}"
                );
            }
            assert!(!remedy.contains("keyFile") && !remedy.contains("caFile"), "{kind:?}: {remedy}");
        }
        assert!(translated > 10, "{translated}");
    }

    #[test]
    fn every_field_of_the_relays_file_has_its_field_of_the_resource() {
        let sasl = json!({
            "mechanism": "OAUTHBEARER", "tokenFile": "/f", "tokenLifetimeSeconds": 9, "extensions": {"a": "b"},
            "clientCredentials": {"tokenEndpoint": "https://i", "allowHttp": false, "caFile": "/f", "clientId": "c",
                "clientIdFile": "/f", "clientSecretFile": "/f", "scope": "s"},
        });
        let written = json!({
            "version": 1, "name": "r", "owner": "o",
            "source": {"host": "h", "database": "d", "user": "u", "passwordFile": "/f", "publication": {"name": "p"},
                "slot": {"name": "s"}, "onGap": "Refill", "eventSource": "e", "tls": {"caFile": "/f", "certFile": "/f", "keyFile": "/f"}},
            "sink": {"bootstrapServers": "k:9092", "sasl": sasl, "tls": {"caFile": "/f", "certFile": "/f", "keyFile": "/f"}},
            "delivery": {"deadLetterTopic": "t"},
        });
        let config: Config = serde_json::from_value(written).unwrap();
        let mut paths = BTreeSet::new();
        leaves(&serde_json::to_value(config).unwrap(), "", &mut paths);
        assert!(paths.len() > 45, "{paths:?}");
        let known: BTreeSet<&str> = FIELDS.iter().map(|(field, _)| *field).chain(OF_THE_OPERATOR).collect();
        for path in paths.iter().filter(|path| !path.starts_with("sink.sasl.extensions.")) {
            assert!(known.contains(path.as_str()), "{path} has no field of the resource");
        }
    }

    fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    leaves(member, &below, found);
                }
            }
            _ => {
                found.insert(path.to_owned());
            }
        }
    }

    #[test]
    fn every_field_of_the_resource_exists() {
        let definition = serde_json::to_value(resource::definition()).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for (_, field) in FIELDS {
            let found = field.split('.').try_fold(schema, |schema, name| schema["properties"].get(name));
            assert!(found.is_some(), "{field}");
        }
    }
}
