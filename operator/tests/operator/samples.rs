//! What people copy from the documents is accepted as it stands.

use std::path::Path;

use crate::cluster::namespace;

const APPLY: [&str; 7] = ["apply", "--server-side", "--validate=strict", "-f", "-", "-o", "name"];

#[tokio::test]
async fn every_sample_is_accepted() {
    let namespace = namespace("samples").await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/samples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let sample = std::fs::read_to_string(&path).unwrap();
        let applied = namespace.kubectl_with(&APPLY, &sample).await;
        names.push(applied.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    }
    names.sort();
    assert_eq!(names.len(), 10, "{names:?}");
}

#[tokio::test]
async fn the_resource_of_the_tutorial_is_accepted() {
    let namespace = namespace("tutorial").await;
    let page = include_str!("../../../docs/tutorials/kubernetes.md");
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let resources: Vec<&str> = blocks.filter(|block| block.contains("kind: OutboxRelay")).collect();
    assert_eq!(resources.len(), 1, "{resources:?}");
    let applied = namespace.kubectl_with(&APPLY, resources[0]).await.unwrap();
    assert_eq!(applied.trim(), "outboxrelay.outbox.dev/shop");
}
