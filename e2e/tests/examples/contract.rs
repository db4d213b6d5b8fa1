//! What a writer and a consumer in any language have to do. The consumer is killed, gets every record twice, gets records
//! that are no events, shares its partitions, misses an event, and is stopped; each deposit counts once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use testbed::process::{Launch, Program};
use testbed::records::{Record, read_all};
use testbed::wait;
use uuid::Uuid;

use crate::env::Env;
use crate::records::{produce, uncommitted, with_header};
use crate::{TIMEOUT, Writer};

const ACCOUNTS: [&str; 6] = ["ann", "ben", "cleo", "dan", "eve", "fay"];
/// The account whose event is lost.
const GAP: &str = "ann";

/// One run: what was deposited, and the consumers.
pub struct Run<'a, W> {
    env: &'a Env,
    writer: &'a W,
    launch: &'a dyn Fn() -> Launch,
    /// Account -> total and version.
    deposited: BTreeMap<String, (i64, i64)>,
}

impl<'a, W: Writer> Run<'a, W> {
    pub fn new(env: &'a Env, writer: &'a W, launch: &'a dyn Fn() -> Launch) -> Run<'a, W> {
        Run { env, writer, launch, deposited: BTreeMap::new() }
    }

    /// The whole contract.
    pub async fn check(&mut self) {
        self.state_and_event_share_a_transaction().await;
        self.killed_consumer_and_repeated_records().await;
        self.records_that_are_no_events().await;
        self.second_consumer_gets_partitions_and_gives_them_back().await;
        self.missing_version_is_noticed_until_it_arrives().await;
        self.inbox_has_each_event_in_the_trace_of_its_writer().await;
    }

    pub fn start_consumer(&self) -> Program {
        self.env.consumer((self.launch)()).start().unwrap()
    }

    /// One deposit to each account.
    pub async fn deposit_to_all(&mut self) {
        for (amount, account) in (1..).zip(ACCOUNTS) {
            self.deposit(account, amount).await;
        }
    }

    async fn deposit(&mut self, account: &str, amount: u32) {
        let traceparent = format!("00-{}-00f067aa0ba902b7-01", Uuid::new_v4().simple());
        self.writer.deposit(account, amount, &traceparent).await.unwrap();
        let (total, version) = self.deposited.entry(account.to_owned()).or_default();
        *total += i64::from(amount);
        *version += 1;
    }

    /// Waits until the consumer's totals are those of the writer, and nothing is missing.
    pub async fn until_all_applied(&self, consumers: &mut [&mut Program]) {
        let expected: Vec<_> = self
            .deposited
            .iter()
            .map(|(account, (total, version))| (account.clone(), *total, *version, "{}".to_owned()))
            .collect();
        wait::until("all deposits in effect", TIMEOUT, async || {
            for consumer in consumers.iter_mut() {
                assert_eq!(consumer.exit_status(), None, "{}", consumer.log_tail());
            }
            let totals = self.totals().await;
            if totals == expected { Ok(()) } else { Err(format!("{totals:?}, not {expected:?}")) }
        })
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", logs(consumers)));
    }

    async fn totals(&self) -> Vec<(String, i64, i64, String)> {
        let statement =
            "SELECT account_id, total, version, missing::text FROM account_total ORDER BY account_id";
        let mut sql = self.env.consumer.connect().await.unwrap();
        sqlx::query_as(statement).fetch_all(&mut sql).await.unwrap()
    }

    async fn count(&self, statement: &'static str) -> i64 {
        let mut sql = self.env.consumer.connect().await.unwrap();
        sqlx::query_scalar(statement).fetch_one(&mut sql).await.unwrap()
    }

    async fn records(&self, at_least: usize) -> Vec<Record> {
        wait::until(format!("{at_least} records"), TIMEOUT, async || {
            let records = read_all(&self.env.bootstrap, &[&self.env.topic]).await;
            let records = records.map_err(|error| error.to_string())?;
            if records.len() >= at_least { Ok(records) } else { Err(format!("{} records", records.len())) }
        })
        .await
        .unwrap()
    }

    async fn state_and_event_share_a_transaction(&self) {
        self.env
            .writer
            .execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
                 CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW
                 WHEN (NEW.aggregateid = 'refused') EXECUTE FUNCTION refuse()",
            )
            .await
            .unwrap();
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        self.writer.deposit("refused", 1, traceparent).await.expect_err("its event was refused");
        let mut sql = self.env.writer.connect().await.unwrap();
        let changed: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM account WHERE account_id = 'refused')")
                .fetch_one(&mut sql)
                .await
                .unwrap();
        assert!(!changed, "the state was changed without its event");
    }

    async fn killed_consumer_and_repeated_records(&mut self) {
        for _ in 0..3 {
            self.deposit_to_all().await;
        }
        let mut killed = self.start_consumer();
        wait::until("an event in effect", TIMEOUT, async || {
            assert_eq!(killed.exit_status(), None, "{}", killed.log_tail());
            match self.count("SELECT count(*) FROM inbox").await {
                0 => Err("none".to_owned()),
                _ => Ok(()),
            }
        })
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", killed.log_tail()));
        killed.kill().await.unwrap();
        let records = self.records(3 * ACCOUNTS.len()).await;
        produce(self.env, &records);
        // After the copies, in each partition that has some: once these are applied, the copies have been read.
        self.deposit_to_all().await;
        let mut consumer = self.start_consumer();
        self.until_all_applied(&mut [&mut consumer]).await;
        stop(consumer).await;
    }

    async fn records_that_are_no_events(&mut self) {
        let records = self.records(1).await;
        let event = &records[0];
        let new_id = || Uuid::now_v7().to_string();
        let no_id = {
            let mut record = event.clone();
            record.headers.retain(|(name, _)| name != "ce_id");
            record
        };
        let value =
            |text: &str| Record { value: Some(text.into()), ..with_header(event, "ce_id", &new_id()) };
        let poison = [
            no_id,
            with_header(event, "ce_id", "7"),
            value("not JSON"),
            value("{}"),
            value(r#"{"account_id": "ann", "version": "\u0000", "amount": 1}"#),
            value(r#"{"account_id": "\u0000", "version": 1, "amount": 1}"#),
            value(r#"{"account_id": "ann", "version": 100000, "amount": -5}"#),
            Record { value: None, ..with_header(event, "ce_id", &new_id()) },
            // Another event id for a version that was applied.
            with_header(event, "ce_id", &new_id()),
            with_header(&value("[]"), "note", "\0"),
        ];
        let rejected = i64::try_from(poison.len()).unwrap();
        produce(self.env, &poison);
        self.deposit_to_all().await;
        let mut consumer = self.start_consumer();
        self.until_all_applied(&mut [&mut consumer]).await;
        let reasons = "SELECT count(*) FROM rejected WHERE reason <> ''";
        assert_eq!(self.count(reasons).await, rejected, "{}", consumer.log());
        consumer.kill().await.unwrap();
    }

    async fn second_consumer_gets_partitions_and_gives_them_back(&mut self) {
        let (mut first, mut second) = (self.start_consumer(), self.start_consumer());
        let both = wait::until("both consumers apply events", TIMEOUT, async || {
            self.deposit_to_all().await;
            self.until_all_applied(&mut [&mut first, &mut second]).await;
            let idle =
                [&first, &second].iter().filter(|consumer| !consumer.log().contains("applied")).count();
            if idle == 0 { Ok(()) } else { Err(format!("{idle} of them did not")) }
        });
        both.await.unwrap();
        stop(second).await;
        self.deposit_to_all().await;
        self.until_all_applied(&mut [&mut first]).await;
        stop(first).await;
        assert_eq!(
            uncommitted(self.env),
            0,
            "a consumer that stops commits the offsets of what it has applied"
        );
    }

    async fn missing_version_is_noticed_until_it_arrives(&mut self) {
        self.lose_an_event().await;
        self.deposit(GAP, 1).await;
        let missing_version = self.deposited[GAP].1 - 1;
        let mut consumer = self.start_consumer();
        let gap = format!("{{[{missing_version},{})}}", missing_version + 1);
        wait::until(format!("{GAP} misses {gap}"), TIMEOUT, async || {
            let totals = self.totals().await;
            match totals.iter().find(|(account, ..)| account == GAP) {
                Some((.., missing)) if *missing == gap => Ok(()),
                seen => Err(format!("{seen:?}: {}", consumer.log_tail())),
            }
        })
        .await
        .unwrap();
        // As an event does that was a dead letter.
        let records = self.records(1).await;
        let last = records.iter().rfind(|record| record.key.as_deref() == Some(GAP.as_bytes())).unwrap();
        let payload = json!({"account_id": GAP, "version": missing_version, "amount": 70});
        let late = Record { value: Some(payload.to_string().into_bytes()), ..last.clone() };
        let trace = format!("00-{}-00f067aa0ba902b7-01", Uuid::new_v4().simple());
        let late =
            with_header(&with_header(&late, "ce_id", &Uuid::now_v7().to_string()), "traceparent", &trace);
        produce(self.env, &[late]);
        self.deposited.get_mut(GAP).unwrap().0 += 70;
        self.until_all_applied(&mut [&mut consumer]).await;
        stop(consumer).await;
    }

    /// A change of the state without its event: what a writer without an outbox does.
    async fn lose_an_event(&mut self) {
        let mut sql = PgConnection::connect(self.env.writer.url()).await.unwrap();
        let change = "UPDATE account SET version = version + 1 WHERE account_id = $1";
        sqlx::query(change).bind(GAP).execute(&mut sql).await.unwrap();
        self.deposited.get_mut(GAP).unwrap().1 += 1;
    }

    async fn inbox_has_each_event_in_the_trace_of_its_writer(&self) {
        let mut sql = self.env.consumer.connect().await.unwrap();
        let rejected: Vec<(i32, i64)> =
            sqlx::query_as("SELECT partition, \"offset\" FROM rejected").fetch_all(&mut sql).await.unwrap();
        let inbox: Vec<(Uuid, String)> =
            sqlx::query_as("SELECT event_id, traceparent FROM inbox").fetch_all(&mut sql).await.unwrap();
        let inbox: BTreeMap<Uuid, String> = inbox.into_iter().collect();
        let records = self.records(1).await;
        let events: Vec<&Record> =
            records.iter().filter(|record| !rejected.contains(&(record.partition, record.offset))).collect();
        let ids: BTreeSet<Uuid> = events.iter().map(|record| record.event_id().unwrap()).collect();
        assert_eq!(inbox.keys().copied().collect::<BTreeSet<_>>(), ids);
        for event in events {
            let (written, continued) =
                (event.header("traceparent").unwrap(), &inbox[&event.event_id().unwrap()]);
            let part = |text: &str, part| text.split('-').nth(part).unwrap().to_owned();
            assert_eq!(part(continued, 1), part(written, 1), "the trace continues");
            assert_ne!(part(continued, 2), part(written, 2), "in a span of the consumer");
            assert_eq!(
                value(event)["account_id"].as_str().unwrap().as_bytes(),
                event.key.as_deref().unwrap()
            );
        }
    }
}

/// As Kubernetes does. The exit code depends on the language.
async fn stop(mut consumer: Program) {
    consumer.terminate().unwrap();
    consumer.wait(TIMEOUT).await.unwrap();
}

fn value(record: &Record) -> Value {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

fn logs(consumers: &[&mut Program]) -> String {
    consumers.iter().map(|consumer| consumer.log_tail()).collect::<Vec<_>>().join("\n")
}
