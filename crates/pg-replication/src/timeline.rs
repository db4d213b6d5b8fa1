//! Which timeline an LSN belongs to: the history file that a promotion writes.

use crate::{Error, Lsn};

/// The ancestors of a timeline: each earlier timeline, and where it ended.
///
/// Needed to compare LSNs across a promotion: the same LSN stands for different transactions on different timelines,
/// and what the old primary wrote after the switch point is not part of this history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: u32,
    /// Oldest first; both members grow.
    switch_points: Vec<(u32, Lsn)>,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors, as initdb creates it.
    pub(crate) fn first(timeline: u32) -> Self {
        TimelineHistory { timeline, switch_points: Vec::new() }
    }

    /// Parses the history file of `timeline`: each line has an earlier timeline, where it ended, and a reason in words.
    ///
    /// # Errors
    /// [`Error::Protocol`] when a line is broken or out of order.
    pub fn parse(timeline: u32, content: &str) -> Result<Self, Error> {
        let mut history = TimelineHistory::first(timeline);
        let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let broken = || Error::protocol(format!("a broken line in the history of timeline {timeline}"));
            let (ancestor, end) = switch_point(line).ok_or_else(broken)?;
            let follows = history.switch_points.last().is_none_or(|last| last.0 < ancestor && last.1 <= end);
            if !follows || ancestor >= timeline {
                return Err(Error::protocol(format!("the history of timeline {timeline} is out of order")));
            }
            history.switch_points.push((ancestor, end));
        }
        Ok(history)
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// The timelines before it, oldest first, each with where it ended: the next one begins exactly there.
    pub fn switch_points(&self) -> &[(u32, Lsn)] {
        &self.switch_points
    }

    /// The timeline that the byte at `lsn` was written on. A record that *begins* at a switch point belongs to the
    /// newer timeline; one that *ends* there, to the older.
    pub fn timeline_of(&self, lsn: Lsn) -> u32 {
        self.switch_points.iter().find(|(_, end)| lsn < *end).map_or(self.timeline, |(ancestor, _)| *ancestor)
    }
}

fn switch_point(line: &str) -> Option<(u32, Lsn)> {
    let mut fields = line.split_whitespace();
    let timeline: u32 = fields.next()?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (timeline > 0).then_some((timeline, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THIRD: &str =
        "1\t0/3000148\tno recovery target specified\n\n# a remark\n2\t16/B374D848\tbefore 2026-01-01\n";

    #[test]
    fn an_lsn_belongs_to_the_timeline_it_was_written_on() {
        let history = TimelineHistory::parse(3, THIRD).unwrap();
        assert_eq!(history.switch_points(), [(1, Lsn::from(0x300_0148)), (2, Lsn::from(0x16_B374_D848))]);
        let expected = [(0, 1), (0x300_0147, 1), (0x300_0148, 2), (0x16_B374_D847, 2), (0x16_B374_D848, 3)];
        for (lsn, timeline) in expected {
            assert_eq!(history.timeline_of(Lsn::from(lsn)), timeline, "{lsn:#x}");
        }
        assert_eq!(TimelineHistory::first(1).timeline_of(Lsn::from(u64::MAX)), 1);
    }

    #[test]
    fn an_invalid_history_is_rejected() {
        for content in [
            "1",
            "x\t0/1",
            "0\t0/1",
            "-1\t0/1",
            "1\t0-1",
            "2\t0/1\n1\t0/2",
            "1\t0/2\n2\t0/1",
            "1\t0/1\n1\t0/1",
            "3\t0/1",
            "4\t0/1",
        ] {
            assert!(TimelineHistory::parse(3, content).is_err(), "{content:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(content in "([0-9]{1,3}\t[0-9A-F]/[0-9A-F]\t?.*\n|.*\n){0,5}", lsn: u64) {
            if let Ok(history) = TimelineHistory::parse(9, &content) {
                prop_assert!(history.timeline_of(Lsn::from(lsn)) <= 9);
            }
        }
    }
}
