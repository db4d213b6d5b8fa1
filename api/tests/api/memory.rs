//! What answers take of memory.

use std::time::Duration;

use serde_json::Value;
use testbed::proxy::{Fault, Way};
use testbed::wait;

use crate::outages::behind_a_proxy;
use crate::service::{Service, tea};

const TIMEOUT: Duration = Duration::from_secs(120);
const VALUES: &str = include_str!("../../../charts/basket-api/values.yaml");

/// The limit of the chart's pods, in bytes.
fn limit() -> u64 {
    let resources = VALUES.split("\nresources:\n").nth(1).unwrap();
    let limit = resources.split("limits:\n    memory: ").nth(1).unwrap().lines().next().unwrap();
    limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() * 1024 * 1024
}

/// A basket as large as they get: 200 lines with names of 200 characters of four bytes.
async fn large_basket(service: &Service) -> String {
    let basket = service.basket().await;
    let items = format!("/v1/baskets/{basket}/items");
    assert_eq!(service.command(&items, &tea(1)).await.status(), 200);
    let grown = "UPDATE basket_view SET view = jsonb_set(view, '{lines}', (
                   SELECT jsonb_agg(jsonb_set(jsonb_set(view->'lines'->0, '{name}', to_jsonb(repeat('𝕏', 200))),
                                              '{sku}', to_jsonb(repeat('𝕏', 60) || n)))
                   FROM generate_series(1, 200) AS n))";
    sqlx::query(grown).execute(&mut service.sql().await).await.unwrap();
    basket
}

/// The memory of the service shows lines that it has read only when there are many of them at once.
#[tokio::test]
async fn no_list_reads_the_lines_of_baskets() {
    let (proxy, service) = behind_a_proxy().await;
    let basket = large_basket(&service).await;
    // Less than the lines of the basket.
    proxy.set(Fault::CutAfter { way: Way::ToClient, bytes: 64 * 1024 });
    for list in ["/v1/baskets?limit=100", "/v1/commands?limit=100"] {
        assert_eq!(service.get(list).await.status(), 200, "{list}");
        assert_eq!(proxy.cuts(), 0, "{list} has read the lines");
    }
    service.get(&format!("/v1/baskets/{basket}")).await;
    assert_eq!(proxy.cuts(), 1, "the basket itself has its lines");
}

/// Baskets as large as they get, and as many lists of them at once as one principal may ask for.
#[tokio::test]
async fn lists_stay_far_below_the_limit_of_the_chart() {
    let service = Service::start().await;
    let basket = large_basket(&service).await;
    let mut sql = service.sql().await;
    // 121 baskets.
    let copied =
        "INSERT INTO basket_view SELECT (substr(v.id::text, 1, 24) || lpad(to_hex(n), 12, '0'))::uuid,
                    v.owner, v.buyer_id, v.status, v.view FROM basket_view v, generate_series(1, 120) AS n";
    sqlx::query(copied).execute(&mut sql).await.unwrap();

    let one: Value = service.get(&format!("/v1/baskets/{basket}")).await.json().await.unwrap();
    assert_eq!(one["lines"].as_array().unwrap().len(), 200);
    // As a client does it: a list that gets no turn in time is repeated.
    let list = async || {
        wait::until("a list", TIMEOUT, async || {
            let answer = service.get("/v1/baskets?limit=100").await;
            if answer.status() == 200 { Ok(answer.bytes().await.unwrap()) } else { Err(answer.status()) }
        })
        .await
        .unwrap()
    };
    let answers = futures::future::join_all((0..64).map(|_| list())).await;
    for answer in &answers {
        let page: Value = serde_json::from_slice(answer).unwrap();
        let baskets = page["baskets"].as_array().unwrap();
        assert_eq!(baskets.len(), 100);
        assert_eq!((&baskets[0]["line_count"], &baskets[0]["lines"]), (&200.into(), &Value::Null));
        assert!(answer.len() < 100 * 1024, "{} bytes", answer.len());
    }
    let (_, most) = service.program.memory().unwrap();
    assert!(most < limit() / 2, "{most} of {} bytes", limit());
}
