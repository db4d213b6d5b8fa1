//! One release after the other: upgrade, rollback, uninstall, reinstall, with traffic all the while.

use lab::build;
use lab::cluster::guide::{FIRST_RECORD, Guide};
use testbed::guard::Folder;

use crate::traffic::Traffic;
use crate::{installed, until};

/// There is no release before the first: the same chart under a lower version stands for it.
const BEFORE: &str = "0.0.1";

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_rolled_back_and_reinstalled_under_traffic() {
    let Some((_turn, site)) = installed().await else { return };
    let cluster = &site.cluster;
    let folder = Folder::new("charts").unwrap();
    let chart = build::repository().join("charts/outbox-operator").display().to_string();
    let to = folder.path().display().to_string();
    cluster.helm(&["package", &chart, "--version", BEFORE, "--destination", &to]).await.unwrap();
    let earlier = format!("{to}/outbox-operator-{BEFORE}.tgz");
    let upgrade = async |chart: &str| {
        let upgrade = ["upgrade", "outbox", chart, "--namespace=outbox-system", "--wait", "--reuse-values"];
        cluster.helm(&upgrade).await.unwrap();
    };
    upgrade(&earlier).await;
    let traffic = Traffic::start(&site, "released").await;
    upgrade(&chart).await;
    traffic.goes_on().await;
    cluster.helm(&["rollback", "outbox", "--namespace=outbox-system", "--wait"]).await.unwrap();
    let version = ["list", "--namespace=outbox-system", "-o", "json"];
    assert!(cluster.helm(&version).await.unwrap().contains(&format!("outbox-operator-{BEFORE}")));
    traffic.goes_on().await;
    cluster.helm(&["uninstall", "outbox", "--namespace=outbox-system", "--wait"]).await.unwrap();
    let gone = ["get", "deployments", "--namespace=outbox-system", "-o", "name"];
    until(cluster, &gone, str::is_empty).await;
    traffic.goes_on().await;
    traffic.until_delivered().await;
    let guide = Guide::read(FIRST_RECORD).unwrap();
    site.shell(guide.commands.first().unwrap()).await.unwrap();
    traffic.end().await;
}
