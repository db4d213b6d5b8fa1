//! Lists of a principal with many rows: an index serves each filter, and what is slow keeps no command waiting.

use std::time::Duration;

use basket::application::ports::PortError;
use basket::application::queries::{
    BasketFilter, BasketQueries, CommandFilter, CommandQueries, Page, PageRequest,
};
use basket::application::{BasketStatus, CommandId, CommandType, OutcomeKind};
use basket::domain::{BasketId, BuyerId};
use basket_api::metrics::Connections;
use basket_api::postgres::{Database, PostgresBaskets, PostgresCommandLog, Servers};
use chrono::{TimeDelta, Utc};
use testbed::{Database as Fresh, wait};
use uuid::Uuid;

use crate::service::Service;

const SOON: Duration = Duration::from_secs(60);
/// Entries of a page.
const LIMIT: u32 = 5;
/// A server keeps a plan for all parameters after five executions, if it thinks that it is as good.
const REPEATED: i64 = 8;

/// Asks for a list several times, and asserts that the server read little of the table for it.
async fn assert_reads_little<T>(
    database: &Database,
    list: impl AsyncFn() -> Result<Page<T>, PortError>,
    what: &str,
) {
    // The sums of what all sessions have reported; the one for lists reports what it has done so far.
    let statistics = async || {
        let mut sql = database.list_connection().await.unwrap();
        let report = sqlx::query("SELECT pg_stat_force_next_flush()");
        report.execute(&mut *sql).await.unwrap();
        let sums = "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)::bigint,
                           (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)::bigint";
        sqlx::query_as::<_, (i64, i64)>(sums).fetch_one(&mut *sql).await.unwrap()
    };
    let before = statistics().await;
    for _ in 0..REPEATED {
        list().await.unwrap();
    }
    let after = statistics().await;
    assert_eq!(after.0, before.0, "{what} reads the table");
    let entries = after.1 - before.1;
    assert!(entries <= REPEATED * 100, "{what} reads {entries} entries of indexes");
}

/// The lists of a service with these rows, in a database that nothing else uses.
async fn with_rows(sql: &str) -> (Database, Fresh) {
    let service = Service::start().await;
    service.basket().await;
    let Service { database, program, .. } = service;
    drop(program);
    database.execute(sql).await.unwrap();
    let mut session = database.connect().await.unwrap();
    // A session reports what it has read when it ends.
    wait::until("the end of other sessions", SOON, async || {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let others: i64 = sqlx::query_scalar(others).fetch_one(&mut session).await.unwrap();
        if others == 0 { Ok(()) } else { Err(others) }
    })
    .await
    .unwrap();
    // One connection for lists.
    (Database::new(&database.url().parse().unwrap(), 4), database)
}

/// What the filters ask for is half of the table and all of it old, so that a walk from the newest row reads much.
#[tokio::test]
async fn every_filter_of_baskets_is_served_by_an_index() {
    let many = "INSERT INTO basket_view
                SELECT id, owner, buyer, status,
                       view || jsonb_build_object('id', id, 'buyer_id', buyer, 'status', status)
                FROM (SELECT uuidv7() AS id, view,
                             CASE WHEN n > 15000 THEN 'other' ELSE owner END AS owner,
                             CASE WHEN n > 10000 THEN 'web' ELSE 'guest' END AS buyer,
                             CASE WHEN n > 10000 THEN 'abandoned' ELSE 'open' END AS status
                      FROM basket_view, generate_series(1, 20000) AS n) AS rows;
                ANALYZE basket_view";
    let (database, _fresh) = with_rows(many).await;
    let baskets = PostgresBaskets::new(database.clone());
    let oldest = sqlx::query_scalar("SELECT id FROM basket_view ORDER BY id OFFSET 50 LIMIT 1");
    let oldest: Uuid = oldest.fetch_one(&mut *database.list_connection().await.unwrap()).await.unwrap();
    for buyer in [None, Some("guest"), Some("none")] {
        for status in [None, Some(BasketStatus::Open), Some(BasketStatus::CheckedOut)] {
            for after in [None, Some(BasketId(oldest))] {
                let buyer_id = buyer.map(|buyer| BuyerId::try_from(buyer.to_owned()).unwrap());
                let filter = BasketFilter { buyer_id, status };
                let list =
                    async || baskets.list("developer", &filter, PageRequest { after, limit: LIMIT }).await;
                let what = format!("{filter:?} after {after:?}");
                let matches = buyer != Some("none") && status != Some(BasketStatus::CheckedOut);
                let expected = if matches { LIMIT as usize } else { 0 };
                assert_eq!(list().await.unwrap().entries.len(), expected, "{what}");
                assert_reads_little(&database, list, &what).await;
            }
        }
    }
}

