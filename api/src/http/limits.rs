//! How much one principal, one basket, and all of them may ask for at once.
//!
//! What is refused says whose load it is: 429 is the principal's own, 503 the service's. No principal can keep all of
//! the database's connections, and no basket all of a principal's, so that a slow query or a row that is locked stops
//! nothing else.

mod keyed;
mod rate;

use std::sync::Arc;
use std::time::{Duration, Instant};

use basket::domain::BasketId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::{Problem, kinds};
use keyed::{Keyed, Permit};
use rate::Rate;

/// Commands of one basket at a time. They change the same row, so that more of them would only wait for its lock, each
/// with a database connection.
const COMMANDS_PER_BASKET: usize = 4;
/// How long a request waits for its turn at the database.
const TURN_WITHIN: Duration = Duration::from_secs(2);

/// The configured limits; 0 stands for no limit where that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests in flight, of all principals.
    pub requests: usize,
    /// Requests in flight of one principal; 0 for no limit, also of its database connections.
    pub requests_per_principal: usize,
    /// Requests per second of one principal; 0 for no limit.
    pub rate: u32,
    /// Database connections.
    pub database_connections: usize,
}

/// The limits of the service.
pub struct RequestLimits {
    in_flight: Arc<Semaphore>,
    of_principals: Option<Arc<Keyed<String>>>,
    rate: Option<Rate>,
    database_shares: Arc<Keyed<String>>,
    baskets: Arc<Keyed<BasketId>>,
}

/// A request that was let in. Held until its answer was sent: what a client does not read takes memory, too.
pub struct Admission {
    _in_flight: OwnedSemaphorePermit,
    principal: Option<Permit<String>>,
}

/// A turn at the database.
pub struct Turn {
    _basket: Option<Permit<BasketId>>,
    _share: Permit<String>,
}

impl RequestLimits {
    /// Limits for this capacity.
    pub fn new(capacity: Capacity) -> RequestLimits {
        let per_principal = capacity.requests_per_principal;
        let connections = capacity.database_connections;
        // Three quarters, so that there are always connections for others, if there can be others.
        let share = if per_principal > 0 { (connections * 3 / 4).max(1) } else { connections };
        RequestLimits {
            in_flight: Arc::new(Semaphore::new(capacity.requests)),
            of_principals: (per_principal > 0).then(|| Keyed::new(per_principal)),
            rate: (capacity.rate > 0).then(|| Rate::new(capacity.rate)),
            database_shares: Keyed::new(share),
            baskets: Keyed::new(COMMANDS_PER_BASKET),
        }
    }

    /// Lets in one more request.
    pub fn admit(&self) -> Result<Admission, Problem> {
        let full = |_| {
            Problem::later(&kinds::UNAVAILABLE, "the service has as many requests as it can take; repeat it")
        };
        let in_flight = Arc::clone(&self.in_flight).try_acquire_owned().map_err(full)?;
        Ok(Admission { _in_flight: in_flight, principal: None })
    }

    /// Counts an admitted request as one of `principal`.
    pub fn admit_principal(&self, admission: &mut Admission, principal: &str) -> Result<(), Problem> {
        if let Some(rate) = &self.rate
            && !rate.allows(principal, Instant::now())
        {
            let detail =
                format!("more than {} requests per second; repeat it in a moment", rate.per_second());
            return Err(Problem::later(&kinds::TOO_MANY, detail));
        }
        if let Some(of_principals) = &self.of_principals {
            let permit = of_principals.try_acquire(principal.to_owned()).ok_or_else(|| {
                let detail =
                    format!("{} requests are in flight; repeat it in a moment", of_principals.each());
                Problem::later(&kinds::TOO_MANY, detail)
            })?;
            admission.principal = Some(permit);
        }
        Ok(())
    }

    /// Waits until `principal` may use the database, for a command about `basket` if there is one.
    pub async fn turn(&self, principal: &str, basket: Option<BasketId>) -> Result<Turn, Problem> {
        let turn = async {
            // In this order: a request that waits for its basket keeps no share from another one.
            let basket = match basket {
                Some(id) => Some(self.baskets.acquire(id).await),
                None => None,
            };
            Turn { _basket: basket, _share: self.database_shares.acquire(principal.to_owned()).await }
        };
        timeout(TURN_WITHIN, turn).await.map_err(|_| {
            let detail =
                "too many requests of this principal or about this basket wait for the database; repeat it";
            Problem::later(&kinds::UNAVAILABLE, detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use uuid::Uuid;

    fn limits(requests: usize, requests_per_principal: usize, database_connections: usize) -> RequestLimits {
        RequestLimits::new(Capacity { requests, requests_per_principal, rate: 0, database_connections })
    }

    #[test]
    fn a_request_in_flight_takes_room_until_it_is_dropped() {
        let limits = limits(1, 0, 1);
        let first = limits.admit().unwrap();
        assert!(limits.admit().is_err());
        drop(first);
        assert!(limits.admit().is_ok());
    }

    #[test]
    fn a_principal_has_a_part_of_the_room_which_is_given_back() {
        let limits = limits(3, 1, 1);
        let admit = |principal| {
            let mut admission = limits.admit().unwrap();
            limits.admit_principal(&mut admission, principal).map(|()| admission)
        };
        let first = admit("ann").unwrap();
        assert!(admit("ann").is_err());
        assert!(admit("bob").is_ok());
        drop(first);
        assert!(admit("ann").is_ok());
    }

    #[tokio::test]
    async fn neither_a_principal_nor_a_basket_has_all_of_the_database() {
        let limits = limits(100, 50, 16);
        let basket = BasketId(Uuid::now_v7());
        let mut turns = Vec::new();
        for _ in 0..COMMANDS_PER_BASKET {
            turns.push(limits.turn("ann", Some(basket)).await.unwrap());
        }
        assert!(limits.turn("ann", Some(basket)).now_or_never().is_none(), "it waits");
        for _ in 0..12 - COMMANDS_PER_BASKET {
            turns.push(limits.turn("ann", None).await.unwrap());
        }
        assert!(limits.turn("ann", None).now_or_never().is_none(), "it waits");
        assert!(limits.turn("bob", None).await.is_ok());
        turns.clear();
        assert!(limits.turn("ann", Some(basket)).await.is_ok());
    }
}
