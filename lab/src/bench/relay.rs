//! The relay as one of the readers that are measured: in its default configuration.

use std::path::Path;
use std::time::Duration;

use testbed::process::{Launch, Program};
use testbed::{net, wait};

use super::site::Site;
use crate::Failure;

/// Longer than a start and a stop take on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

/// Lets the relay create publication, slot and checkpoint.
pub async fn prepare(programs: &Path, site: &Site) -> Result<(), Failure> {
    let (mut program, admin) = launch(programs, site)?;
    let metrics = format!("http://127.0.0.1:{admin}/metrics");
    wait::until("a relay that streams", WITHIN, async || {
        let answer = reqwest::get(&metrics).await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let streams = text.lines().any(|line| line == "outbox_relay_streaming 1");
        if streams { Ok(()) } else { Err(program.log_tail()) }
    })
    .await?;
    program.terminate()?;
    program.wait(WITHIN).await?;
    Ok(())
}

/// Starts the relay; does not wait.
pub fn start(programs: &Path, site: &Site) -> Result<Program, Failure> {
    Ok(launch(programs, site)?.0)
}

fn launch(programs: &Path, site: &Site) -> Result<(Program, u16), Failure> {
    let admin = net::free_port()?;
    let path = site.folder.path().join("relay.yaml");
    let text = format!(
        "version: 1\nname: bench\nsource: {{host: 127.0.0.1, port: {}, tls: {{mode: {}}}, database: {}, user: postgres, \
         publication: {{name: outbox}}, slot: {{name: {}}}}}\nsink: {{bootstrapServers: '{}', tls: {{mode: disable}}}}\n\
         admin: {{listen: '127.0.0.1:{admin}'}}\n",
        site.port,
        if site.tls { "require" } else { "disable" },
        site.database.name(),
        site.slot,
        site.bootstrap
    );
    std::fs::write(&path, text)?;
    let relay =
        Launch::new("outbox-relay", programs.join("outbox-relay")).arg("run").arg("--config").arg(path);
    Ok((relay.start()?, admin))
}