/// The same for commands, of one principal and of all.
#[tokio::test]
async fn every_filter_of_the_log_is_served_by_an_index() {
    let many = "INSERT INTO command_log
                SELECT (jsonb_populate_record(log, jsonb_build_object('id', uuidv7()) || CASE
                            WHEN n <= 10000 THEN '{}'
                            ELSE jsonb_build_object('command_type', 'add_item', 'outcome', 'refused', 'refusal', 'x',
                                     'basket_version', NULL, 'event_ids', '{}',
                                     'principal', CASE WHEN n > 15000 THEN 'other' ELSE principal END)
                        END)).*
                FROM command_log AS log, generate_series(1, 20000) AS n;
                ANALYZE command_log";
    let (database, _fresh) = with_rows(many).await;
    let log = PostgresCommandLog::new(database.clone());
    let oldest = sqlx::query_scalar("SELECT id FROM command_log ORDER BY id OFFSET 50 LIMIT 1");
    let oldest: Uuid = oldest.fetch_one(&mut *database.list_connection().await.unwrap()).await.unwrap();
    let (soon, now) = (Utc::now() + TimeDelta::minutes(5), Utc::now());
    let mut filters = vec![
        CommandFilter { from: Some(soon), ..CommandFilter::default() },
        CommandFilter { until: Some(now), ..CommandFilter::default() },
    ];
    for command_type in [None, Some(CommandType::CreateBasket), Some(CommandType::CheckOut)] {
        for outcome in [None, Some(OutcomeKind::Accepted), Some(OutcomeKind::Refused)] {
            filters.push(CommandFilter { command_type, outcome, ..CommandFilter::default() });
        }
    }
    for principal in [None, Some("developer")] {
        for filter in &filters {
            for after in [None, Some(CommandId(oldest))] {
                let list = async || log.list(principal, filter, PageRequest { after, limit: LIMIT }).await;
                let what = format!("{filter:?} of {principal:?} after {after:?}");
                assert_reads_little(&database, list, &what).await;
            }
        }
    }
    let filter = CommandFilter { command_type: Some(CommandType::CreateBasket), ..CommandFilter::default() };
    let found = log.list(None, &filter, PageRequest { after: None, limit: LIMIT }).await.unwrap();
    assert_eq!(found.entries.len(), LIMIT as usize);
}

#[tokio::test]
async fn slow_lists_take_no_connection_of_commands() {
    let fresh = Fresh::fresh("pools").await.unwrap();
    let database = Database::new(&fresh.url().parse().unwrap(), 4);
    let _list = database.list_connection().await.unwrap();
    let crowded = database.list_connection().await;
    assert!(matches!(crowded, Err(sqlx::Error::PoolTimedOut)), "one in four is for lists");
    let open = async || database.connection().await.unwrap();
    let _commands = (open().await, open().await, open().await);
    assert_eq!(database.connections(), Connections { idle: 0, used: 4 });
}

/// As after an outage, while requests wait for a connection.
#[tokio::test]
async fn a_connection_that_is_waited_for_while_the_pools_are_replaced_comes_from_the_new_ones() {
    let fresh = Fresh::fresh("replaced").await.unwrap();
    let servers: Servers = fresh.url().parse().unwrap();
    let database = Database::new(&servers, 4);
    let _held = database.list_connection().await.unwrap();
    let mut waiting = Box::pin(database.list_connection());
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    database.replace(servers.first());
    waiting.await.unwrap();
}
