//! One of several operators acts; another takes over when it stops, and when it dies.

use std::path::Path;

use k8s_openapi::jiff::Timestamp;
use testbed::kubernetes::Namespace;
use testbed::process::{Launch, Program, Signal};
use testbed::wait;

use crate::cluster::{apply, least, namespace, relay};
use crate::stage::{SOON, operator, program};

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

/// What another client does to the Lease: a label is no reason to stop, and one that was deleted is not taken before its holder can have
/// noticed.
#[tokio::test]
async fn a_lease_that_others_edit_or_delete() {
    let namespace = namespace("edited-lease").await;
    let lease = format!("--lease-namespace={}", namespace.name());
    let start = || operator(namespace.name(), namespace.cluster().kubeconfig()).arg(&lease).start().unwrap();
    let get = async |path: &str| {
        namespace.kubectl(&["get", "lease", "outbox-operator", "-o", &format!("jsonpath={path}")]).await
    };
    let mut first = start();
    until_leading(&first).await;
    let second = start();
    wait::until("one that stands by", SOON, async || {
        if second.log().contains("outbox-operator starts") { Ok(()) } else { Err(second.log()) }
    })
    .await
    .unwrap();
    for number in 0..3 {
        let label = format!("number={number}");
        namespace.kubectl(&["label", "--overwrite", "lease", "outbox-operator", &label]).await.unwrap();
        let before = get("{.spec.renewTime}").await.unwrap();
        wait::until("a renewal after the label", SOON, async || {
            let renewed = get("{.spec.renewTime}").await.unwrap();
            if renewed == before { Err(renewed) } else { Ok(()) }
        })
        .await
        .unwrap();
    }
    assert!(first.exit_status().is_none(), "{}", first.log());

    let deleted = Timestamp::now();
    namespace.kubectl(&["delete", "lease", "outbox-operator"]).await.unwrap();
    assert_eq!(first.wait(SOON).await.unwrap().code(), Some(69), "{}", first.log());
    until_leading(&second).await;
    let acquired: Timestamp = get("{.spec.acquireTime}").await.unwrap().parse().unwrap();
    assert!(acquired.as_second() - deleted.as_second() >= 10, "{deleted} {acquired}");
}

async fn until_reconciled(namespace: &Namespace, operator: &Program) {
    wait::until("conditions", SOON, async || {
        let reasons = ["get", "obr", "shop", "-o", "jsonpath={.status.conditions[*].reason}"];
        let reasons = namespace.kubectl(&reasons).await.unwrap();
        if reasons.contains("SecretUnusable") { Ok(()) } else { Err(operator.log_tail()) }
    })
    .await
    .unwrap();
}

/// What `doctor` says of the leader, and its exit code.
async fn doctor_on(kubeconfig: &Path, arguments: &[&str]) -> (String, Option<i32>) {
    let launch =
        arguments.iter().fold(program(kubeconfig).arg("doctor"), |launch, argument| launch.arg(argument));
    let mut doctor = launch.start().unwrap();
    let code = doctor.wait(SOON).await.unwrap().code();
    let log = doctor.log();
    let line = log.lines().find(|line| line.contains(" leader ")).unwrap_or(&log);
    (line.to_owned(), code)
}

/// Two releases in one namespace, each for different namespaces.
#[tokio::test]
async fn operators_with_separate_leases_act_side_by_side() {
    let (one, two) = (namespace("lease-one").await, namespace("lease-two").await);
    let kubeconfig = one.cluster().kubeconfig();
    let lease_namespace = format!("--lease-namespace={}", one.name());
    let start = |watched: &Namespace, name: &str| -> Program {
        let launch = operator(watched.name(), kubeconfig).arg(&lease_namespace);
        launch.env("OUTBOX_OPERATOR_LEASE_NAME", name).start().unwrap()
    };
    for namespace in [&one, &two] {
        apply(namespace, &relay(&least())).await.unwrap();
    }
    let (first, second) = (start(&one, "one"), start(&two, "two"));
    until_leading(&first).await;
    until_leading(&second).await;
    until_reconciled(&one, &first).await;
    until_reconciled(&two, &second).await;

    let watched = format!("--namespace={}", two.name());
    let (said, code) = doctor_on(kubeconfig, &[&watched, &lease_namespace, "--lease-name=two"]).await;
    let expected = format!("-{} holds the Lease two in namespace {} and renews it", second.pid(), one.name());
    assert!(code == Some(0) && said.starts_with("ok ") && said.contains(&expected), "{said}");
    let (said, code) = doctor_on(kubeconfig, &[&watched, &lease_namespace]).await;
    let expected = format!("no operator renews the Lease outbox-operator in namespace {}", one.name());
    assert!(code == Some(69) && said.starts_with("problem ") && said.contains(&expected), "{said}");
}
