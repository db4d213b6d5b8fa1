//! The metrics of docs/METRICS.md, which are those that the programs export.

const METRICS: &str = include_str!("../../docs/METRICS.md");
/// Of any process, on Linux.
const PROCESS: [&str; 3] =
    ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"];
const PREFIXES: [&str; 3] = ["outbox_", "process_", "basket_"];

/// The metrics in an expression, or in a text with expressions, that no program exports. A text without metrics is
/// returned itself.
pub fn unknown(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let named: Vec<&str> =
        words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).collect();
    if named.is_empty() {
        return vec![text];
    }
    let is_exported = |name: &&str| {
        let family = name.trim_end_matches("_bucket");
        METRICS.contains(&format!("| `{family}` |")) || PROCESS.contains(&family)
    };
    named.into_iter().filter(|name| !is_exported(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_program_exports_is_found() {
        let text = "rate(outbox_relay_commit_to_ack_duration_seconds_bucket[5m]) > basket_api_smiles / process_start_time_seconds";
        assert_eq!(unknown(text), ["basket_api_smiles"]);
        assert_eq!(unknown("up == 0"), ["up == 0"]);
    }
}
