//! Metrics that there are.

const METRICS: &str = include_str!("../../../docs/METRICS.md");
/// Of any process, on Linux.
const PROCESS: [&str; 3] =
    ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"];
const PREFIXES: [&str; 3] = ["outbox_", "process_", "basket_"];

/// Demands that an expression, or a text with expressions in it, names metrics, and only such as are exported.
pub fn are_exported(text: &str) {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics: Vec<&str> =
        words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).collect();
    assert!(!metrics.is_empty(), "{text}");
    for metric in metrics {
        let family = metric.trim_end_matches("_bucket");
        let exported = METRICS.contains(&format!("| `{family}` |")) || PROCESS.contains(&family);
        assert!(exported, "nothing exports {metric}: {text}");
    }
}
