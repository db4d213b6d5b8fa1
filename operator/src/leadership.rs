//! One operator acts at a time: the one that holds a Lease. Clocks of different machines are not compared: a Lease is free when it
//! has not changed for its duration, by this process's own clock.

use std::cell::Cell;
use std::fmt::{self, Display, Formatter};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

/// Name of the Lease where none is given. Operators that act side by side, each in different namespaces, need one each.
pub const DEFAULT_LEASE: &str = "outbox-operator";
/// How long a Lease holds without being renewed. The three durations are those of Kubernetes' own components.
const LASTS: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long stops, well before another may begin.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often it is renewed, or looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A process that ends waits so long for the release: the Lease runs out anyway.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// How often a process that waits for its renewal checks it.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Where the Lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name. Of the operators that use the same Lease, one acts.
    pub name: String,
}

impl LeaseReference {
    fn api(&self, client: Client) -> Api<Lease> {
        Api::namespaced(client, &self.namespace)
    }
}

impl Display for LeaseReference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "the Lease {} in namespace {}", self.name, self.namespace)
    }
}

/// The right to act, as long as it is renewed.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    lease: Lease,
    renewed: Instant,
}

/// A Lease that another process holds, and when it was last seen to change.
struct Watched {
    version: Option<String>,
    since: Instant,
    was_deleted: bool,
}

impl Leadership {
    /// Waits until the Lease is free, and takes it. `identity` is of no other process.
    pub async fn acquire(client: Client, lease: &LeaseReference, identity: String) -> Leadership {
        let (api, name) = (lease.api(client), lease.name.clone());
        let mut watched = Watched { version: None, since: Instant::now(), was_deleted: false };
        loop {
            let attempt = attempt(&api, &name, &identity, &mut watched);
            match tokio::time::timeout(RENEW_WITHIN, attempt).await {
                Ok(Ok(Some((lease, renewed)))) => return Leadership { api, name, identity, lease, renewed },
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, lease = name, "cannot look at the Lease"),
                Err(_) => tracing::warn!(
                    "the API server did not answer a request for the Lease within {RENEW_WITHIN:?}"
                ),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Does `work` while the Lease holds; answers whether it is done. Where the Lease is lost, by another's hand or because it could not be
    /// renewed for too long, nothing more of it is done, not even where this process did not run meanwhile and has not noticed yet.
    pub async fn while_held(&mut self, work: impl Future<Output = ()>) -> bool {
        let renewed = Cell::new(self.renewed);
        let guarded = guarded(work, || renewed.get().elapsed() < RENEW_WITHIN);
        tokio::select! {
            biased;
            () = self.renew(&renewed) => false,
            done = guarded => done,
        }
    }

    /// Renews until that has not been possible for too long, or another process has acquired the Lease.
    async fn renew(&mut self, renewed: &Cell<Instant>) {
        while renewed.get().elapsed() < RENEW_WITHIN {
            tokio::time::sleep(EVERY).await;
            let asked = Instant::now();
            let left = RENEW_WITHIN.saturating_sub(renewed.get().elapsed());
            let (lease, parameters) =
                (held(self.lease.clone(), &self.name, &self.identity), PostParams::default());
            let replaced = self.api.replace(&self.name, &parameters, &lease);
            match tokio::time::timeout(left, replaced).await {
                Ok(Ok(lease)) => {
                    self.lease = lease;
                    renewed.set(asked);
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    // Written by another operator, by another client (a label), or by this process's own request whose answer was lost.
                    if !self.is_still_held().await {
                        return;
                    }
                }
                // It was deleted: another operator may create it.
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => return,
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the Lease"),
                Err(_) => {}
            }
        }
    }

    /// Reads the Lease again; answers whether this process is its holder. Its time counts on from the last renewal: reading is none.
    async fn is_still_held(&mut self) -> bool {
        match tokio::time::timeout(EVERY, self.api.get(&self.name)).await {
            Ok(Ok(lease)) => {
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
                let is_held = holder == Some(self.identity.as_str());
                self.lease = lease;
                is_held
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => false,
            // Not known: the next renewal tells, or the time runs out.
            Ok(Err(_)) | Err(_) => true,
        }
    }

    /// Lets another begin at once.
    pub async fn release(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = None;
        }
        let parameters = PostParams::default();
        let replaced = self.api.replace(&self.name, &parameters, &self.lease);
        let problem = match tokio::time::timeout(RELEASE_WITHIN, replaced).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {RELEASE_WITHIN:?}"),
        };
        tracing::warn!(problem, "cannot release the Lease; another begins when it runs out");
    }
}

/// Who acts: seen to renew the Lease, within the time that it takes another to begin in place of one that died.
pub async fn leader(client: Client, lease: &LeaseReference) -> Result<Option<String>, kube::Error> {
    let (api, name) = (lease.api(client), &lease.name);
    let (began, before) = (Instant::now(), api.get_opt(name).await?);
    let version = before.and_then(|lease| lease.metadata.resource_version);
    while began.elapsed() < LASTS + EVERY * 2 {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let Some(lease) = api.get_opt(name).await? else { continue };
        let holder = lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty());
        if holder.is_some() && lease.metadata.resource_version != version {
            return Ok(holder);
        }
    }
    Ok(None)
}

