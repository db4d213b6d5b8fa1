//! W3C trace context. A service that uses OpenTelemetry has its propagator read and write it instead.

use uuid::Uuid;

/// A span of this consumer.
pub struct Trace {
    pub trace_id: String,
    pub span_id: String,
    flags: String,
}

impl Trace {
    /// A new span in the trace of `traceparent`, or in a new trace if there is none.
    pub fn continued(traceparent: Option<&str>) -> Trace {
        let (trace_id, flags) = traceparent
            .and_then(parse)
            .unwrap_or_else(|| (Uuid::new_v4().simple().to_string(), "00".to_owned()));
        let span_id = Uuid::new_v4().simple().to_string().chars().take(16).collect();
        Trace { trace_id, span_id, flags }
    }

    /// For what the effect causes: requests to other services, and events in an outbox of this consumer.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{}", self.trace_id, self.span_id, self.flags)
    }
}

/// Trace id and flags. Versions after 00 may have more parts.
fn parse(traceparent: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace_id, parent_id, flags, more @ ..] = parts.as_slice() else { return None };
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let well_formed = hex(version, 2) && hex(trace_id, 32) && hex(parent_id, 16) && hex(flags, 2);
    let valid = *version != "ff" && (*version != "00" || more.is_empty());
    let set = [trace_id, parent_id].iter().all(|id| id.bytes().any(|byte| byte != b'0'));
    (well_formed && valid && set).then(|| ((*trace_id).to_owned(), (*flags).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_continues_in_a_new_span() {
        let trace = Trace::continued(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert_eq!(trace.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(trace.span_id, "00f067aa0ba902b7");
        assert_eq!(parse(&trace.traceparent()), Some((trace.trace_id, "01".to_owned())));
    }

    #[test]
    fn what_is_no_trace_context_starts_a_trace() {
        for malformed in [
            None,
            Some(""),
            Some("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
            Some("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"),
        ] {
            let trace = Trace::continued(malformed);
            assert_ne!(trace.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736", "{malformed:?}");
            assert!(parse(&trace.traceparent()).is_some(), "{}", trace.traceparent());
        }
    }
}
