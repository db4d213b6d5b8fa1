//! One of several operators acts; another takes over when it stops, and when it dies.

use testbed::process::{Launch, Program, Signal};
use testbed::wait;

use crate::cluster::namespace;
use crate::stage::{SOON, operator};

async fn until_leading(program: &Program) {
    wait::until("an operator that leads", SOON, async || {
        let log = program.log();
        if log.contains(": leads") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn another_takes_over_from_one_that_stops_dies_or_is_paused() {
    let namespace = namespace("leaders").await;
    let lease = format!("--lease-namespace={}", namespace.name());
    let start = || -> Program {
        let launch: Launch = operator(namespace.name(), namespace.cluster().kubeconfig());
        launch.arg(&lease).start().unwrap()
    };
    let holder =
        ["get", "lease", "outbox-operator", "-o", "jsonpath={.spec.holderIdentity} {.spec.leaseTransitions}"];
    let mut first = start();
    until_leading(&first).await;
    let mut second = start();
    let held = namespace.kubectl(&holder).await.unwrap();
    assert!(held.ends_with(&format!("-{} 1", first.pid())), "{held}");
    first.terminate().unwrap();
    assert_eq!(first.wait(SOON).await.unwrap().code(), Some(0), "{}", first.log());
    until_leading(&second).await;
    assert!(!first.log().contains("cannot release"), "{}", first.log());

    let mut third = start();
    second.kill().await.unwrap();
    until_leading(&third).await;

    // One that did not run for longer than its Lease lasts finds it taken, and ends.
    let fourth = start();
    third.signal(Signal::Stop).unwrap();
    until_leading(&fourth).await;
    third.signal(Signal::Cont).unwrap();
    assert_eq!(third.wait(SOON).await.unwrap().code(), Some(69), "{}", third.log());
}
