//! `basket-api migrate` on a database that an earlier release has migrated.

use std::fs;
use std::path::{Path, PathBuf};

use sqlx::migrate::Migrator;
use testbed::guard::Folder;
use testbed::{Database, shared};

use crate::doctor::{ended, program};

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(folder);
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Until then outbox and basket had one folder, and the owner of a slot was not known.
#[tokio::test]
async fn a_database_from_when_all_migrations_were_in_one_folder_gets_those_that_are_missing() {
    let folder = Folder::new("migrations").unwrap();
    for file in files("outbox").into_iter().chain(files("basket")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name < "0006" {
            fs::copy(&file, folder.path().join(name)).unwrap();
        }
    }
    let server = shared().await.unwrap().postgres_url("postgres");
    let database = Database::empty_on(&server, "migrations").await.unwrap();
    let mut connection = database.connect().await.unwrap();
    let earlier = Migrator::new(folder.path()).await.unwrap();
    assert_eq!(earlier.iter().count(), 5);
    earlier.run(&mut connection).await.unwrap();

    for _ in 0..2 {
        let (code, log) = ended(program(database.url()).arg("migrate")).await;
        assert_eq!(code, Some(0), "{log}");
    }
    let noted = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
    let noted: Vec<i64> = sqlx::query_scalar(noted).fetch_all(&mut connection).await.unwrap();
    let last = i64::try_from(files("outbox").len() + files("basket").len()).unwrap();
    assert_eq!(noted, (1..=last).collect::<Vec<i64>>());
    let (_, lines) = ended(program(database.url()).arg("doctor")).await;
    assert!(lines.contains(&format!("all {last} migrations are applied, and no others")), "{lines}");
}
