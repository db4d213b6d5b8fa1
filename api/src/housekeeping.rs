//! Housekeeping: jobs that do not depend on each other. Each has its own session, is done by one replica at a time,
//! and counts what it does; one that fails is tried again at its next run and keeps no other from running.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use basket::application::expire_baskets::ExpireBaskets;
use basket::application::ports::{BoxFuture, PortError};
use basket::application::{CommandEnvelope, CommandResult, Dispatch, DispatchError};
use chrono::{TimeDelta, Utc};
use sqlx::PgConnection;

use crate::config::Retention;
use crate::metrics::{Metrics, RunOutcome};
use crate::postgres::housekeeping::{PostgresIdleBaskets, expire_keys, maintain_log, try_lock};
use crate::postgres::{Limits, NoServer, PATIENT, Servers};

/// A command of a job has no client that stops waiting for it. Longer than its statements may take, with the attempts
/// after conflicts: an answer that is later was lost on its way.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// A job failed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    NoServer(#[from] NoServer),
    #[error(transparent)]
    Port(#[from] PortError),
    /// What could not be done, although the rest was.
    #[error("{0}")]
    Incomplete(String),
}

/// A job of housekeeping.
trait Job: Send + 'static {
    /// Its name in metrics and log lines.
    const NAME: &str;
    /// Its number among the locks of housekeeping.
    const LOCK: i32;

    /// Does what is due; returns how much that was.
    fn run(&mut self, sql: &mut PgConnection) -> impl Future<Output = Result<u64, JobError>> + Send;
}

struct AbandonBaskets {
    use_case: ExpireBaskets,
    bus: Bounded,
    after: Duration,
    metrics: Metrics,
}

impl Job for AbandonBaskets {
    const NAME: &str = "abandon_baskets";
    const LOCK: i32 = 1;

    async fn run(&mut self, sql: &mut PgConnection) -> Result<u64, JobError> {
        let after = TimeDelta::from_std(self.after).unwrap_or(TimeDelta::MAX);
        let mut idle = PostgresIdleBaskets(sql);
        let expired = self.use_case.run(&self.bus, &mut idle, Utc::now(), after).await?;
        for (basket, error) in &expired.failed {
            let error = error as &dyn std::error::Error;
            tracing::warn!(basket.id = %basket, error, "an idle basket could not be abandoned; it is tried again later");
        }
        self.metrics.baskets_not_abandoned(expired.failed.len());
        Ok(expired.abandoned)
    }
}

/// Dispatches commands whose sender would wait forever.
struct Bounded {
    inner: Arc<dyn Dispatch>,
    within: Duration,
}

impl Dispatch for Bounded {
    fn dispatch<'a>(
        &'a self,
        command: &'a CommandEnvelope,
    ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
        Box::pin(async move {
            let late = |_| PortError::TimedOut(Box::new(io::Error::from(io::ErrorKind::TimedOut)));
            tokio::time::timeout(self.within, self.inner.dispatch(command)).await.map_err(late)?
        })
    }
}

struct ExpireKeys {
    keep: Duration,
}

impl Job for ExpireKeys {
    const NAME: &str = "expire_keys";
    const LOCK: i32 = 2;

    async fn run(&mut self, sql: &mut PgConnection) -> Result<u64, JobError> {
        let mut expired = 0;
        loop {
            let batch = expire_keys(sql, self.keep).await?;
            expired += batch;
            if batch == 0 {
                return Ok(expired);
            }
        }
    }
}

struct MaintainLog {
    keep: Option<Duration>,
}

impl Job for MaintainLog {
    const NAME: &str = "maintain_log";
    const LOCK: i32 = 3;

    async fn run(&mut self, sql: &mut PgConnection) -> Result<u64, JobError> {
        let mut changed = 0;
        loop {
            let done = maintain_log(sql, self.keep).await?;
            let now =
                [done.created, done.dropped, done.deleted].iter().map(|n| n.unsigned_abs()).sum::<u32>();
            changed += u64::from(now);
            match done.held {
                Some(held) if now == 0 => return Err(JobError::Incomplete(held)),
                None if now == 0 => return Ok(changed),
                _ => {}
            }
        }
    }
}

/// Starts every job; they run until the program ends.
pub fn start(servers: &Servers, bus: Arc<dyn Dispatch>, retention: &Retention, metrics: &Metrics) {
    let worker =
        Worker { servers: servers.clone(), every: retention.housekeeping_every, metrics: metrics.clone() };
    let baskets = AbandonBaskets {
        use_case: ExpireBaskets::default(),
        bus: Bounded { inner: bus, within: COMMAND_WITHIN },
        after: retention.abandon_after,
        metrics: metrics.clone(),
    };
    tokio::spawn(worker.clone().run(baskets));
    tokio::spawn(worker.clone().run(ExpireKeys { keep: retention.keep_keys }));
    tokio::spawn(worker.run(MaintainLog { keep: retention.keep_commands }));
}

#[derive(Clone)]
struct Worker {
    servers: Servers,
    every: Duration,
    metrics: Metrics,
}

impl Worker {
    async fn run<J: Job>(self, mut job: J) {
        self.metrics.housekeeping_up_to_date(J::NAME);
        loop {
            tokio::time::sleep(self.every).await;
            let outcome = match self.run_once(&mut job).await {
                Ok(None) => RunOutcome::Elsewhere,
                Ok(Some(done)) => {
                    if done > 0 {
                        tracing::info!(job = J::NAME, done, "housekeeping");
                    }
                    RunOutcome::Done(done)
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(job = J::NAME, error, "housekeeping failed; it is tried again");
                    RunOutcome::Failed
                }
            };
            self.metrics.housekeeping(J::NAME, outcome);
        }
    }

    /// `None` while another replica does the job. The lock ends with the session.
    async fn run_once<J: Job>(&self, job: &mut J) -> Result<Option<u64>, JobError> {
        let mut session = self.servers.connect(Limits::HOUSEKEEPING, PATIENT).await?;
        let ours = try_lock(&mut session.sql, J::LOCK).await?;
        let done = if ours { Some(job.run(&mut session.sql).await?) } else { None };
        session.close().await;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use basket::application::{BasketCommand, CommandContext, CommandId};
    use basket::domain::{BasketId, BuyerId, Principal};
    use uuid::Uuid;

    use super::*;

    /// A database that says nothing.
    struct Silent;

    impl Dispatch for Silent {
        fn dispatch<'a>(
            &'a self,
            _: &'a CommandEnvelope,
        ) -> BoxFuture<'a, Result<CommandResult, DispatchError>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn a_command_without_an_answer_fails() {
        let id = Uuid::now_v7();
        let buyer = BuyerId::try_from("ann".to_owned()).unwrap();
        let envelope = CommandEnvelope {
            id: CommandId(id),
            command: BasketCommand::Create { basket_id: BasketId(id), buyer },
            context: CommandContext {
                principal: Principal::service("expiry"),
                correlation_id: "none".to_owned(),
                traceparent: None,
                tracestate: None,
            },
            idempotency_key: None,
            received_at: Utc::now(),
        };
        let bus = Bounded { inner: Arc::new(Silent), within: Duration::from_millis(1) };
        let result = bus.dispatch(&envelope).await;
        assert!(matches!(result, Err(DispatchError::Port(PortError::TimedOut(_)))), "{result:?}");
    }
}