/// Polls `work` only while `may` returns true; returns whether it completed.
async fn guarded(work: impl Future<Output = ()>, may: impl Fn() -> bool) -> bool {
    let mut work = pin!(work);
    poll_fn(|context| match may() {
        true => work.as_mut().poll(context).map(|()| true),
        false => Poll::Ready(false),
    })
    .await
}

/// Takes the Lease if it is free. Its time counts from before the request.
async fn attempt(
    api: &Api<Lease>,
    name: &str,
    identity: &str,
    watched: &mut Watched,
) -> Result<Option<(Lease, Instant)>, kube::Error> {
    let asked = Instant::now();
    let taken = match api.get_opt(name).await? {
        None => {
            // One that was deleted had a holder, who has not noticed yet.
            if watched.version.take().is_some() {
                watched.since = asked;
                watched.was_deleted = true;
            }
            if watched.was_deleted && watched.since.elapsed() <= LASTS {
                return Ok(None);
            }
            api.create(&PostParams::default(), &held(Lease::default(), name, identity)).await
        }
        Some(lease) => {
            if watched.version != lease.metadata.resource_version {
                let version = lease.metadata.resource_version.clone();
                *watched = Watched { version, since: asked, was_deleted: false };
            }
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            let free = holder.is_none_or(str::is_empty) || watched.since.elapsed() > LASTS;
            if !free {
                return Ok(None);
            }
            api.replace(name, &PostParams::default(), &held(lease, name, identity)).await
        }
    };
    match taken {
        Ok(lease) => Ok(Some((lease, asked))),
        // Another process was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

/// `lease`, held by `identity` from now on.
fn held(lease: Lease, name: &str, identity: &str) -> Lease {
    let now = MicroTime(Timestamp::now());
    let before = lease.spec.unwrap_or_default();
    let mine = before.holder_identity.as_deref() == Some(identity);
    Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..lease.metadata },
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: if mine { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..before
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process has to end within the time that its pod is given.
    #[tokio::test]
    async fn an_api_server_that_does_not_answer_does_not_hold_up_the_end() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", silent.local_addr().unwrap());
        let client = Client::try_from(kube::Config::new(address.parse().unwrap())).unwrap();
        let leadership = Leadership {
            api: Api::namespaced(client, "n"),
            name: DEFAULT_LEASE.to_owned(),
            identity: "i".to_owned(),
            lease: held(Lease::default(), DEFAULT_LEASE, "i"),
            renewed: Instant::now(),
        };
        let generous = RELEASE_WITHIN * 10;
        tokio::time::timeout(generous, leadership.release()).await.unwrap();
    }

    /// As by a process that was paused between two steps.
    #[tokio::test]
    async fn nothing_more_is_done_once_it_may_not() {
        let (may, steps) = (Cell::new(true), Cell::new(0));
        let work = async {
            for step in 1..=3 {
                steps.set(step);
                may.set(step < 2);
                tokio::task::yield_now().await;
            }
        };
        assert!(!guarded(work, || may.get()).await);
        assert_eq!(steps.get(), 2);
        assert!(guarded(async {}, || true).await);
    }
}
