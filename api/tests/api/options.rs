//! Values of options with which the service could not work are refused at its start.

use std::process::Command;

use crate::service::TOKEN;

const TOO_LONG: &str = "18250d (50 years) or less";

#[test]
fn values_that_cannot_work_are_refused_with_the_option_and_what_is_allowed() {
    for (argument, allowed) in [
        ("--keep-keys=1h", "24h or more"),
        ("--keep-keys=99999999d", TOO_LONG),
        ("--keep-commands=48h", "7d or more"),
        ("--keep-commands=99999999d", TOO_LONG),
        ("--abandon-after=0s", "1s or more"),
        ("--abandon-after=99999999d", TOO_LONG),
        ("--housekeeping-every=0s", "100ms to 1d"),
        ("--housekeeping-every=31d", "100ms to 1d"),
        ("--request-timeout=0s", "1ms or more"),
        ("--header-timeout=0s", "1ms or more"),
        ("--idle-timeout=0ms", "1ms or more"),
        ("--send-timeout=0s", "1ms or more"),
        ("--stop-delay=99999999d", TOO_LONG),
        ("--drain-timeout=99999999d", TOO_LONG),
        ("--jwt-leeway=1h", "5m or less"),
        ("--max-connections=0", "1 to 1000000"),
        ("--max-connections=18446744073709551615", "1 to 1000000"),
        ("--max-requests=0", "1 to 1000000"),
        ("--max-requests=18446744073709551615", "1 to 1000000"),
        ("--max-requests-per-principal=18446744073709551615", "up to 1000000"),
        ("--database-connections=1", "2..=500"),
        ("--database-connections=501", "2..=500"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_basket-api"))
            .args(["serve", "--auth=static-token", argument])
            .env("BASKET_DATABASE_URL", "postgres://127.0.0.1/x")
            .env("BASKET_STATIC_TOKEN", TOKEN)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{argument}: {printed}");
        let (option, _) = argument.split_once('=').unwrap();
        assert!(printed.contains(option), "{argument}: {printed}");
        assert!(printed.contains(allowed), "{argument}: {printed}");
    }
}
