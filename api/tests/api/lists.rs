//! Lists of a principal with many rows: an index serves each filter, and what is slow keeps no command waiting.

use std::time::Duration;

use basket_api::metrics::Connections;
use basket_api::postgres::Database;
use chrono::{SecondsFormat, TimeDelta, Utc};
use testbed::{Database as Fresh, wait};

use crate::service::Service;

const SOON: Duration = Duration::from_secs(60);
/// A server keeps a plan for all parameters after five executions, if it thinks that it is as good.
const REPEATED: i64 = 8;

/// Asks for each list several times, and asserts that the server read little of `table` for it.
async fn served_by_an_index(service: &Service, table: &str, paths: &[&str]) {
    let statistics = async || {
        let scans = "SELECT coalesce(t.seq_tup_read, 0)::bigint, coalesce(sum(i.idx_scan), 0)::bigint,
                            coalesce(sum(i.idx_tup_read), 0)::bigint
                     FROM pg_stat_user_tables t LEFT JOIN pg_stat_user_indexes i USING (relid)
                     WHERE t.relname LIKE $1 GROUP BY relid, t.seq_tup_read";
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(scans)
            .bind(format!("{table}%"))
            .fetch_all(&mut service.sql().await)
            .await
            .unwrap();
        rows.iter().fold((0, 0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1, sum.2 + row.2))
    };
    for path in paths {
        service.database.execute("SELECT pg_stat_reset()").await.unwrap();
        for _ in 0..REPEATED {
            assert_eq!(service.get(path).await.status(), 200, "{path}");
        }
        let (sequential, _, by_index) = wait::until("statistics of the lists", SOON, async || {
            let seen = statistics().await;
            if seen.1 >= REPEATED || seen.0 > 0 { Ok(seen) } else { Err(format!("{path}: {seen:?}")) }
        })
        .await
        .unwrap();
        assert_eq!(sequential, 0, "{path} reads the table");
        assert!(by_index <= REPEATED * 100, "{path} reads {by_index} entries of indexes");
    }
}

#[tokio::test]
async fn every_filter_of_baskets_is_served_by_an_index() {
    let service = Service::start().await;
    let many = "INSERT INTO basket_view SELECT uuidv7(), 'developer', 'guest', 'open', '{}' FROM generate_series(1, 50000);
                ANALYZE basket_view";
    service.database.execute(many).await.unwrap();
    let paths = [
        "/v1/baskets?status=checked_out",
        "/v1/baskets?buyer_id=ann",
        "/v1/baskets?buyer_id=guest&status=abandoned",
    ];
    served_by_an_index(&service, "basket_view", &paths).await;
}

#[tokio::test]
async fn every_filter_of_the_log_is_served_by_an_index() {
    let service = Service::start().await;
    service.basket().await;
    let many = "INSERT INTO command_log SELECT (jsonb_populate_record(c, jsonb_build_object(
                    'id', uuidv7(), 'command_type', 'add_item'))).*
                FROM (SELECT l FROM command_log AS l LIMIT 1) AS one (c), generate_series(1, 50000);
                ANALYZE command_log";
    service.database.execute(many).await.unwrap();
    // Of times that are further away, no partition is read at all.
    let soon = (Utc::now() + TimeDelta::minutes(5)).to_rfc3339_opts(SecondsFormat::Secs, true);
    let later = format!("/v1/commands?from={soon}");
    let paths = [
        "/v1/commands?outcome=refused",
        "/v1/commands?type=check_out",
        "/v1/commands?type=create_basket&outcome=accepted",
        &later,
    ];
    served_by_an_index(&service, "command_log_m", &paths).await;
}

#[tokio::test]
async fn slow_lists_take_no_connection_of_commands() {
    let fresh = Fresh::fresh("pools").await.unwrap();
    let database = Database::new(&fresh.url().parse().unwrap(), 4);
    let _list = database.lists().acquire().await.unwrap();
    let crowded = database.lists().acquire().await;
    assert!(matches!(crowded, Err(sqlx::Error::PoolTimedOut)), "one in four is for lists");
    let pool = database.pool();
    let _commands =
        (pool.acquire().await.unwrap(), pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    assert_eq!(database.connections(), Connections { idle: 0, used: 4 });
}
