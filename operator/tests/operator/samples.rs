//! What people copy from the documents is accepted as it stands.

use std::path::Path;

use crate::cluster::namespace;

#[tokio::test]
async fn every_sample_is_accepted() {
    let namespace = namespace("samples").await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/samples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let sample = std::fs::read_to_string(&path).unwrap();
        let apply = ["apply", "--server-side", "--validate=strict", "-f", "-", "-o", "name"];
        let applied = namespace.kubectl_with(&apply, &sample).await;
        names.push(applied.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    }
    names.sort();
    assert_eq!(names.len(), 10, "{names:?}");
}
