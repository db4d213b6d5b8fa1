//! The kubectl plugin beside a real API server, an operator and a relay. There is no node, so nothing leads from the API server into a
//! pod: a kubectl of the test takes these two ways to the relay itself, and leaves all else to the real one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use outbox_operator::desired::configuration::ADMIN_PORT;
use serde_json::json;
use testbed::guard::Folder;

use crate::stage::{Stage, built, relay_program};

/// What a pod has: the relay, and its configuration at this path.
const KUBECTL: &str = r#"#!/bin/sh
case " $* " in
*/proxy/status*) exec curl --silent --show-error --fail "http://$POD/status" ;;
*" exec "*)
  while [ "$1" != -- ]; do shift; done
  [ "$2" = outbox-relay ] || exit 99
  shift 2
  OUTBOX_RELAY__ADMIN__LISTEN=$POD exec "$RELAY" $(echo "$@" | sed "s#/etc/outbox-relay/config/relay.yaml#$CONFIG#") ;;
*) exec "$REAL_KUBECTL" "$@" ;;
esac
"#;

struct Plugin {
    program: PathBuf,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Plugin {
    fn of(stage: &Stage, relay: &Folder, folder: &Folder) -> Plugin {
        let kubectl = folder.path().join("kubectl");
        fs::write(&kubectl, KUBECTL).unwrap();
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
        let cluster = stage.namespace.cluster();
        let path = std::env::var_os("PATH").unwrap();
        let path = std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&path));
        Plugin {
            program: built("kubectl-outbox"),
            variables: vec![
                ("PATH", std::env::join_paths(path).unwrap().into()),
                ("KUBECONFIG", cluster.kubeconfig().to_owned()),
                ("REAL_KUBECTL", cluster.kubectl_program().to_owned()),
                ("RELAY", relay_program()),
                ("CONFIG", relay.path().join("relay.yaml")),
                ("POD", format!("{}:{ADMIN_PORT}", stage.pod_ip).into()),
            ],
        }
    }

    async fn run(&self, stage: &Stage, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(&self.program);
        command.arg(format!("--namespace={}", stage.namespace.name())).args(arguments);
        command.envs(self.variables.iter().map(|(name, value)| (name, Path::new(value))));
        command.output().await.unwrap()
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The cells of the line that begins with the namespace and this name.
fn row<'a>(table: &'a str, stage: &Stage, name: &str) -> Vec<&'a str> {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_wanted = |row: &Vec<&str>| row.starts_with(&[stage.namespace.name(), name]);
    rows.into_iter().find(is_wanted).unwrap_or_else(|| panic!("no {name} in\n{table}"))
}

#[tokio::test]
async fn the_plugin_shows_relays_and_runs_their_commands() {
    let mut stage = Stage::shared("plugin").await;
    let (relay, folder) = (Folder::new("relay").unwrap(), Folder::new("plugin").unwrap());
    let _program = stage.until_streaming(&relay).await;
    stage.insert(stage.database.name()).await;
    stage.until_records(1).await;
    // Another resource, which names a Secret that does not exist.
    stage.spec["source"]["postgres"]["credentialsSecretRef"] = json!({"name": "missing"});
    stage.spec["source"]["postgres"]["slot"]["name"] = json!("billing");
    stage.spec["topics"] = json!([]);
    stage.apply_as("billing").await;
    stage.until_of("billing", &[("Ready", "False", "SecretUnusable")]).await;
    let plugin = Plugin::of(&stage, &relay, &folder);

    let status = plugin.run(&stage, &["status"]).await;
    let table = out(&status);
    assert!(table.starts_with("NAMESPACE") && status.status.success(), "{status:?}");
    let shop = row(&table, &stage, "shop");
    assert_eq!((&shop[2..4], shop[5]), (&["True", "Streaming"][..], "1"), "{table}");
    assert!(shop[4].ends_with('s') && shop[4].starts_with(|first: char| first.is_ascii_digit()), "{table}");
    assert_eq!(row(&table, &stage, "billing")[2..], ["False", "SecretUnusable", "-", "0"]);
    assert!(err(&status).contains("/billing: no pod is running"), "{status:?}");

    let top = out(&plugin.run(&stage, &["top"]).await);
    assert_eq!(row(&top, &stage, "shop").last(), Some(&"streaming"), "{top}");
    let names: Vec<_> = top.lines().skip(1).map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names, [Some("shop"), Some("billing")], "the lag that is known comes first");

    let doctor = plugin.run(&stage, &["doctor", "shop"]).await;
    assert!(doctor.status.success() && out(&doctor).contains("ok       database"), "{doctor:?}");

    let id = stage.value("SELECT id FROM outbox").await.unwrap();
    let found = plugin.run(&stage, &["where", "shop", &id]).await;
    let expected = format!("acknowledged: {}/", stage.topic);
    assert!(found.status.success() && out(&found).starts_with(&expected), "{found:?}");
    let other = plugin.run(&stage, &["where", "shop", "00000000-0000-0000-0000-000000000000"]).await;
    assert_eq!(other.status.code(), Some(69), "the exit code of the relay's command: {other:?}");
    assert!(out(&other).starts_with("not committed: "), "{other:?}");

    let audit = plugin.run(&stage, &["audit", "shop", "--since", "2026-01-01T00:00:00Z"]).await;
    assert!(audit.status.success() && out(&audit).contains("missing       0"), "{audit:?}");
    let replay = ["replay", "shop", "--since", "2026-01-01T00:00:00Z", "--key", "k", "--dry-run"];
    let replay = plugin.run(&stage, &replay).await;
    assert!(replay.status.success() && out(&replay).ends_with("events would be sent\n"), "{replay:?}");

    let missing = plugin.run(&stage, &["replay", "shop", "--missing", "--dry-run"]).await;
    assert!(missing.status.success() && out(&missing).ends_with("0 events would be sent\n"), "{missing:?}");

    let letters = plugin.run(&stage, &["dead-letters", "shop", "--limit", "5"]).await;
    assert!(err(&letters).contains("delivery.deadLetterTopic is not set"), "{letters:?}");
    let none = plugin.run(&stage, &["doctor", "billing"]).await;
    assert!(err(&none).contains("no pod of ") && none.status.code() == Some(1), "{none:?}");
    let unknown = plugin.run(&stage, &["doctor", "no-such-relay"]).await;
    assert!(err(&unknown).contains("NotFound") && unknown.status.code() == Some(1), "{unknown:?}");
}
