//! The writer in plain SQL, run by psql.

use lab::build;
use tokio::process::Command;

use crate::Writer;
use crate::contract::Run;
use crate::env::Env;
use crate::rust::consumer;

struct Psql<'a> {
    env: &'a Env,
}

impl Writer for Psql<'_> {
    async fn deposit(&self, account: &str, amount: u32, traceparent: &str) -> Result<(), String> {
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "--dbname", self.env.writer.url()])
            .args(["-v", &format!("account={account}"), "-v", &format!("amount={amount}")])
            .args(["-v", &format!("traceparent={traceparent}"), "--file"])
            .arg(build::repository().join("examples/sql/writer.sql"));
        let output = psql.output().await.unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

#[tokio::test]
async fn a_deposit_written_in_sql_counts_once() {
    if Command::new("psql").arg("--version").output().await.is_err() {
        eprintln!("skipped: psql is missing (Debian: postgresql-client)");
        return;
    }
    let env = Env::start("sql").await;
    Run::new(&env, &Psql { env: &env }, &consumer).check().await;
}
