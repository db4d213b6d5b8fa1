//! The status page of the operator in a real browser: resources with their conditions. With `OUTBOX_TEST_WRITE` the test takes the
//! picture of the documents.

use std::path::Path;

use serde_json::json;
use testbed::browser::{Browser, Scheme};
use testbed::guard::Folder;

use crate::stage::{SOON, Stage};

#[tokio::test]
async fn the_page_shows_resources_and_the_conditions_that_are_not_met() {
    let Some(mut browser) = Browser::start().await.unwrap() else { return };
    let mut stage = Stage::shared("page").await;
    let folder = Folder::new("page").unwrap();
    let _relay = stage.until_streaming(&folder).await;
    browser.open(&stage.admin_url(), Scheme::Light).await.unwrap();
    browser.until_text("Leads: 1 of 1 resources ready", SOON).await.unwrap();
    browser.until_text(&format!("{}/shop\tTrue: Streaming", stage.namespace.name()), SOON).await.unwrap();
    // Another resource, which names a Secret that does not exist.
    stage.spec["source"]["postgres"]["credentialsSecretRef"] = json!({"name": "missing"});
    stage.spec["source"]["postgres"]["slot"]["name"] = json!("billing");
    stage.spec["topics"] = json!([]);
    stage.apply_as("billing").await;
    browser.until_text("Leads: 1 of 2 resources ready", SOON).await.unwrap();
    let row = format!("{}/billing\tFalse: SecretUnusable", stage.namespace.name());
    browser.until_text(&row, SOON).await.unwrap();
    browser.until_text("ReferencesResolved\tFalse\tSecretUnusable", SOON).await.unwrap();
    if std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
        browser.screenshot(&images.join("status-page-operator.png")).await.unwrap();
    }
}
