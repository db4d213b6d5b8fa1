//! Reads Secrets, each once in a reconciliation however many references lead to it, and keeps only the keys that are referenced.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use crate::metrics::Metrics;

/// A Secret is not what the resource needs: a person has to do something about it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is none of that name.
    #[error("Secret {0} does not exist in this namespace: create it")]
    Missing(String),
    /// The operator may not read it.
    #[error(
        "the operator may not read Secret {0}: bind its service account in this namespace to a role with the verb get on secrets \
         (the chart's rbac.create, or a Role and a RoleBinding)"
    )]
    Forbidden(String),
    /// It lacks a key.
    #[error("Secret {secret} has no key '{key}': add it, or name the key in the reference")]
    NoKey {
        /// Its name.
        secret: String,
        /// The key.
        key: String,
    },
    /// It lacks the key of a user name, which need not be in the Secret.
    #[error(
        "Secret {secret} has no key '{key}': add it, or give the user name in the reference, as username or by another usernameKey"
    )]
    NoUsername {
        /// Its name.
        secret: String,
        /// The key.
        key: String,
    },
    /// A value is no text.
    #[error("Secret {secret}: the value of '{key}' is not UTF-8")]
    NotText {
        /// Its name.
        secret: String,
        /// The key.
        key: String,
    },
    /// The resource names no Secret and no role. The CRD of this version refuses that.
    #[error(
        "spec.source.postgres has neither credentialsSecretRef nor username: apply this version's CRD, and set one of them"
    )]
    NoRole,
}

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// See [`SecretError`].
    #[error(transparent)]
    Unusable(#[from] SecretError),
    /// The API server did not answer, or refused for another reason: this says nothing about the Secret.
    #[error("cannot read Secret {name} now: {error}")]
    Unavailable {
        /// Its name.
        name: String,
        /// The API server's answer.
        error: kube::Error,
    },
}

/// Values by Secret and key.
// Without Debug, which would show them.
#[derive(Clone, Default)]
pub struct Values(BTreeMap<(String, String), String>);

impl Values {
    /// Adds those of `newer`.
    pub fn extend(&mut self, newer: Values) {
        self.0.extend(newer.0);
    }

    /// Secret and key of each.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().map(|(secret, key)| (secret.as_str(), key.as_str()))
    }

    fn get(&self, secret: &str, key: &str) -> Option<&String> {
        self.0.get(&(secret.to_owned(), key.to_owned()))
    }
}

/// What the API server says of a Secret.
enum Found {
    Data(BTreeMap<String, ByteString>),
    Missing,
    Forbidden,
}

/// See the module's text.
pub struct Reader<'a> {
    api: Api<Secret>,
    metrics: &'a Metrics,
    before: Option<Arc<Values>>,
    found: BTreeMap<String, Found>,
    used: Values,
}

impl<'a> Reader<'a> {
    /// `api` leads to the Secrets of the resource's namespace. Values of Secrets that cannot be read any more are taken from `before`:
    /// when a namespace is deleted, Secrets and roles may go before the resource that needs them for its end.
    pub fn new(api: Api<Secret>, metrics: &'a Metrics, before: Option<Arc<Values>>) -> Reader<'a> {
        Reader { api, metrics, before, found: BTreeMap::new(), used: Values::default() }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Names the Secret, and the key.
    pub async fn value(&mut self, secret: &str, key: &str) -> Result<String, ReadError> {
        let gone = match self.find(secret).await? {
            Found::Data(data) => {
                let value = text(secret, key, data)?;
                self.used.0.insert((secret.to_owned(), key.to_owned()), value.clone());
                return Ok(value);
            }
            Found::Missing => SecretError::Missing(secret.to_owned()),
            Found::Forbidden => SecretError::Forbidden(secret.to_owned()),
        };
        let before = self.before.as_ref().and_then(|before| before.get(secret, key));
        before.cloned().ok_or_else(|| gone.into())
    }

    /// The value of a key that is one line. Editors and `base64` add the end of a line, and no credentials have one.
    ///
    /// # Errors
    /// As [`Reader::value`].
    pub async fn line(&mut self, secret: &str, key: &str) -> Result<String, ReadError> {
        Ok(self.value(secret, key).await?.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The values that were read, and no others.
    pub fn into_used(self) -> Values {
        self.used
    }

    async fn find(&mut self, name: &str) -> Result<&Found, ReadError> {
        match self.found.entry(name.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let reading = self.api.get_opt(name);
                let found = match self.metrics.kubernetes("read_secret", reading).await {
                    Ok(Some(secret)) => Found::Data(secret.data.unwrap_or_default()),
                    Ok(None) => Found::Missing,
                    Err(kube::Error::Api(refusal)) if refusal.code == 403 => Found::Forbidden,
                    Err(error) => return Err(ReadError::Unavailable { name: name.to_owned(), error }),
                };
                Ok(unknown.insert(found))
            }
        }
    }
}

fn text(secret: &str, key: &str, data: &BTreeMap<String, ByteString>) -> Result<String, SecretError> {
    let (secret, key) = (secret.to_owned(), key.to_owned());
    let Some(value) = data.get(&key) else { return Err(SecretError::NoKey { secret, key }) };
    String::from_utf8(value.0.clone()).map_err(|_| SecretError::NotText { secret, key })
}
